"""300 made-up scenes: our evaluation against the field's own evaluators, through our COCO export."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.evaluation.evaluate import Evaluation, evaluate_output
from pipelines.evaluation.ground_truth import read_ground_truth
from pipelines.export.write import Choice, export_output
from pipelines.types import MaskPrediction
from tests.support.labeled import mask, named, write_output

SIZE = (20, 24)
# What the truth calls a category, and what was asked. Each pair must be compared, and no other.
NAMES = {
    "dog": "dog", "Dog": "Dog", "umbrella": "umbrella", "umbrella-other": "umbrella-other", "window ": "window",
    "wall-other-merged": "wall", "traffic light": "Traffic-Light", "off-stuffing": "off-stuffing", "offing": "offing",
    "bowl, glass": "bowl, glass", 'the "best"': 'the "best"', "<p>": "<p>", "café": "cafe\u0301", "CON": "CON",
    "猫": "猫", "a' OR 1=1 --": "a' OR 1=1 --",
}  # fmt: skip
SCENES = [f"scene {number:03d}.png" for number in range(300)]


def blob(random: np.random.Generator) -> np.ndarray:
    """A disc with a bite: bool (H, W), not empty."""
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    (y, x), radius = random.uniform((0, 0), SIZE), random.uniform(3, 9)
    near = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    pixels = near & ~((rows - y - radius / 2) ** 2 + (columns - x) ** 2 <= (radius / 3) ** 2)
    pixels[int(y), int(x)] = True
    return pixels


def moved(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The blob as a model might find it; perhaps not at all as it is."""
    found = np.roll(pixels, random.choice([-1, 0, 0, 1], 2), axis=(0, 1))
    return found if random.random() < 0.9 else blob(random)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Evaluation, dict[str, Any], list[Any]]:
    """Our evaluation against RLE and against polygons; the truth as a COCO file, and what was found as results."""
    folder, random = tmp_path_factory.mktemp("scenes"), np.random.default_rng(7)
    asked = {"truth": named("ovseg", *NAMES), "found": named("ovseg", *NAMES.values())}
    scores = iter(random.permutation(10_000) / 10_000)  # without ties, which evaluators break in their own ways
    rows: dict[str, dict[str, list[MaskPrediction]]] = {"truth": {}, "found": {}}
    for scene in SCENES:
        shown = [(int(random.integers(len(NAMES))), blob(random)) for _ in range(random.integers(0, 3))]
        rows["truth"][scene] = [mask(asked["truth"][place], pixels) for place, pixels in shown]
        taken = [(place if random.random() < 0.9 else int(random.integers(len(NAMES))), moved(pixels, random))
                 for place, pixels in shown if random.random() < 0.9]  # fmt: skip
        rows["found"][scene] = [mask(asked["found"][place], pixels, float(next(scores))) for place, pixels in taken]
    outputs = {}
    for name, found in rows.items():
        sizes = dict.fromkeys(SCENES, SIZE)
        outputs[name] = write_output(folder / name, found, common=asked[name], sizes=sizes, per_shard=150)
        export_output(outputs[name][0], str(folder / f"{name}.json"), "coco", Choice())
    export_output(outputs["truth"][0], str(folder / "polygons.json"), "coco", Choice(polygons=True))
    store, plan = outputs["found"]
    ours = [
        evaluate_output(store, [plan], read_ground_truth(str(folder / file), is_strict=True))
        for file in ("truth.json", "polygons.json")
    ]
    truth, found = (json.loads((folder / f"{name}.json").read_text()) for name in ("truth", "found"))
    numbers = {category["name"]: category["id"] for category in truth["categories"]}
    true_names = {other: name for name, other in NAMES.items()}
    categories = {one["id"]: numbers[true_names[one["name"]]] for one in found["categories"]}
    results = [
        {
            "image_id": one["image_id"],
            "category_id": categories[one["category_id"]],
            "segmentation": one["segmentation"],
            "score": one["score"],
        }
        for one in found["annotations"]
    ]
    return ours[0], ours[1], truth, results


def precision(
    module: str, truth: Mapping[str, Any], results: list[Any], folder: Path
) -> tuple[list[float], list[float]]:
    """AP, AP50 and AP75, and the AP of each category, by an evaluator with pycocotools' interface."""
    library = importlib.import_module(module)
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = library.COCO(str(folder / "truth.json"))
        evaluate = getattr(library, "COCOeval_faster", None) or getattr(library, "COCOeval", None)
        if evaluate is None:
            evaluate = importlib.import_module("pycocotools.cocoeval").COCOeval
        evaluation = evaluate(coco, coco.loadRes(str(folder / "results.json")), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return list(evaluation.stats[:3]), [float(values[:, :, place].mean()) for place in range(values.shape[2])]


@pytest.mark.parametrize("module", ["pycocotools.coco", "hotcoco", "faster_coco_eval"])
def test_ap_is_that_of_the_fields_own_evaluators(
    scenes: tuple[Evaluation, Evaluation, dict[str, Any], list[Any]], module: str, tmp_path: Path
) -> None:
    pytest.importorskip(module)
    ours, polygons, truth, results = scenes
    theirs, by_category = precision(module, truth, results, tmp_path)
    assert 0.2 < theirs[0] < 0.8
    names = [category["name"] for category in sorted(truth["categories"], key=lambda one: one["id"])]
    for evaluation in (ours, polygons):
        (result,) = evaluation.results
        assert [result.figures[name] for name in ("AP", "AP50", "AP75")] == pytest.approx(theirs, abs=1e-6)
        found = {name: figures["AP"] for name, figures in result.categories.items()}
        assert found == pytest.approx(dict(zip(names, by_category, strict=True)), abs=1e-6)


def test_every_scene_and_category_takes_part_and_what_is_spelled_otherwise_is_told(
    scenes: tuple[Evaluation, Evaluation, dict[str, Any], list[Any]],
) -> None:
    ours, _, truth, _ = scenes
    assert (ours.num_images, len(truth["categories"])) == (300, len(NAMES))
    (note,) = ours.notes
    assert all(f"{other} with {name}" in note for name, other in NAMES.items() if name != other)
