"""Exports: what is chosen, how it is split and numbered, and that a target is whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import duckdb
import fsspec
import numpy as np
import pytest
from pycocotools.coco import COCO

from pipelines.errors import SourceError, StorageError
from pipelines.export import selection
from pipelines.export import write as export_module
from pipelines.export.splits import NUMBER, Splits
from pipelines.export.write import FORMATS, Choice, Export, export_output
from pipelines.masks import rle
from pipelines.storage.store import Store, open_store
from pipelines.types import Prompt
from tests.pipelines.storage.test_targets import write
from tests.support.labeled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")
FOUND = {
    "a/1.jpg": [mask(CAT, box(0, 0, 2, 3), 0.9), mask(DOG, box(5, 5, 4, 2), 0.4)],
    "b.jpg": [],
    "c.jpg": None,
    "d.jpg": [mask(DOG, box(1, 1, 6, 6), 0.7)],
}


@pytest.fixture
def output(tmp_path: Path) -> Store:
    """Two images with masks, one without, and one that is quarantined."""
    return write_output(tmp_path / "output", FOUND, common=[CAT, DOG])[0]


def coco(store: Store, path: Path, **choice: Any) -> dict[str, Any]:
    export_output(store, str(path), "coco", Choice(**choice))
    return dict(json.loads(path.read_text()))


def loaded(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def masks_by_image(document: dict[str, Any]) -> dict[str, list[str]]:
    """Return the names of the categories found, by file name."""
    names = {category["id"]: category["name"] for category in document["categories"]}
    images = {image["id"]: image["file_name"] for image in document["images"]}
    found: dict[str, list[str]] = {name: [] for name in images.values()}
    for entry in document["annotations"]:
        found[images[entry["image_id"]]].append(names[entry["category_id"]])
    return found


def test_coco_is_read_by_pycocotools_with_the_same_pixels(output: Store, tmp_path: Path) -> None:
    summary = export_output(output, str(tmp_path / "coco.json"), "coco", Choice())
    assert (summary.num_images, summary.num_masks, summary.num_categories) == ({"": 3}, {"": 3}, 2)
    assert summary.num_quarantined == 1
    read = loaded(tmp_path / "coco.json")
    by_name = {image["file_name"]: image for image in read.imgs.values()}
    assert list(by_name) == ["a/1.jpg", "b.jpg", "d.jpg"]
    assert (by_name["d.jpg"]["width"], by_name["d.jpg"]["coco_url"]) == (10, "/p/d.jpg")
    first, second = read.imgToAnns[by_name["a/1.jpg"]["id"]]
    assert np.array_equal(read.annToMask(first).astype(bool), box(0, 0, 2, 3))
    assert np.array_equal(read.annToMask(second).astype(bool), box(5, 5, 4, 2))
    assert (first["score"], first["area"], first["bbox"], first["iscrowd"]) == (0.9, 6, [0, 0, 2, 3], 0)
    assert read.cats == {1: {"id": 1, "name": "cat"}, 2: {"id": 2, "name": "dog"}}
    assert [read.cats[a["category_id"]]["name"] for a in (first, second)] == ["cat", "dog"]
    assert sorted(read.anns) == [1, 2, 3]


def test_coco_is_read_by_faster_coco_eval(output: Store, tmp_path: Path) -> None:
    faster = pytest.importorskip("faster_coco_eval")
    coco(output, tmp_path / "coco.json")
    read = faster.COCO(str(tmp_path / "coco.json"))
    scores = faster.COCOeval_faster(read, read.loadRes(list(read.anns.values())), "segm", print_function=str)
    scores.evaluate()
    scores.accumulate()
    scores.summarize()
    assert scores.stats[0] == pytest.approx(1)


def test_categories_of_runs_that_number_them_otherwise_are_the_same_by_name(tmp_path: Path) -> None:
    write_output(tmp_path / "output", {"a.jpg": FOUND["a/1.jpg"]}, common=[CAT, DOG], run_id="run-1")
    dog, cat = named("ovseg", "dog", "cat")
    later = {"b.jpg": [mask(cat, box(0, 0, 3, 3))], "c.jpg": [mask(dog, box(0, 0, 3, 3))]}
    store, _ = write_output(tmp_path / "output", later, common=[dog, cat], run_id="run-2")
    document = coco(store, tmp_path / "coco.json")
    assert masks_by_image(document) == {"a.jpg": ["cat", "dog"], "b.jpg": ["cat"], "c.jpg": ["dog"]}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"where": "score >= 0.5"}, {"a/1.jpg": ["cat"], "b.jpg": [], "d.jpg": ["dog"]}),
        ({"where": "category_name IN ('cat') -- no dogs"}, {"a/1.jpg": ["cat"], "b.jpg": [], "d.jpg": []}),
        ({"where": "area > width * height / 3"}, {"a/1.jpg": [], "b.jpg": [], "d.jpg": ["dog"]}),
        ({"images_where": "image_id LIKE 'a/%'"}, {"a/1.jpg": ["cat", "dog"]}),
        ({"images_where": "status = 'ok'"}, {"a/1.jpg": ["cat", "dog"], "d.jpg": ["dog"]}),
        ({"with_empty": False, "where": "score > 0.5"}, {"a/1.jpg": ["cat"], "d.jpg": ["dog"]}),
        ({"categories": ("dog",)}, {"a/1.jpg": ["dog"], "b.jpg": [], "d.jpg": ["dog"]}),
    ],
)
def test_conditions_choose_masks_and_images(
    output: Store, tmp_path: Path, choice: dict[str, Any], expected: dict[str, list[str]]
) -> None:
    assert masks_by_image(coco(output, tmp_path / "coco.json", **choice)) == expected


@pytest.mark.parametrize("option", ["where", "images_where"])
@pytest.mark.parametrize(
    "condition",
    [
        "true); COPY runs TO '{file}'; SELECT (true",
        "true; COPY runs TO '{file}'",
        "true) OR (true",
        "true)) OR ((true",
        "true /* and so on",
        "true GROUP BY ALL",
        "true LIMIT 1",
        "true UNION SELECT 1",
        "true WINDOW w AS (PARTITION BY image_id)",
        "image_id IN (FROM enable_logging(storage := 'file', storage_path := '{file}'))",
        "image_id IN (WITH a AS (COPY runs TO '{file}') FROM a)",
        "image_id IN (SELECT image_id FROM 'missing.csv')",
        "--",
        ";",
    ],
)
def test_what_is_more_than_a_condition_is_refused(output: Store, tmp_path: Path, option: str, condition: str) -> None:
    before, name = sorted(tmp_path.iterdir()), option.replace("_", "-")
    condition = condition.replace("{file}", str(tmp_path / "target.csv"))
    with pytest.raises(SourceError, match=f"--{name} is no SQL condition|No files found"):
        coco(output, tmp_path / "coco.json", **{option: condition})
    assert sorted(tmp_path.iterdir()) == before


def test_a_condition_may_ask_ones_own_table(output: Store, tmp_path: Path) -> None:
    (tmp_path / "wanted.csv").write_text("image_id\nd.jpg\n")
    wanted = f"image_id IN (SELECT image_id FROM '{tmp_path}/wanted.csv') -- those alone"
    assert masks_by_image(coco(output, tmp_path / "coco.json", images_where=wanted)) == {"d.jpg": ["dog"]}
    elsewhere = f"image_id IN (SELECT image_id FROM read_csv(concat('{tmp_path}', '/wanted.csv')))"
    with pytest.raises(SourceError, match=r"--where is no SQL condition.*Cannot access file"):
        coco(output, tmp_path / "other.json", where=elsewhere)


def test_named_categories_are_numbered_in_their_order_found_or_not(output: Store, tmp_path: Path) -> None:
    document = coco(output, tmp_path / "coco.json", categories=("zebra", "dog", "cat"))
    assert [(c["id"], c["name"]) for c in document["categories"]] == [(1, "zebra"), (2, "dog"), (3, "cat")]
    assert [a["category_id"] for a in document["annotations"]] == [3, 2, 2]


def test_an_image_keeps_its_split_and_its_number_when_others_are_added(tmp_path: Path) -> None:
    splits = Splits.parse("train=0.5,val=0.3,test=0.2")
    names = [f"{number}.jpg" for number in range(40)]
    kept: list[dict[str, tuple[str, int]]] = []
    for number, some in enumerate((names[::2], names)):
        found = {name: [mask(CAT, box(0, 0, 2, 2))] for name in some}
        store, _ = write_output(tmp_path / f"output-{number}", found, common=[CAT])
        summary = export_output(store, str(tmp_path / f"coco-{number}"), "coco", Choice(splits=splits))
        assert sum(summary.num_images.values()) == len(some)
        split_of: dict[str, tuple[str, int]] = {}
        for split in splits.names:
            images = json.loads((tmp_path / f"coco-{number}" / f"instances_{split}.json").read_text())["images"]
            assert len(images) == summary.num_images[split] > 0
            split_of |= {image["file_name"]: (split, image["id"]) for image in images}
        assert sorted(split_of) == sorted(some)
        kept.append(split_of)
    assert kept[0].items() <= kept[1].items()


@pytest.mark.parametrize("prefix", ["https://host/photos", "https://host/photos/", "https://host/?d="])
def test_a_url_of_images_needs_no_slash_at_its_end(output: Store, tmp_path: Path, prefix: str) -> None:
    document = coco(output, tmp_path / "coco.json", image_url=prefix)
    expected = f"{prefix if prefix.endswith(('/', '=')) else prefix + '/'}a/1.jpg"
    assert {image["file_name"]: image["coco_url"] for image in document["images"]}["a/1.jpg"] == expected


def test_a_category_that_is_named_twice_is_one(output: Store, tmp_path: Path) -> None:
    document = coco(output, tmp_path / "coco.json", categories=("dog", "dog", "cat"))
    assert [(c["id"], c["name"]) for c in document["categories"]] == [(1, "dog"), (2, "cat")]


def test_splits_share_a_folder_of_categories_and_annotation_ids(output: Store, tmp_path: Path) -> None:
    export_output(output, str(tmp_path / "coco"), "coco", Choice(splits=Splits.parse("one=0.5, two=0.5")))
    documents = [json.loads((tmp_path / "coco" / f"instances_{name}.json").read_text()) for name in ("one", "two")]
    assert documents[0]["categories"] == documents[1]["categories"]
    assert sorted(a["id"] for document in documents for a in document["annotations"]) == [1, 2, 3]


def test_split_and_number_are_what_their_hashes_say() -> None:
    names = [f"photos/{number}/ü.jpg" for number in range(20_000)]
    shares = Splits.parse("train=0.8,val=0.1,test=0.1")
    table = {"image_id": np.array(names, dtype=object)}
    query = f"SELECT image_id, {NUMBER}, {shares.sql()} FROM names"
    rows = duckdb.connect().register("names", table).execute(query).fetchall()
    for name, number, split in rows:
        position = int(hashlib.sha256(f"split:{name}".encode()).hexdigest()[:13], 16) / 2**52
        assert number == int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") >> 3
        assert split == ("train" if position < 0.8 else "val" if position < 0.9 else "test")
    counts = [sum(split == name for _, _, split in rows) / len(rows) for name in shares.names]
    assert counts == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_images_whose_hashes_are_the_same_get_different_numbers(
    output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_IMAGES", selection._IMAGES.replace(NUMBER, "7"))
    document = coco(output, tmp_path / "coco.json")
    assert [image["id"] for image in document["images"]] == [7, 8, 9]
    assert [entry["image_id"] for entry in document["annotations"]] == [7, 7, 9]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=0.8,val=0.1", "sum to 0.9"),
        ("train", "NAME=SHARE"),
        ("../up=1", "NAME=SHARE"),
        ("a=nan,b=1", "NAME=SHARE"),
        ("a=0,b=1", "NAME=SHARE"),
        ("a=0.5,A=0.5", "twice"),
    ],
)
def test_a_wrong_split_is_refused(text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        Splits.parse(text)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"where": "score >"}, "--where is no SQL condition.*syntax error"),
        ({"where": "color = 'red'"}, '--where is no SQL condition.*"color" not found'),
        ({"where": "prompt::INT > 3"}, "--where is no SQL condition.*[Cc]ould not convert"),
        ({"images_where": "score > 0.5"}, '--images-where is no SQL condition.*"score" not found'),
        ({"where": "score > 2"}, "holds 3 masks of ovseg, and none of them fits --where"),
        ({"categories": ("zebra",)}, "none of them fits --categories"),
        ({"tasks": ("reaseg",)}, "holds no masks of reaseg; it holds ovseg"),
        ({"copy_images": True}, "only yolo takes copies"),
        ({"splits": Splits.parse("a=0.5,b=0.5")}, "each split has its own; name a folder"),
    ],
)
def test_what_cannot_be_chosen_is_a_clear_error_and_leaves_nothing(
    output: Store, tmp_path: Path, choice: dict[str, Any], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SourceError, match=message):
        coco(output, tmp_path / "coco.json", **choice)
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_without_labeled_images_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no labeled image yet"):
        coco(open_store(str(tmp_path / "nothing")), tmp_path / "coco.json")
    store, _ = write_output(tmp_path / "output", {"a.jpg": None}, common=[CAT])
    with pytest.raises(SourceError, match="holds no labeled image yet"):
        coco(store, tmp_path / "coco.json")
    store, _ = write_output(tmp_path / "empty", {"a.jpg": []}, common=[CAT])
    with pytest.raises(SourceError, match="holds no masks: nothing to export"):
        coco(store, tmp_path / "coco.json")


def test_an_unknown_format_is_refused(output: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'voc' is none of coco, yolo"):
        export_output(output, str(tmp_path / "x"), "voc", Choice())


@pytest.mark.parametrize("kind", ["file", "folder", "empty folder", "dangling link"])
@pytest.mark.parametrize("format_name", ["coco", "yolo"])
def test_an_export_to_what_exists_is_refused(output: Store, tmp_path: Path, kind: str, format_name: str) -> None:
    target = tmp_path / "taken"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        if kind == "folder":
            (target / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match="exists already"):
        export_output(output, str(target), format_name, Choice())
    assert sorted(tmp_path.rglob("*")) == before
    if kind == "file":
        assert target.read_text() == "mine"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("hf://datasets/a/b", "nothing can be written to hf://"),
        ("gibberish://x", "not supported"),
        ("output/annotations/coco", "inside the table's own folder .*annotations"),
    ],
)
def test_a_target_that_cannot_be_is_refused(output: Store, tmp_path: Path, target: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        export_output(output, target if "://" in target else str(tmp_path / target), "coco", Choice())


@pytest.mark.parametrize("format_name", ["coco", "yolo", "label-studio", "cvat"])
def test_every_format_is_written_to_new_folders_and_object_stores_and_over_its_own_kind_alone(
    output: Store, tmp_path: Path, format_name: str
) -> None:
    here, there = tmp_path / "new" / "er" / "export", f"memory://{secrets.token_hex(8)}/export"
    fs, root = fsspec.core.url_to_fs(there)
    for again in (False, True):
        for target in (str(here), there):
            export_output(output, target, format_name, Choice(), overwrite=again)
        local = {path.relative_to(here).as_posix(): path.read_bytes() for path in here.rglob("*") if path.is_file()}
        assert {name.removeprefix(root).strip("/"): fs.cat_file(name) for name in fs.find(root)} == local
    (here / "mine.txt").write_text("mine")
    fs.pipe_file(f"{root}/mine.txt", b"mine")
    for target in (str(here), there):
        with pytest.raises(StorageError, match=r"holds mine.txt, which is no part of such a result"):
            export_output(output, target, format_name, Choice(), overwrite=True)
    assert (here / "mine.txt").read_text() == "mine"


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def write(chosen: Any, folder: Path, _: Any) -> list[str]:
        (folder / "instances.json").write_text("half")
        raise error

    broken = dataclasses.replace(FORMATS["coco"], write=write)
    monkeypatch.setattr(export_module, "FORMATS", {**FORMATS, "coco": broken})


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _failing(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(StorageError, match=r"coco.json cannot be written.*No space left"):
        coco(output, tmp_path / "coco.json")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_an_interrupted_export_leaves_nothing(output: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        coco(output, tmp_path / "coco.json")
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize("format_name", ["coco", "cvat"])
def test_a_killed_export_leaves_nothing_of_its_name(output: Store, tmp_path: Path, format_name: str) -> None:
    program = f"""
        import os, signal
        from pipelines.export.write import Choice, export_output
        from pipelines.storage import open_store
        export_output(open_store({str(tmp_path / "output")!r}), {str(tmp_path / "target")!r}, {format_name!r},
                      Choice(), on_masks=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "target").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir() if path.name != "output")
    export_output(output, str(tmp_path / "target"), format_name, Choice())  # what was left is in nobody's way


