"""There and back: a COCO export as the ground truth of its own run, and of one whose masks are shifted."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.evaluation.evaluate import Evaluation, evaluate_output
from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.export.write import Choice, export_output
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store
from pipelines.types import MaskPrediction
from tests.support.labeled import mask, named, write_output

ASKED = named("ovseg", "cat", "dog", "Traffic-Light")
SIZE = (64, 96)


def blobs(seed: int) -> list[np.ndarray]:
    """Return a few round masks of an image, some of which overlap: bool (H, W) each."""
    rng, masks = np.random.default_rng(seed), []
    for _ in range(rng.integers(2, 8)):
        picture = np.zeros(SIZE, np.uint8)
        center = (int(rng.integers(8, SIZE[1] - 8)), int(rng.integers(8, SIZE[0] - 8)))
        cv2.ellipse(picture, center, tuple(rng.integers(4, 20, 2).tolist()), float(rng.integers(180)), 0, 360, 1, -1)
        masks.append(picture.astype(bool))
    return masks


def output(folder: Path, shift: Sequence[int] = (0,)) -> tuple[Store, Plan]:
    """Write a run whose masks are shifted to the right by each of the distances in turn."""
    found: dict[str, list[MaskPrediction] | None] = {}
    for number in range(12):
        rng = np.random.default_rng(100 + number)
        found[f"photos/{number}.jpg"] = [
            mask(ASKED[rng.integers(3)], np.roll(pixels, shift[place % len(shift)], axis=1), float(rng.random()))
            for place, pixels in enumerate(blobs(number))
        ]
    found |= {"photos/empty.jpg": [], "photos/quarantined.jpg": None}
    return write_output(folder, found, common=ASKED, sizes=dict.fromkeys(found, SIZE))


def evaluated(run: tuple[Store, Plan], truth: Path) -> Evaluation:
    store, plan = run
    return evaluate_output(store, [plan], read_ground_truth(str(truth)))


def test_an_export_is_perfect_ground_truth_of_its_own_run(tmp_path: Path) -> None:
    run = output(tmp_path / "output")
    export_output(run[0], str(tmp_path / "coco.json"), "coco", Choice())
    evaluation = evaluated(run, tmp_path / "coco.json")
    (result,) = evaluation.results
    assert [result.figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([1, 1, 1])
    assert result.figures["true"] == result.figures["found"] > 40
    assert [figures["AP"] for figures in result.categories.values()] == pytest.approx([1, 1, 1])
    assert evaluation.num_images == 13
    assert evaluation.notes == ("1 of 14 labeled images are not in the truth, left out",)


def test_ap_of_a_shifted_copy_is_that_of_pycocotools(tmp_path: Path) -> None:
    run, shifted = output(tmp_path / "output"), output(tmp_path / "shifted", shift=(1, 2, 4, 7))
    for (store, _), name in ((run, "truth"), (shifted, "found")):
        export_output(store, str(tmp_path / f"{name}.json"), "coco", Choice())
    (ours,) = evaluated(shifted, tmp_path / "truth.json").results
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(tmp_path / "truth.json"))
        found = truth.loadRes(json.loads((tmp_path / "found.json").read_text())["annotations"])
        theirs = COCOeval(truth, found, "segm")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    assert 0.2 < theirs.stats[0] < 0.9
    assert [ours.figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(
        theirs.stats[:3].tolist(), abs=1e-12
    )


def test_a_part_of_an_export_is_perfect_ground_truth_too(tmp_path: Path) -> None:
    run = output(tmp_path / "output")
    choice = Choice(where="category_name = 'cat'", images_where="image_id < 'photos/5'")
    export_output(run[0], str(tmp_path / "coco.json"), "coco", choice)
    (result,) = evaluated(run, tmp_path / "coco.json").results
    assert list(result.categories) == ["cat"]
    assert result.figures["AP"] == pytest.approx(1)
