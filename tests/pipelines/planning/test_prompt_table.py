from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import PromptTableError, SourceError
from pipelines.masks import rle
from pipelines.masks.regions import check_region, describe_region, read_region
from pipelines.planning.prompt_table import PromptTable, join_prompts, read_prompt_table
from pipelines.sources.image_batches import LISTED, to_batches, to_refs
from pipelines.types import ImageRef, Prompt, Region

MASK = rle.encode(np.array([[0, 1, 1], [0, 1, 0]], np.bool_))
SENTENCE: dict[str, Any] = {"kind": None, "coordinates": None, "text": "the dog"}
ROWS: list[dict[str, Any]] = [
    {"image_id": "a.jpg", "prompt_id": "p1", "kind": "point", "coordinates": [5.5, 6.0], "label": "dog"},
    {"image_id": "a.jpg", "prompt_id": "p2", "kind": "box", "coordinates": [1.0, 2.0, 30.0, 40.0], "label": "cat"},
    {"image_id": "b.jpg", "prompt_id": "p1", "kind": "scribble", "coordinates": [0.0, 0.0, 9.0, 9.0], "label": "dog"},
    {"image_id": "b.jpg", "prompt_id": "p3", "kind": "polygon", "coordinates": [0.0, 0.0, 9.0, 0.0, 9.0, 9.0]},
    {"image_id": "c.jpg", "prompt_id": "p1", "kind": "mask", "label": "ant", "segmentation": MASK.to_coco()},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    """Write a prompt table as its extension says; in CSV, lists and objects become JSON text."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()})
        path.write_text(text.getvalue(), encoding="utf-8")
    return str(path)


def prompt(region: Region, prompt_id: str = "p") -> Prompt:
    return Prompt(prompt_id=prompt_id, task="vgdseg", text="", category_id=0, category_name="x", region=region)


def ref(image_id: str, uri: str | None = None) -> ImageRef:
    return ImageRef(image_id=image_id, uri=uri or f"/photos/{image_id}")


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_all_kinds_are_read_alike_from_every_form(tmp_path: Path, extension: str) -> None:
    rows = [{**dict.fromkeys(["label", "coordinates", "segmentation"]), **row} for row in ROWS]
    table = read_prompt_table(write(tmp_path / f"prompts{extension}", rows))
    assert table.rejected == ()
    assert table.num_rows == 5
    assert list(table.by_image) == ["a.jpg", "b.jpg", "c.jpg"]
    assert [p.region for prompts in table.by_image.values() for p in prompts] == [
        Region(kind="point", coordinates=(5.5, 6.0)),
        Region(kind="box", coordinates=(1.0, 2.0, 30.0, 40.0)),
        Region(kind="scribble", coordinates=(0.0, 0.0, 9.0, 9.0)),
        Region(kind="polygon", coordinates=(0.0, 0.0, 9.0, 0.0, 9.0, 9.0)),
        Region(kind="mask", mask=MASK),
    ]
    first = 2 if extension == ".csv" else 1  # the header of a CSV is its line 1
    assert [p.source_row for prompts in table.by_image.values() for p in prompts] == list(range(first, first + 5))


def test_prompts_say_what_they_ask(tmp_path: Path) -> None:
    table = read_prompt_table(write(tmp_path / "p.jsonl", ROWS))
    prompts = [p for prompts in table.by_image.values() for p in prompts]
    assert [p.prompt_id for p in prompts] == ["p1", "p2", "p1", "p3", "p1"]
    assert [p.text for p in prompts] == [
        "point 5.5,6",
        "box 1,2,30,40",
        "scribble 0,0,9,9",
        "polygon 0,0,9,0,... (3 points)",
        "mask in 1,0,2,2",
    ]
    assert {p.task for p in prompts} == {"vgdseg"}


def test_categories_number_the_sorted_labels_and_a_missing_label_is_the_prompt_id(tmp_path: Path) -> None:
    table = read_prompt_table(write(tmp_path / "p.jsonl", ROWS))
    named = {(p.category_name, p.category_id) for prompts in table.by_image.values() for p in prompts}
    assert named == {("ant", 0), ("cat", 1), ("dog", 2), ("p3", 3)}


@pytest.mark.parametrize("extension", [".csv", ".jsonl", ".parquet"])
def test_regions_and_sentences_of_every_task_stand_in_one_table(tmp_path: Path, extension: str) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt_id": "1", "text": " The dog, on the left "},
        {"prompt_id": "2", "text": "What barks?", "task": "reaseg", "explain": True, "label": "dog"},
        {"prompt_id": "3", "text": "What barks?", "task": "REASEG", "explain": False, "kind": "Text"},
        {"prompt_id": "4", "text": "Is it day?", "task": "chat"},
        {"prompt_id": "5", "kind": "point", "coordinates": [1.0, 2.0], "task": "intseg"},
        {"prompt_id": "6", "kind": "point", "coordinates": [1.0, 2.0]},
    ]
    columns = ("text", "task", "explain", "label", "kind", "coordinates")
    full = [{"image_id": "a", **dict.fromkeys(columns), **row} for row in rows]
    table = read_prompt_table(write(tmp_path / f"prompts{extension}", full))
    assert table.rejected == ()
    prompts = table.by_image["a"]
    assert [(p.task, p.text, p.category_name, p.explain) for p in prompts] == [
        ("refseg", "The dog, on the left", "The dog, on the left", False),
        ("reaseg", "What barks?", "dog", True),
        ("reaseg", "What barks?", "What barks?", False),
        ("chat", "Is it day?", "Is it day?", False),
        ("intseg", "point 1,2", "5", False),
        ("vgdseg", "point 1,2", "6", False),
    ]
    assert [p.category_id for p in prompts] == [3, 5, 4, 2, 0, 1]
    assert [p.region is not None for p in prompts] == [False] * 4 + [True] * 2
    assert [p.source_row for p in prompts] == [row + (extension == ".csv") for row in range(1, 7)]


def test_a_table_of_sentences_alone_needs_no_kind(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('image_id,prompt_id,text\na,1,"the cup, upside down"\n')
    (prompt,) = read_prompt_table(str(tmp_path / "p.csv")).by_image["a"]
    assert (prompt.task, prompt.text, prompt.region) == ("refseg", "the cup, upside down", None)


def test_uri_names_the_image_where_there_is_no_image_id(tmp_path: Path) -> None:
    base = {"prompt_id": 7, "kind": "point", "coordinates": [1, 2]}
    rows = [{**base, "uri": "s3://b/x.jpg"}, {**base, "image_id": "y", "uri": "z"}, {**base, "image_id": 12}]
    table = read_prompt_table(write(tmp_path / "p.jsonl", rows))
    assert list(table.by_image) == ["s3://b/x.jpg", "y", "12"]
    assert table.by_image["y"][0].prompt_id == "7"


def test_table_is_read_through_fsspec() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/prompts/p.csv", b"image_id,prompt_id,kind,coordinates\na,1,point,3 4\n")
    try:
        table = read_prompt_table("memory://prompts/p.csv")
    finally:
        fs.rm("/prompts", recursive=True)
    assert table.by_image["a"][0].region == Region(kind="point", coordinates=(3.0, 4.0))


@pytest.mark.parametrize(
    "coordinates",
    [
        "1 2 30 40",
        "1;2;30;40",
        "1, 2, 30, 40",
        "[1, 2, 30, 40]",
        " [[1,2],[30,40]] ",
        "1.0\t2e0 ;30  40",
        [1, 2, 30, 40],
    ],
)
def test_coordinates_may_be_written_in_several_ways(coordinates: Any) -> None:
    assert read_region("Box ", coordinates=coordinates).coordinates == (1.0, 2.0, 30.0, 40.0)


@pytest.mark.parametrize(
    ("kind", "coordinates", "expected"),
    [
        ("point", [[1, 2], [3, 4]], (1, 2, 3, 4)),
        ("scribble", [[1, 2], [3, 4], [5, 6]], (1, 2, 3, 4, 5, 6)),
        ("polygon", [[0, 0, 4, 0, 4, 4, 0, 4]], (0, 0, 4, 0, 4, 4, 0, 4)),
        ("polygon", [[0, 0], [4, 0], [4, 4]], (0, 0, 4, 0, 4, 4)),
    ],
)
def test_nested_coordinates_are_flattened(kind: str, coordinates: list, expected: tuple) -> None:
    assert read_region(kind, coordinates=coordinates).coordinates == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"kind": "circle"}, "unknown kind 'circle'; known: point, box", id="unknown-kind"),
        pytest.param({"kind": None}, "kind and text are empty", id="neither-kind-nor-text"),
        pytest.param({"kind": " ", "text": " "}, "kind and text are empty", id="blank-kind-and-text"),
        pytest.param({"kind": "text"}, "kind is text, but the text is empty", id="kind-text-without-text"),
        pytest.param({"text": "the dog"}, "both a text and the region of a box", id="text-and-region"),
        pytest.param({"kind": None, "text": "the dog"}, "both a text and coordinates", id="text-and-coordinates"),
        pytest.param(
            {"kind": "text", "text": "a dog", "coordinates": None, "segmentation": MASK.to_coco()},
            "both a text and segmentation",
            id="text-and-mask",
        ),
        pytest.param({"task": "refseg"}, "task 'refseg' does not take a region; .*: vgdseg, intseg", id="region-task"),
        pytest.param(
            {**SENTENCE, "task": "intseg"},
            "'intseg' does not take a text; .*: refseg, reaseg, chat",
            id="sentence-task",
        ),
        pytest.param({**SENTENCE, "task": "gcgseg"}, "'gcgseg' does not take a text", id="caption-task"),
        pytest.param({"task": "paint"}, "'paint' does not take a region", id="unknown-task"),
        pytest.param({"explain": True}, "explain goes with the task reaseg, not with vgdseg", id="explained-region"),
        pytest.param({**SENTENCE, "explain": "yes"}, "not with refseg", id="explained-phrase"),
        pytest.param(
            {**SENTENCE, "task": "reaseg", "explain": "maybe"},
            "explain is 'maybe'; allowed: true, false",
            id="explain-maybe",
        ),
        pytest.param({"prompt_id": "ovseg:cat"}, "prompt_id is that of a prompt asked of every image", id="taken"),
        pytest.param({"image_id": None}, "names no image", id="no-image"),
        pytest.param({"prompt_id": None}, "no prompt_id", id="no-prompt-id"),
        pytest.param({"coordinates": None}, "no coordinates", id="no-coordinates"),
        pytest.param({"coordinates": []}, "no coordinates", id="empty-coordinates"),
        pytest.param({"coordinates": "  "}, "no coordinates", id="blank-coordinates"),
        pytest.param({"coordinates": "[1, 2"}, "coordinates is not JSON", id="bad-json"),
        pytest.param({"coordinates": "[" * 100_000}, "not JSON", id="deep-json"),
        pytest.param({"coordinates": "1 two 3 4"}, "not a number: '1 two 3 4'", id="word"),
        pytest.param({"coordinates": [1, 2, 3, True]}, "not a number", id="boolean"),
        pytest.param({"coordinates": [1, 2, 3, None]}, "not a number", id="null"),
        pytest.param({"coordinates": [1, 2, 3, "4"]}, "not a number", id="text-in-list"),
        pytest.param({"coordinates": {"x": 1}}, "not a list", id="object"),
        pytest.param({"coordinates": 7}, "not a list", id="number"),
        pytest.param({"coordinates": [1, 2, 3, 10**400]}, "too large", id="huge"),
        pytest.param({"coordinates": "1 2 nan 4"}, "NaN or infinity", id="nan"),
        pytest.param({"coordinates": [1, 2, math.inf, 4]}, "NaN or infinity", id="infinity"),
        pytest.param({"coordinates": [1, 2, 3]}, "box needs x, y, width, height; got 3", id="box-of-three"),
        pytest.param({"coordinates": [1, 2, 3, 4, 5]}, "got 5 numbers", id="box-of-five"),
        pytest.param({"coordinates": [1, 2, -3, 4]}, "no area: width -3", id="negative-width"),
        pytest.param({"coordinates": [1, 2, 3, 0]}, "no area: .* height 0", id="zero-height"),
        pytest.param({"coordinates": [[1, 2, 3], [4]]}, "neither flat numbers nor pairs", id="ragged"),
        pytest.param({"coordinates": [[1, 2], 3, 4]}, "neither flat numbers nor pairs", id="mixed"),
        pytest.param({"coordinates": [[[1, 2], [3, 4]]]}, "not a number", id="too-deep"),
        pytest.param({"kind": "point", "coordinates": [1, 2, 3]}, "point needs x, y .* got 3", id="odd-point"),
        pytest.param({"kind": "scribble", "coordinates": [1, 2]}, r"at least 2 point\(s\)", id="scribble-of-one"),
        pytest.param({"kind": "polygon", "coordinates": [1, 2, 3, 4]}, r"at least 3 point\(s\)", id="polygon-of-two"),
        pytest.param({"kind": "polygon", "coordinates": [1, 1, 2, 2, 3, 3]}, "on one line", id="flat-polygon"),
        pytest.param({"kind": "polygon", "coordinates": [1, 1, 1, 1, 1, 1]}, "on one line", id="one-point-polygon"),
        pytest.param({"kind": "mask"}, "mask has no segmentation", id="no-mask"),
        pytest.param({"kind": "mask", "segmentation": "{"}, "segmentation is not JSON", id="mask-bad-json"),
        pytest.param({"kind": "mask", "segmentation": [1]}, "segmentation is not", id="mask-list"),
        pytest.param({"kind": "mask", "segmentation": {"counts": "0"}}, "segmentation is not", id="mask-no-size"),
        pytest.param({"kind": "mask", "segmentation": {"size": [2, 3]}}, "counts are neither", id="mask-no-counts"),
        pytest.param(
            {"kind": "mask", "segmentation": {"size": [9, 9], "counts": MASK.counts}}, "cover 6 pixels", id="wrong-size"
        ),
        pytest.param({"kind": "mask", "segmentation": {"size": [2, 3], "counts": "~"}}, "outside", id="bad-counts"),
        pytest.param({"kind": "mask", "segmentation": {"size": [2], "counts": "6"}}, "RLE size", id="one-side"),
        pytest.param({"kind": "mask", "segmentation": {"size": [2, 3], "counts": "6"}}, "mask is empty", id="empty"),
        pytest.param(
            {"kind": "mask", "segmentation": {"size": [2, 3], "counts": [10**30]}}, "64 bits", id="mask-huge-run"
        ),
    ],
)
def test_bad_row_is_rejected_with_its_reason_and_the_others_stay(
    tmp_path: Path, row: dict[str, Any], reason: str
) -> None:
    good = {"image_id": "a", "prompt_id": "good", "kind": "box", "coordinates": [1, 2, 3, 4]}
    bad = {**good, "prompt_id": "bad", **row}
    table = read_prompt_table(write(tmp_path / "p.jsonl", [bad, good]), taken={"ovseg:cat"})
    assert [p.prompt_id for p in table.by_image["a"]] == ["good"]
    (rejected,) = table.rejected
    assert re.search(reason, rejected.reason)
    assert (rejected.row, rejected.prompt_id) == (1, bad["prompt_id"] or "")
    assert rejected.image == (bad["image_id"] or "")
    assert table.num_rows == 2


def test_nan_is_an_empty_field(tmp_path: Path) -> None:
    # As json.dumps of a data frame's rows and Polars write a gap.
    gaps = dict.fromkeys(("label", "text", "task", "explain"), math.nan)
    row = {"image_id": "a.jpg", "prompt_id": "p1", "kind": "point", "coordinates": [1.0, 2.0], **gaps}
    for name in ("p.jsonl", "p.parquet"):
        table = read_prompt_table(write(tmp_path / name, [row]))
        assert (table.rejected, table.by_image["a.jpg"][0].category_name) == ((), "p1")


def test_a_list_is_no_text(tmp_path: Path) -> None:
    rows = [{"image_id": "a.jpg", "prompt_id": "p1", **SENTENCE, "label": ["dog"]}]
    (rejected,) = read_prompt_table(write(tmp_path / "p.jsonl", rows)).rejected
    assert rejected.reason == "label is no text: ['dog']"


def test_run_lengths_as_pycocotools_encodes_them_are_bytes(tmp_path: Path) -> None:
    coco = {"size": list(MASK.size_hw), "counts": MASK.counts.encode()}
    rows = [{"image_id": "a.jpg", "prompt_id": "p1", "kind": "mask", "segmentation": coco}]
    table = read_prompt_table(write(tmp_path / "p.parquet", rows))
    assert table.by_image["a.jpg"][0].region == Region(kind="mask", mask=MASK)


def test_coordinates_in_fractions_of_the_image_are_refused(tmp_path: Path) -> None:
    rows = [{"image_id": "a.jpg", "prompt_id": "p1", "kind": "box", "coordinates": [0.25, 0.5, 0.125, 0.25]}]
    (rejected,) = read_prompt_table(write(tmp_path / "p.jsonl", rows)).rejected
    assert rejected.reason.startswith("box lies within one pixel: coordinates are absolute pixels")


def test_decimal_commas_of_tables_with_semicolons_are_read_or_told(tmp_path: Path) -> None:
    # As spreadsheets write where the comma is the decimal sign; "10,5 20,5" may be two points as well.
    cells = {
        "box": "10,5 20 30,25 40,5",
        "box-2": "10,5; 20,5; 30,25; 40,5",
        "box-3": "10,20 30,40",
        "point": "10,5 20",
        "point-2": "10,123456 20,5",
        "point-3": "10,5",
        "point-4": "10,5 20,5",
        "scribble": "10,05 20,5 30,5 40,5",
        "scribble-2": "10,20 30,40 50,60",
        "polygon": "10,5 20,5 30,5 40,5 50,5 20,5",
    }
    rows = "".join(f'a.jpg;{name};{name.split("-")[0]};"{cell}"\n' for name, cell in cells.items())
    for start in ("", "sep=;\n"):
        path = tmp_path / "p.csv"
        path.write_text(f"{start}image_id;prompt_id;kind;coordinates\n{rows}", encoding="utf-8")
        table = read_prompt_table(str(path))
        assert {p.prompt_id: p.region.coordinates for p in table.by_image["a.jpg"] if p.region} == {
            "box": (10.5, 20, 30.25, 40.5),
            "box-2": (10.5, 20.5, 30.25, 40.5),
            "box-3": (10, 20, 30, 40),
            "point": (10.5, 20),
            "point-2": (10.123456, 20.5),
            "point-3": (10, 5),
            "scribble": (10.05, 20.5, 30.5, 40.5),
            "scribble-2": (10, 20, 30, 40, 50, 60),
        }
        assert {rejected.prompt_id: rejected.reason for rejected in table.rejected} == {
            "point-4": "coordinates '10,5 20,5' are 2 points or, with decimal commas, 1: write decimals with a point "
            "('10.5 20.5'), or all numbers with blanks between them",
            "polygon": "coordinates '10,5 20,5 30,5 40,5 50,5 20,5' are 6 points or, with decimal commas, 3: write "
            "decimals with a point ('10.5 20.5'), or all numbers with blanks between them",
        }


@pytest.mark.parametrize(
    ("kind", "cell", "coordinates"),
    [("point", "10,5 20,5", (10, 5, 20, 5)), ("box", "10,5 20 30,25 40,5", (10.5, 20, 30.25, 40.5))],
)
def test_commas_part_numbers_wherever_that_can_be_meant(
    tmp_path: Path, kind: str, cell: str, coordinates: tuple
) -> None:
    row = {"image_id": "a.jpg", "prompt_id": "p1", "kind": kind, "coordinates": cell}
    for name in ("p.csv", "p.jsonl", "p.parquet"):
        (read,) = read_prompt_table(write(tmp_path / name, [row])).by_image["a.jpg"]
        assert read.region == Region(kind=kind, coordinates=coordinates)  # type: ignore[arg-type]


def test_uncompressed_run_lengths_are_taken_too() -> None:
    region = read_region("mask", segmentation={"size": [2, 3], "counts": rle.to_runs(MASK).tolist()})
    assert region.mask == MASK


def test_masks_longer_than_a_csv_field_usually_may_be_are_read(tmp_path: Path) -> None:
    noise = rle.encode(np.random.default_rng(0).random((600, 600)) > 0.5)
    assert len(noise.counts) > 131_072
    row = {"image_id": "a", "prompt_id": "1", "kind": "mask", "segmentation": noise.to_coco()}
    table = read_prompt_table(write(tmp_path / "p.csv", [row]))
    assert table.by_image["a"][0].region == Region(kind="mask", mask=noise)


def test_prompt_id_used_twice_in_one_image_is_rejected_but_not_across_images(tmp_path: Path) -> None:
    row = {"image_id": "a", "prompt_id": "p", "kind": "point", "coordinates": [1, 2]}
    table = read_prompt_table(write(tmp_path / "p.jsonl", [row, {**row, "image_id": "b"}, row]))
    assert {image: len(prompts) for image, prompts in table.by_image.items()} == {"a": 1, "b": 1}
    (rejected,) = table.rejected
    assert (rejected.row, rejected.reason) == (3, "prompt_id is used twice for this image, first in line 1")


def test_bad_row_does_not_take_the_prompt_id_from_a_good_one(tmp_path: Path) -> None:
    row = {"image_id": "a", "prompt_id": "p", "kind": "point", "coordinates": [1, 2]}
    table = read_prompt_table(write(tmp_path / "p.jsonl", [{**row, "kind": "ball"}, row]))
    assert [p.prompt_id for p in table.by_image["a"]] == ["p"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "image_id,kind,coordinates\na,point,1 2\n", "no column prompt_id; it has image_id", id="prompt-id"
        ),
        pytest.param("image_id,prompt_id,coordinates\na,1,1 2\n", "no column kind or text; it has", id="kind"),
        pytest.param("image,prompt_id,kind\na,1,point\n", "no column image_id or uri", id="image"),
        pytest.param("image_id,prompt_id,kind,coordinates\n", "no rows", id="no-rows"),
        pytest.param("", "no rows", id="empty-file"),
        pytest.param("a.jpg,p,point,1 2\nb.jpg,p,point,1 2\n", "'a.jpg' is no name of a column: write", id="no-names"),
    ],
)
def test_table_without_its_columns_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(PromptTableError, match=message):
        read_prompt_table(str(tmp_path / "p.csv"))


@pytest.mark.parametrize("name", ["missing.csv", "missing.parquet", "prompts.xlsx"])
def test_table_that_cannot_be_read_is_a_source_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=name):
        read_prompt_table(str(tmp_path / name))


def test_join_attaches_prompts_by_id_or_uri_and_leaves_other_images_alone(tmp_path: Path) -> None:
    base = {"kind": "point", "coordinates": [1, 2]}
    rows = [
        {**base, "image_id": "a", "prompt_id": "1"},
        {**base, "uri": "/photos/b", "prompt_id": "1"},
        {**base, "uri": "/photos/a", "prompt_id": "2"},
    ]
    plain = ref("c")
    table = read_prompt_table(write(tmp_path / "p.jsonl", rows))
    joined = list(to_refs(join_prompts(to_batches([ref("a"), plain, ref("b")], LISTED), table)))
    assert [[p.prompt_id for p in image.prompts] for image in joined] == [["1", "2"], [], ["1"]]
    assert joined[1] == plain


def test_join_reports_prompts_of_images_that_are_not_there_once_all_are_read(tmp_path: Path) -> None:
    joined = join_prompts(to_batches([ref("b.jpg")], LISTED), read_prompt_table(write(tmp_path / "p.jsonl", ROWS)))
    with pytest.raises(RuntimeError, match="once all images have been read"):
        _ = joined.rejected
    assert [image.image_id for image in to_refs(joined)] == ["b.jpg"]
    assert [(r.row, r.image, r.prompt_id) for r in joined.rejected] == [
        (1, "a.jpg", "p1"),
        (2, "a.jpg", "p2"),
        (5, "c.jpg", "p1"),
    ]
    assert {r.reason for r in joined.rejected} == {"its image is not in the collection"}


def test_join_rejects_a_prompt_id_given_both_by_id_and_by_uri(tmp_path: Path) -> None:
    base = {"kind": "point", "coordinates": [1, 2], "prompt_id": "p"}
    table = read_prompt_table(write(tmp_path / "p.jsonl", [{**base, "image_id": "a"}, {**base, "uri": "/photos/a"}]))
    joined = join_prompts(to_batches([ref("a")], LISTED), table)
    (image,) = to_refs(joined)
    assert [p.source_row for p in image.prompts] == [1]
    (rejected,) = joined.rejected
    assert (rejected.row, rejected.image) == (2, "/photos/a")
    assert "by its URI" in rejected.reason


def test_rows_are_numbered_by_the_lines_where_they_begin(tmp_path: Path) -> None:
    """As an editor shows them: the header counts, so do blank lines, and a text may go over several lines."""
    text = 'image_id,prompt_id,text\n\na,1,"one\ntwo"\n\na,2,three\n'
    (tmp_path / "p.csv").write_text(text)
    lines = text.splitlines()
    prompts = read_prompt_table(str(tmp_path / "p.csv")).by_image["a"]
    assert [lines[prompt.source_row - 1] for prompt in prompts] == ['a,1,"one', "a,2,three"]
    row = {"image_id": "a", "prompt_id": "1", "text": "x"}
    (tmp_path / "p.jsonl").write_text(f"\n\n{json.dumps(row)}\n")
    assert read_prompt_table(str(tmp_path / "p.jsonl")).by_image["a"][0].source_row == 3


@pytest.mark.parametrize(
    ("written", "listed"),
    [
        pytest.param("site\\a.jpg", "site/a.jpg", id="backslash"),
        pytest.param("./a.jpg", "a.jpg", id="dot"),
        pytest.param("caf\u00e9.jpg", "cafe\u0301.jpg", id="composed"),
        pytest.param("cafe\u0301.jpg", "caf\u00e9.jpg", id="decomposed"),
    ],
)
def test_an_image_is_found_under_another_spelling_of_its_name(tmp_path: Path, written: str, listed: str) -> None:
    row = {"kind": "point", "coordinates": [1, 2], "prompt_id": "p", "image_id": written}
    joined = join_prompts(to_batches([ref(listed)], LISTED), read_prompt_table(write(tmp_path / "p.jsonl", [row])))
    (image,) = to_refs(joined)
    assert (len(image.prompts), joined.rejected) == (1, ())


def test_join_keeps_an_image_whose_id_is_its_uri_free_of_doubles(tmp_path: Path) -> None:
    row = {"kind": "point", "coordinates": [1, 2], "prompt_id": "p", "uri": "s3://b/a.jpg"}
    listed = to_batches([ref("s3://b/a.jpg", "s3://b/a.jpg")], LISTED)
    joined = join_prompts(listed, read_prompt_table(write(tmp_path / "p.jsonl", [row])))
    (image,) = to_refs(joined)
    assert len(image.prompts) == 1
    assert joined.rejected == ()


def test_join_reads_images_lazily() -> None:
    endless = (ref(str(i)) for i in iter(int, 1))
    joined = join_prompts(to_batches(endless, LISTED), PromptTable(by_image={}))
    assert next(to_refs(joined)).image_id == "0"


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=20), st.sets(st.sampled_from("abcdef")))
def test_every_row_is_joined_or_rejected_exactly_once(keys: list[tuple[str, int]], present: set[str]) -> None:
    fs = fsspec.filesystem("memory")
    lines = [f"{image},{prompt_id},point,1 2\n" for image, prompt_id in keys] or ["a,,point,1 2\n"]
    fs.pipe_file("/p.csv", ("image_id,prompt_id,kind,coordinates\n" + "".join(lines)).encode())
    table = read_prompt_table("memory://p.csv")
    joined = join_prompts(to_batches([ref(image) for image in sorted(present)], LISTED), table)
    asked = [p.source_row for image in to_refs(joined) for p in image.prompts]
    rejected = [r.row for r in (*table.rejected, *joined.rejected)]
    assert table.num_rows == len(lines)
    assert sorted(asked + rejected) == list(range(2, 2 + len(lines)))


@pytest.mark.parametrize(
    ("kind", "coordinates", "reason"),
    [
        pytest.param("point", (0, 0), None, id="corner"),
        pytest.param("point", (100, 50), None, id="far-edge"),
        pytest.param("point", (101, 10), "point 101,10 lies outside", id="right-of-it"),
        pytest.param("point", (10, -1), "point 10,-1 lies outside", id="above"),
        pytest.param("point", (5, 5, 10, 60), "point 10,60 lies outside", id="one-of-two"),
        pytest.param("scribble", (0, 0, 100, 50), None, id="scribble-across"),
        pytest.param("scribble", (0, 0, 100, 51), "scribble 100,51 lies outside", id="scribble-leaves"),
        pytest.param("box", (0, 0, 100, 50), None, id="whole-image"),
        pytest.param("box", (-10, -10, 20, 20), None, id="box-sticks-out"),
        pytest.param("box", (100, 0, 5, 5), "box lies outside", id="box-right"),
        pytest.param("box", (-10, 0, 10, 5), "box lies outside", id="box-left"),
        pytest.param("box", (0, 50, 5, 5), "box lies outside", id="box-below"),
        pytest.param("polygon", (-5, -5, 200, 0, 50, 90), None, id="polygon-sticks-out"),
        pytest.param("polygon", (-5, -5, -1, -5, -1, -1), "polygon lies outside", id="polygon-outside"),
    ],
)
def test_region_is_checked_against_its_image(kind: Any, coordinates: tuple, reason: str | None) -> None:
    answer = check_region(prompt(Region(kind=kind, coordinates=coordinates)), (50, 100))
    if reason is None:
        assert answer is None
    else:
        assert answer is not None
        assert answer.startswith(reason)
        assert "100 x 50 pixels" in answer


def test_mask_must_have_the_size_of_its_image() -> None:
    region = prompt(Region(kind="mask", mask=MASK))
    assert check_region(region, (2, 3)) is None
    assert check_region(region, (3, 2)) == "mask is 3 x 2, not the size of its image, 2 x 3 pixels (width x height)"


def test_text_prompt_fits_every_image() -> None:
    text = Prompt(prompt_id="t", task="ovseg", text="cat", category_id=0, category_name="cat")
    assert check_region(text, (1, 1)) is None


def test_long_regions_are_described_shortly() -> None:
    region = Region(kind="scribble", coordinates=tuple(float(i) + 0.123 for i in range(1000)))
    assert describe_region(region) == "scribble 0.1,1.1,2.1,3.1,... (500 points)"


loose = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["size", "counts"]), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.sampled_from(["point", "box", "scribble", "polygon", "mask", "?"]), loose, loose)
def test_anything_read_as_a_region_is_one_or_a_value_error(kind: str, coordinates: Any, segmentation: Any) -> None:
    try:
        region = read_region(kind, coordinates=coordinates, segmentation=segmentation)
    except ValueError:
        return
    assert region.kind == kind
    assert all(isinstance(number, float) and math.isfinite(number) for number in region.coordinates)
    assert describe_region(region)
    check_region(prompt(region), (10, 10))