def test_a_name_of_another_kind_of_file_is_refused_by_every_format(output: Store, tmp_path: Path) -> None:
    wrong = {
        "coco": ("a.xml", "coco is written as one .json file or a folder"),
        "cvat": ("a.json", "cvat is written as one .xml file or a folder"),
        "label-studio": ("a.ZIP", "label-studio is written as one .json file or a folder"),
        "panoptic": ("a.json", "panoptic is written as a folder"),
        "yolo": ("a.yaml", "yolo is written as a folder"),
    }
    for format_name, (name, words) in wrong.items():
        with pytest.raises(StorageError, match=f"{name} is named like another kind of file: {words}"):
            export_output(output, str(tmp_path / name), format_name, Choice())
    assert [path.name for path in tmp_path.iterdir()] == ["output"]
    export_output(output, str(tmp_path / "labels.v2"), "cvat", Choice())
    export_output(output, f"{tmp_path / 'a.json'}/", "coco", Choice())
    export_output(output, str(tmp_path / "a.XML"), "cvat", Choice())
    assert [(tmp_path / name).is_file() for name in ("labels.v2", "a.json", "a.XML")] == [False, False, True]


def test_what_was_made_meanwhile_is_left_as_it_is(output: Store, tmp_path: Path) -> None:
    for target, is_file in ((tmp_path / "coco.json", True), (tmp_path / "coco", False)):

        def make(_done: int, _total: int, target: Path = target, is_file: bool = is_file) -> None:
            if is_file:
                target.write_text("mine")
            else:
                target.mkdir()

        with pytest.raises(StorageError, match="made by another meanwhile"):
            export_output(output, str(target), "coco", Choice(where="category_name = 'cat'"), on_masks=make)
    assert (tmp_path / "coco.json").read_text() == "mine"
    assert list((tmp_path / "coco").iterdir()) == []


