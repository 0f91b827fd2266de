"""Odd but valid pictures and sources from end to end: labeled, evaluated and exported as plain ones are."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from pycocotools import mask as coco_mask

from flows.config import parse_config
from flows.run import engine
from flows.run.observer import Silent
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from tests.reliability.small_run import as_driver
from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor
from tests.support.odd_pictures import odd_pictures
from tests.support.odd_sources import ODD_SOURCES, OddSource

SEEN = {one.name: one for one in odd_pictures() if one.reason is None}
UNSEEN = {one.name: one for one in odd_pictures() if one.reason is not None}


def bright(pixels: np.ndarray) -> np.ndarray:
    """What the fake model sees in a picture: (height, width) bool."""
    return pixels.mean(axis=2) > 128


def rows(output: Path | str) -> dict[str, dict[str, Any]]:
    """The images' rows by id."""
    return {row["image_id"]: row for row in open_table(open_store(str(output)), "images").to_table().to_pylist()}


def masks(output: Path | str) -> dict[str, np.ndarray]:
    """The one mask of each image that has any: (height, width) bool."""
    table = open_table(open_store(str(output)), "annotations").to_table(columns=["image_id", "segmentation"])
    return {row["image_id"]: coco_mask.decode(row["segmentation"]).astype(bool) for row in table.to_pylist()}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run over all odd pictures at once."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "in").mkdir()
    for one in odd_pictures():
        (folder / "in" / one.name).write_bytes(one.data)
    arguments = ["--output", folder / "out", "--model", "fake", "--categories", "bright", "--runner", "in_process"]
    return folder, command("run", "--source", folder / "in", *arguments, "--no-prefect")


def test_a_run_over_odd_pictures_is_complete_and_accounts_for_each(ended: tuple[Path, Ended]) -> None:
    folder, run = ended
    assert (run.code, run.errors) == (0, "")
    images = rows(folder / "out")
    assert images.keys() == SEEN.keys() | UNSEEN.keys()
    assert {name: images[name]["reason"] for name in UNSEEN} == {name: one.reason for name, one in UNSEEN.items()}
    for name, one in SEEN.items():
        assert one.pixels is not None
        assert (images[name]["height"], images[name]["width"]) == one.pixels.shape[:2], name
        assert images[name]["pixel_notes"] == (list(one.notes) or None), name
        assert images[name]["status"] == "ok", name


def test_masks_are_where_the_picture_says(ended: tuple[Path, Ended]) -> None:
    found = masks(ended[0] / "out")
    assert len(found) > 60
    for name, mask in found.items():
        one = SEEN[name]
        assert one.pixels is not None
        is_clear = np.abs(one.pixels.mean(axis=2) - 128) > one.tolerance  # else lossy compression decides
        assert (mask == bright(one.pixels))[is_clear].all(), name


@pytest.fixture(scope="module")
def truth(ended: tuple[Path, Ended]) -> Path:
    """What was exported, as other people's tools write it: a byte order mark, NaN, and entries that are of no use."""
    folder, _ = ended
    exported = command("export", folder / "out", "--format", "coco", "--to", folder / "coco.json")
    assert exported.code == 0, exported
    document = json.loads((folder / "coco.json").read_text())
    first, category = document["images"][0]["id"], document["categories"][0]["id"]
    useless = [
        {"image_id": 4242, "category_id": category, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"image_id": first, "category_id": 999, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        {"image_id": first, "category_id": category, "segmentation": []},
        {"image_id": first, "category_id": category, "segmentation": [[0, 0, 4, 4]]},
        {"image_id": first, "category_id": category, "segmentation": [[0, 0, 1e9, 0, 4, 4]]},
    ]
    document["annotations"] += [
        {"id": 10_000 + number, "bbox": [0, 0, 4, 4], "area": float("nan"), "iscrowd": 0, **entry}
        for number, entry in enumerate(useless)
    ]
    (folder / "truth.json").write_text(json.dumps(document), encoding="utf-8-sig")
    return folder / "truth.json"


def test_an_odd_truth_of_what_was_found_scores_full_marks(ended: tuple[Path, Ended], truth: Path) -> None:
    folder, _ = ended
    figures = folder / "figures.json"
    evaluated = command("evaluate", folder / "out", "--ground-truth", truth, "--to", figures)
    assert evaluated.code == 0, evaluated
    told = json.loads(figures.read_text())
    (result,) = told["results"]
    assert result["figures"]["AP"] == pytest.approx(1)
    assert sum("left out" in note for note in told["notes"]) >= 4
    strict = command("evaluate", folder / "out", "--ground-truth", truth, "--strict")
    assert strict.is_refusal, strict


@pytest.mark.parametrize("form", ["yolo", "cvat", "label-studio"])
def test_every_export_takes_them(form: str, ended: tuple[Path, Ended], tmp_path: Path) -> None:
    folder, _ = ended
    exported = command("export", folder / "out", "--format", form, "--to", tmp_path / "new" / "export")
    assert (exported.code, exported.errors) == (0, ""), exported
    assert f"{len(UNSEEN)} quarantined" in exported.out


@pytest.mark.parametrize("source", ODD_SOURCES, ids=lambda source: source.name)
def test_an_odd_source_is_labeled_picture_by_picture(source: OddSource, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    settings = {"source": source.build(tmp_path / "in"), "output": str(tmp_path / "out"), "model": {"path": "fake"}}
    config = parse_config({**settings, "categories": ["bright"], "pool": {"runner": "in_process"}})
    with as_driver(BrightPredictor()):
        summary = engine.run_directly(config, Silent())
    expected = {
        name: bright(np.asarray(PilImage.open(io.BytesIO(data)).convert("RGB")))
        for name, data in source.pictures_in(tmp_path / "in").items()
    }
    assert (summary.problems, summary.ledger["listed"]) == ([], len(expected))
    found = masks(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all((found[name] == mask).all() for name, mask in expected.items())
