"""Masks as pycocotools' index of them, and its COCOeval run on them: what all metrics of found objects start from."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipelines.masks import rle
from pipelines.types import Rle


@dataclass(frozen=True, slots=True)
class TrueMask:
    """One object of the ground truth.

    Attributes:
        image_id: the image: any sortable id (ints or strings, not both), also used in FoundMask.
        category: its category's name.
        segmentation: its mask.
        is_crowd: whether it is a region of many such objects (COCO's ``iscrowd``): predictions inside it are ignored.
    """

    image_id: int | str
    category: str
    segmentation: Rle
    is_crowd: bool = False


@dataclass(frozen=True, slots=True)
class FoundMask:
    """One predicted object; a higher score means more confidence."""

    image_id: int | str
    category: str
    segmentation: Rle
    score: float


@dataclass(frozen=True, slots=True)
class Matched:
    """COCOeval's matches of found and true masks.

    Attributes:
        names: categories of truth and predictions, sorted; COCOeval numbers them from 1.
        images: COCOeval's number of each image, from 1; sorted by id.
        evaluation: after ``evaluate()``. Ids of masks are their positions plus 1.
    """

    names: Sequence[str]
    images: Mapping[int | str, int]
    evaluation: COCOeval


def match(
    truth: Sequence[TrueMask],
    predictions: Sequence[FoundMask],
    *,
    max_found_per_image: int,
    ious: Sequence[float] | None = None,
) -> Matched:
    """Match predictions with the truth of their image and category, greedily, best score first, as COCOeval does.

    Args:
        truth: the objects of all evaluated images.
        predictions: masks with the same sizes as their image's truth.
        max_found_per_image: the number of predictions, best first, that count for each category and image.
        ious: IoU thresholds; COCO's 0.50, 0.55, ..., 0.95 by default.

    Raises:
        ValueError: no truth except crowds, masks of different sizes in one image, or broken RLE.
    """
    if all(mask.is_crowd for mask in truth):
        raise ValueError("average precision needs at least one true mask that is not a crowd")
    images = {image_id: number for number, image_id in enumerate(_sizes(truth, predictions), start=1)}
    names = sorted({mask.category for mask in truth} | {mask.category for mask in predictions})
    numbers = {name: number for number, name in enumerate(names, start=1)}
    evaluation = COCOeval(
        _coco(truth, images, numbers, [{"iscrowd": int(mask.is_crowd)} for mask in truth]),
        _coco(predictions, images, numbers, [{"score": float(mask.score), "iscrowd": 0} for mask in predictions]),
        "segm",
    )
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
    evaluation.params.maxDets = [max_found_per_image]
    if ious is not None:
        evaluation.params.iouThrs = np.array(ious)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return Matched(names, images, evaluation)


def _sizes(truth: Sequence[TrueMask], predictions: Sequence[FoundMask]) -> dict[int | str, tuple[int, int]]:
    """Return the mask size of every image, sorted by id, since COCOeval breaks ties of scores by the images' order."""
    sizes: dict[int | str, tuple[int, int]] = {}
    masks: list[TrueMask | FoundMask] = [*truth, *predictions]
    for mask in masks:
        size_hw = mask.segmentation.size_hw
        if (known := sizes.setdefault(mask.image_id, size_hw)) != size_hw:
            raise ValueError(f"image {mask.image_id!r} has masks of different sizes: {known} and {size_hw}")
    return {image_id: sizes[image_id] for image_id in sorted(sizes)}


def greedy_pairs(ious: NDArray[np.float64], least: float = 0.0) -> list[tuple[int, int]]:
    """Pair rows with columns one to one, the largest IoU first, as long as it is above 0 and reaches ``least``."""
    rest, pairs = ious.copy(), list[tuple[int, int]]()
    while rest.size and rest.max() >= least and rest.max() > 0:
        row, column = (int(place) for place in np.unravel_index(rest.argmax(), rest.shape))
        pairs.append((row, column))
        rest[row, :] = rest[:, column] = 0
    return pairs


def _coco(
    masks: Sequence[TrueMask | FoundMask],
    images: Mapping[int | str, int],
    categories: Mapping[str, int],
    further: Sequence[Mapping[str, Any]],
) -> COCO:
    """Build pycocotools' index of masks. Ids count from 1, because COCOeval treats a match with id 0 as no match."""
    coco = COCO()
    annotations = []
    for number, (mask, fields) in enumerate(zip(masks, further, strict=True), start=1):
        segmentation = rle.canonical(mask.segmentation)
        annotations.append(
            {
                "id": number,
                "image_id": images[mask.image_id],
                "category_id": categories[mask.category],
                "segmentation": segmentation.to_coco(),
                "area": rle.area(segmentation),
                **fields,
            }
        )
    # Sizes are dummies: annToRLE looks them up, but then uses the mask's own.
    coco.dataset = {
        "images": [{"id": number, "height": 0, "width": 0} for number in images.values()],
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
