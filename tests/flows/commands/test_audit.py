"""`xsam-label audit`: a sample goes out, comes back edited, and tells how good all labels are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.masks import rle
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from tests.support.commands import command
from tests.support.labeled import box, mask, named, write_output

CUP, DOG = named("ovseg", "cup", "dog")
LEFT, RIGHT, SMALL = box(0, 0, 4, 8), box(6, 0, 4, 8), box(0, 0, 3, 8)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty images: a cup in every third, found; in every fourth a mask that is no cup; no dog is found in the last."""
    found = {}
    for number in range(60):
        masks = [mask(CUP, LEFT, 0.6 + number / 200)] if number % 3 == 0 else []
        masks += [mask(CUP, RIGHT, 0.55)] if number % 4 == 0 else []
        masks += [mask(DOG, RIGHT, 0.9), mask(DOG, LEFT, 0.1)] if number % 5 == 0 else []
        found[f"{number:02d}.png"] = masks
    found["broken.png"] = None
    folder = tmp_path_factory.mktemp("audit") / "output"
    write_output(folder, found, common=[CUP, DOG], per_shard=10)
    return folder


def checked(document: dict[str, Any]) -> dict[str, Any]:
    """What a person makes of a COCO file: no cup is on the right, and in the last ten images there is a dog."""
    cup = next(one["id"] for one in document["categories"] if one["name"] == "cup")
    dog = next(one["id"] for one in document["categories"] if one["name"] == "dog")
    right = rle.encode(RIGHT)
    document["annotations"] = [
        one
        for one in document["annotations"]
        if not (one["category_id"] == cup and one["segmentation"]["counts"] == right.counts)
    ]
    for image in document["images"]:
        if image["file_name"] >= "50.png" and int(image["file_name"][:2]) % 5:
            new = {"id": 1000 + int(image["file_name"][:2]), "image_id": image["id"], "category_id": dog}
            document["annotations"].append({**new, "segmentation": rle.encode(SMALL).to_coco()})
    return document


def test_a_collection_that_is_checked_whole_is_measured_exactly(output: Path, tmp_path: Path) -> None:
    drawn = command("audit", "sample", output, "--to", tmp_path / "review", "--format", "coco", "--per-band", 100)
    assert drawn.code == 0, drawn
    assert re.search(r"to be checked +60 images, 47 masks", drawn.out)
    path = tmp_path / "review" / "instances.json"
    path.write_text(json.dumps(checked(json.loads(path.read_text()))))
    ended = command("audit", "result", tmp_path / "review", path)
    assert ended.code == 0, ended
    found = json.loads(command("audit", "result", tmp_path / "review", path, "--json").out)
    told = {one["category_name"]: one for one in (*found["categories"], found["all"])}
    cup, dog, every = told["cup"], told["dog"], told[""]
    assert (cup["masks"], cup["checked"], cup["right"], cup["missed"]) == (35, 35, 20, 0)
    assert cup["precision"] == {"estimate": 20 / 35, "low": 20 / 35, "high": 20 / 35}
    assert cup["recall"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert (dog["right"], dog["missed"]) == (12, 8)
    assert dog["recall"] == pytest.approx({"estimate": 0.6, "low": 0.6, "high": 0.6})
    assert every["precision"]["estimate"] == pytest.approx(32 / 47)
    assert re.search(r"cup .* 57\.1 .* 57\.1 to 57\.1 .* 100\.0", ended.out)


@pytest.mark.parametrize(("format_name", "name"), [("coco", "instances.json"), ("cvat", "annotations.xml")])
def test_a_part_is_drawn_that_stands_for_the_rest(output: Path, tmp_path: Path, format_name: str, name: str) -> None:
    sizes = ("--per-band", 3, "--without", 5)
    for folder, seed in (("a", 0), ("again", 0), ("b", 1)):
        arguments = ("--to", tmp_path / folder, "--format", format_name, "--seed", seed)
        assert command("audit", "sample", output, *arguments, *sizes).code == 0
    drawn = [pq.read_table(tmp_path / folder / "audit-images.parquet") for folder in ("a", "again", "b")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert 5 <= drawn[0].num_rows < 40
    # As exported, all is taken to be right.
    ended = command("audit", "result", tmp_path / "a", tmp_path / "a" / name)
    assert ended.code == 0, ended
    for category in ("cup", "dog", "all"):
        assert re.search(
            rf"{category} .* 100\.0 [^\d]* \d+\.\d to 100\.0 .* 100\.0 [^\d]* \d+\.\d to 100\.0", ended.out
        )


def test_scores_below_the_audited_one_are_not_found_but_tell_where_to_look(output: Path, tmp_path: Path) -> None:
    sample = ("audit", "sample", output, "--to", tmp_path / "a", "--format", "coco", "--categories", "dog")
    assert command(*sample, "--per-band", 2, "--without", 2).code == 0
    facts = json.loads((tmp_path / "a" / "audit.json").read_text())
    strata = {one["band"]: (one["images"], one["drawn"], one["masks"]) for one in facts["strata"]["dog"]}
    assert strata == {0: (48, 2, 0), 1: (0, 0, 0), 2: (0, 0, 0), 3: (0, 0, 0), 4: (12, 2, 12)}
    assert [one["name"] for one in json.loads((tmp_path / "a" / "instances.json").read_text())["categories"]] == ["dog"]


def test_images_that_did_not_come_back_and_other_names_are_told(output: Path, tmp_path: Path) -> None:
    sample = ("audit", "sample", output, "--to", tmp_path / "a", "--format", "coco", "--per-band", 100)
    assert command(*sample).code == 0
    path = tmp_path / "a" / "instances.json"
    document = json.loads(path.read_text())
    gone = document["images"].pop()
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] != gone["id"]]
    document["categories"].append({"id": 9, "name": "hen"})
    document["annotations"][-1]["category_id"] = 9
    document["images"].append({**gone, "id": 1, "file_name": "none.png"})
    document["images"][0]["width"] = 11
    (tmp_path / "edited.json").write_text(json.dumps(document))
    ended = command("audit", "result", tmp_path / "a", tmp_path / "edited.json")
    assert ended.code == 0, ended
    assert "1 of 60 drawn images are not in the file" in ended.out
    assert "left out: '00.png': is 11 x 10 pixels in the file, and 10 x 10 in the sample" in ended.out
    assert "1 image of the file was not drawn" in ended.out
    assert "masks of names that are not audited do not count: hen" in ended.out


