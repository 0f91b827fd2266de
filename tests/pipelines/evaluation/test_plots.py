"""An evaluation as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.evaluation.evaluate import Evaluation, TaskFigures
from pipelines.evaluation.mask_metrics import mask_average_precision
from pipelines.evaluation.plots import write_plots
from pipelines.masks.rle import encode
from tests.support.labeled import box


def evaluation(*results: TaskFigures) -> Evaluation:
    return Evaluation(runs=("run-1",), num_images=1, num_quarantined=0, results=results, notes=())


def test_the_mean_of_each_curve_is_its_figure() -> None:
    true = [TrueMask(1, "cat", encode(box(0, 0, 6, 6))), TrueMask(1, "dog", encode(box(6, 6, 4, 4)))]
    found = [FoundMask(1, "cat", encode(box(0, 0, 6, 5)), 0.5), FoundMask(1, "dog", encode(box(0, 0, 2, 2)), 0.9)]
    precision = mask_average_precision(true, found)
    means = {name: float(np.mean(curve)) for name, curve in precision.curves.items()}
    assert means == pytest.approx({"AP": precision.ap, "AP50": precision.ap50, "AP75": precision.ap75})
    assert {len(curve) for curve in precision.curves.values()} == {101}


def test_tasks_and_groups_have_pictures_of_their_own(tmp_path: Path) -> None:
    categories = {f"category ${number}": {"PQ": number / 100} for number in range(60)} | {"none": {"PQ": None}}
    results = [
        TaskFigures(task="ovseg_panoptic", figures={"PQ": 0.5}, categories=categories),
        TaskFigures(task="vgdseg", group="box", figures={"AP": 0.5}, curves={"AP": [1.0] * 50 + [0.0] * 51}),
        TaskFigures(task="refseg", figures={"cIoU": 0.5}),
        TaskFigures(
            task="ovseg", figures={}, scores=[{"score": s, "precision": 1.0, "recall": 0.5, "F1": None} for s in (0, 1)]
        ),
    ]
    files = write_plots(evaluation(*results), tmp_path)
    assert [path.name for path in files] == [
        "ovseg_panoptic-categories.png",
        "vgdseg-box-precision-recall.png",
        "ovseg-scores.png",
    ]
    with PILImage.open(files[0]) as picture:
        assert picture.height > picture.width  # forty bars