def test_an_output_of_an_object_store_is_exported(s3: Any, tmp_path: Path) -> None:
    store, _ = write_output("s3://bkt/to-export", FOUND, common=[CAT, DOG])
    assert masks_by_image(coco(store, tmp_path / "coco.json"))["a/1.jpg"] == ["cat", "dog"]
    exports = open_store("s3://bkt/exports")
    for new, files in (("new/coco.json", "1"), ("coco", {"instances.json": "1"})):
        write(f"{exports.uri}/{new}", files)
        with pytest.raises(StorageError, match="exists already"):
            write(f"{exports.uri}/{new}", files)
    write(f"{exports.uri}/new/coco.json", "2", overwrite=True)
    export_output(store, f"{exports.uri}/coco", "coco", Choice(), overwrite=True)
    assert exports.read("new/coco.json") == b"2"
    assert exports.read("coco/instances.json") == (tmp_path / "coco.json").read_bytes()


def test_maps_are_left_out_of_a_list_of_masks_unless_named(tmp_path: Path) -> None:
    (sky,) = named("ovseg_semantic", "sky")
    found = {"a.jpg": [mask(CAT, box(0, 0, 3, 3)), mask(sky, box(0, 5, 10, 5))]}
    store, _ = write_output(tmp_path / "output", found, common=[CAT, sky])
    summary = export_output(store, str(tmp_path / "cats.json"), "coco", Choice())
    assert (summary.num_masks, summary.left_out) == ({"": 1}, {"ovseg_semantic": 1})
    document = coco(store, tmp_path / "sky.json", tasks=("ovseg_semantic",))
    assert masks_by_image(document) == {"a.jpg": ["sky"]}
    only_maps, _ = write_output(tmp_path / "maps", {"a.jpg": [mask(sky, box(0, 5, 10, 5))]}, common=[sky])
    with pytest.raises(SourceError, match="export them as panoptic, or name one with --task"):
        coco(only_maps, tmp_path / "maps.json")