def test_a_calibration_is_a_table_that_sql_joins(output: Path, tmp_path: Path) -> None:
    sample = ("audit", "sample", output, "--to", tmp_path / "a", "--format", "coco", "--per-band", 100)
    assert command(*sample).code == 0
    path = tmp_path / "a" / "instances.json"
    refused = command("audit", "result", tmp_path / "a", path, "--calibration", tmp_path / "scores.parquet")
    assert refused.is_refusal
    assert "47 are right and 0 wrong" in refused.errors
    path.write_text(json.dumps(checked(json.loads(path.read_text()))))
    for name in ("scores.parquet", "scores.csv"):
        assert command("audit", "result", tmp_path / "a", path, "--calibration", tmp_path / name).code == 0
        ask = f"""
            SELECT a.category_name, round(a.score, 2), round(avg(c.probability), 2) FROM annotations AS a
            ASOF JOIN '{tmp_path / name}' AS c ON a.category_name = c.category_name AND a.score >= c.score
            WHERE a.category_name = 'cup' AND a.score IN (0.55::FLOAT, 0.75::FLOAT) GROUP BY ALL ORDER BY 2
        """
        with open_database(open_store(str(output)), own_files=[str(tmp_path / name)]) as database:
            (_, low, unlikely), (_, high, likely) = database.execute(ask).fetchall()
        assert (low, high) == (pytest.approx(0.55), pytest.approx(0.75))
        assert unlikely < 0.3 < 0.7 < likely


def test_what_cannot_be_audited_is_refused_and_nothing_is_written(output: Path, tmp_path: Path) -> None:
    to = ("--to", tmp_path / "a")
    for arguments, told in (
        ((*to, "--format", "yolo"), "is none that people can edit"),
        ((*to, "--categories", "hen"), "holds no mask of hen from score 0.5 on; it holds those of cup, dog"),
        ((*to, "--score", 0.99), "holds no mask of ovseg from score 0.99 on"),
        ((*to, "--task", "refseg"), "masks of 'refseg' cannot be audited"),
        ((*to, "--images-where", "nothing = 1"), "--images-where is no SQL condition"),
        (("--to", tmp_path / "a.json"), "a sample is written as a folder"),
    ):
        ended = command("audit", "sample", output, *arguments)
        assert ended.is_refusal, ended
        assert told in ended.errors
    assert not list(tmp_path.iterdir())
    (tmp_path / "none.json").write_text('{"images": [], "annotations": [], "categories": []}')
    ended = command("audit", "result", tmp_path, tmp_path / "none.json")
    assert ended.is_refusal
    assert "audit sample` has written" in ended.errors
    assert command("audit", "sample", output, *to, "--format", "coco").code == 0
    ended = command("audit", "result", tmp_path / "a", tmp_path / "none.json")
    assert ended.is_refusal
    assert "none of the 60 images of the sample is in it" in ended.errors
    ended = command("audit", "sample", output, *to, "--format", "coco")
    assert ended.is_refusal
    assert command("audit", "sample", output, *to, "--format", "coco", "--overwrite").code == 0
