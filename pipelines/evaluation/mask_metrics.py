"""Metrics of masks given as COCO RLE: average precision, and IoU for referring, interactive and grounded-caption masks.

Pure functions without I/O; every metric is a fraction in [0, 1]. Metrics of maps (PQ, mIoU) are in map_metrics.py.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.evaluation.coco_matching import FoundMask, TrueMask, greedy_pairs, match
from pipelines.masks import rle
from pipelines.types import Rle

_IOU_50, _IOU_75 = 0, 5  # positions in COCO's thresholds 0.50, 0.55, ..., 0.95


@dataclass(frozen=True, slots=True)
class CategoryPrecision:
    """Average precision of one category; None if the truth has no object of it.

    Attributes:
        category: its name.
        ap, ap50, ap75: as in AveragePrecision.
        num_truth: number of true objects, without crowds.
        num_found: number of predictions.
    """

    category: str
    ap: float | None
    ap50: float | None
    ap75: float | None
    num_truth: int
    num_found: int


@dataclass(frozen=True, slots=True)
class AveragePrecision:
    """Mask average precision, overall and by category.

    Attributes:
        ap: mean over the IoU thresholds 0.50, 0.55, ..., 0.95 and the categories in the truth.
        ap50, ap75: at IoU 0.50 and 0.75 only.
        categories: every category of the truth or the predictions, sorted by name.
        curves: for "AP", "AP50" and "AP75" the precision at recalls 0, 0.01, ..., 1, whose mean is that figure.
    """

    ap: float
    ap50: float
    ap75: float
    categories: tuple[CategoryPrecision, ...]
    curves: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class ReferringIou:
    """IoU of referring masks: cumulative (sum of intersections / sum of unions), and the mean over expressions."""

    ciou: float
    giou: float


@dataclass(frozen=True, slots=True)
class GroundedCaptionQuality:
    """Masks of grounded captions: mean over images of the mean IoU of paired masks, and class-agnostic AP50."""

    miou: float
    ap50: float


def mask_average_precision(
    truth: Sequence[TrueMask], predictions: Sequence[FoundMask], *, max_found_per_image: int = 100
) -> AveragePrecision:
    """Return COCO's mask AP, AP50 and AP75, as pycocotools' COCOeval computes them (Lin et al., arXiv:1405.0312).

    In each category predictions are matched greedily, best score first, to the truth of their image; AP is the mean
    precision at 101 recalls. Predictions that match a crowd region are ignored. In an image without truth every
    prediction is wrong. Categories without truth are left out of the means. pycocotools adds 2e-16 to a divisor, so a
    perfect result may be 0.9999999999999998.

    Args:
        truth: the objects of all evaluated images.
        predictions: masks with the same sizes as their image's truth.
        max_found_per_image: the number of predictions, best first, that count for each category and image.

    Raises:
        ValueError: no truth except crowds, masks of different sizes in one image, or broken RLE.
    """
    matched = match(truth, predictions, max_found_per_image=max_found_per_image)
    names, evaluation = matched.names, matched.evaluation
    # summarize() is not called: it would look for maxDets 100 and give -1 for any other limit.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    # (10 IoU thresholds, 101 recalls, categories)
    precision = np.asarray(evaluation.eval["precision"][:, :, :, 0, 0], dtype=np.float64)
    num_truth = Counter(mask.category for mask in truth if not mask.is_crowd)
    num_found = Counter(mask.category for mask in predictions)
    rows = []
    for index, name in enumerate(names):
        ap, ap50, ap75 = _ap_values(precision[:, :, index]) if num_truth[name] else (None, None, None)
        rows.append(CategoryPrecision(name, ap, ap50, ap75, num_truth=num_truth[name], num_found=num_found[name]))
    # COCOeval gives -1 for categories without truth, which must not enter a mean.
    held = [index for index, name in enumerate(names) if num_truth[name]]
    precision = precision[:, :, held]
    curves = {"AP": precision.mean(axis=(0, 2)), "AP50": precision[_IOU_50].mean(axis=1)}
    curves["AP75"] = precision[_IOU_75].mean(axis=1)
    return AveragePrecision(
        *_ap_values(precision),
        categories=tuple(rows),
        curves={name: tuple(curve.tolist()) for name, curve in curves.items()},
    )


def _ap_values(precision: NDArray[np.float64]) -> tuple[float, float, float]:
    return float(precision.mean()), float(precision[_IOU_50].mean()), float(precision[_IOU_75].mean())


def referring_iou(
    pairs: Sequence[tuple[Rle | None, Rle]], *, ignored: Sequence[Rle | None] | None = None
) -> ReferringIou:
    """Return cIoU and gIoU of referring or reasoning segmentation (Lai et al., LISA, arXiv:2308.00692, section 4).

    Args:
        pairs: for each expression the found mask (None: nothing found) and the true one, which may be empty.
        ignored: for each expression the pixels to leave out of both masks (ReasonSeg's "ignore"), None for none.

    Returns:
        ciou: sum of intersections / sum of unions. giou: mean of the IoUs, where an empty union (nothing to find and
        nothing found) counts as 1.0. If all unions are empty, ciou is 1.0, too.

    Raises:
        ValueError: no pairs, masks of different sizes, or broken RLE.
    """
    ciou, mean = _cumulative_and_mean(pairs, ignored)
    return ReferringIou(ciou=ciou, giou=mean)


def _cumulative_and_mean(
    pairs: Sequence[tuple[Rle | None, Rle]], ignored: Sequence[Rle | None] | None
) -> tuple[float, float]:
    if not pairs:
        raise ValueError("IoU needs at least one pair of masks")
    regions = [None] * len(pairs) if ignored is None else ignored
    counts = [_overlap(found, truth, region) for (found, truth), region in zip(pairs, regions, strict=True)]
    ious = [_ratio(intersection, union) for intersection, union in counts]
    return _ratio(sum(i for i, _ in counts), sum(u for _, u in counts)), sum(ious) / len(ious)


def _ratio(intersection: int, union: int) -> float:
    return intersection / union if union else 1.0


def _overlap(found: Rle | None, truth: Rle, ignored: Rle | None) -> tuple[int, int]:
    """Return the numbers of pixels in the intersection and the union, without ignored pixels."""
    masks = [mask for mask in (found, truth, ignored) if mask is not None]
    if len({mask.size_hw for mask in masks}) > 1:
        raise ValueError(f"masks of different sizes have no IoU: {[mask.size_hw for mask in masks]}")
    if ignored is not None:
        kept = ~rle.decode(ignored)
        truth = rle.encode(rle.decode(truth) & kept)
        found = None if found is None else rle.encode(rle.decode(found) & kept)
    area = rle.area(truth)
    if found is None:
        return 0, area
    both = [rle.canonical(mask).to_coco() for mask in (found, truth)]
    intersection = int(coco_mask.area(coco_mask.merge(both, intersect=True)))
    return intersection, area + rle.area(found) - intersection


def grounded_caption_quality(images: Sequence[tuple[Sequence[Rle], Sequence[Rle]]]) -> GroundedCaptionQuality:
    """Return mask mIoU and AP50 of grounded captions, as GLaMM's evaluation does (arXiv:2311.03356, section 5).

    mIoU: in each image masks are paired one to one, the pair with the highest IoU first, until no overlap is left; it
    is the mean over an image's pairs, then over images. Unpaired masks lower only AP50; an image without any pair
    counts as 0. AP50 treats all phrases as one category and all scores as 1.0, with at most 100 masks per image.

    Args:
        images: for each image the found and the true masks, all of the same size.

    Raises:
        ValueError: no true mask at all, masks of different sizes in one image, or broken RLE.
    """
    truth = [TrueMask(n, "phrase", mask) for n, (_, wanted) in enumerate(images) for mask in wanted]
    predictions = [FoundMask(n, "phrase", mask, 1.0) for n, (found, _) in enumerate(images) for mask in found]
    precision = mask_average_precision(truth, predictions)
    mious = [_paired_iou(rle.iou(found, wanted)) for found, wanted in images]
    return GroundedCaptionQuality(miou=sum(mious) / len(mious), ap50=precision.ap50)


def _paired_iou(ious: NDArray[np.float64]) -> float:
    """Return the mean IoU of the masks paired greedily, best first; 0 without any pair."""
    paired = [float(ious[pair]) for pair in greedy_pairs(ious)]
    return sum(paired) / len(paired) if paired else 0.0