def test_masks_keep_their_pixels_whatever_their_shape(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.random((37, 53)) < share for share in (0.02, 0.3, 0.5, 0.9, 1.0)]
    found = {f"{number}.png": [mask(CAT, pixels)] for number, pixels in enumerate(pictures)}
    store, _ = write_output(tmp_path / "output", found, common=[CAT], sizes=dict.fromkeys(found, (37, 53)))
    read = loaded(_exported(store, tmp_path).path)
    assert [np.array_equal(read.annToMask(read.anns[n]), m) for n, m in enumerate(pictures, 1)] == [True] * 5
    assert [read.anns[n]["area"] for n in read.anns] == [rle.area(rle.encode(m)) for m in pictures]


def _exported(store: Store, folder: Path) -> Export:
    return export_output(store, str(folder / "coco.json"), "coco", Choice())


def test_phrases_are_categories(tmp_path: Path) -> None:
    asked = Prompt(prompt_id="p1", task="refseg", text='the "left" dög', category_id=0, category_name='the "left" dög')
    store, _ = write_output(tmp_path / "output", {"a.jpg": [mask(asked, box(0, 0, 3, 3))]}, own={"a.jpg": [asked]})
    assert masks_by_image(coco(store, tmp_path / "coco.json")) == {"a.jpg": ['the "left" dög']}


def test_images_that_were_never_asked_a_category_are_counted(tmp_path: Path) -> None:
    cat, dog = mask(CAT, box(0, 0, 4, 4)), mask(DOG, box(2, 2, 4, 4))
    write_output(tmp_path / "output", {"a.png": [cat], "b.png": []}, common=[CAT])
    store, _ = write_output(tmp_path / "output", {"b.png": [dog], "c.png": [cat]}, common=[CAT, DOG], run_id="later")
    assert export_output(store, str(tmp_path / "all.json"), "coco", Choice()).num_partly_asked == 1
    asked = Choice(images_where="len(list_filter(per_prompt, lambda p: p.prompt_id = 'ovseg:dog')) > 0")
    export = export_output(store, str(tmp_path / "asked.json"), "coco", asked)
    assert (export.num_partly_asked, export.num_images) == (0, {"": 2})
    cats = export_output(store, str(tmp_path / "cats.json"), "coco", Choice(categories=("cat",)))
    assert cats.num_partly_asked == 0
