"""Metrics of segmentation maps, given as disjoint COCO RLE segments: panoptic quality and semantic IoU, in [0, 1].

Pure functions without I/O. Metrics of single masks are in mask_metrics.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.masks import rle
from pipelines.types import Rle

MIN_IOU = 0.5
"""Segments match if their IoU is greater than this; then each has at most one partner, since segments are disjoint."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of an image's map, which no other segment of that map overlaps.

    Attributes:
        category: its category's name.
        segmentation: its pixels; segments with an empty mask are dropped.
        is_crowd: whether a true segment is a region of many such objects (COCO's ``iscrowd``).
    """

    category: str
    segmentation: Rle
    is_crowd: bool = False


Maps = tuple[Sequence[Segment], Sequence[Segment]]
"""The found and the true segments of one image."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Panoptic quality of one category, for which pq = sq * rq, or the mean over categories.

    Attributes:
        pq: panoptic quality, sum of the IoU of matches / (matches + (unmatched found + unmatched true) / 2).
        sq: segmentation quality, mean IoU of the matches, 0 without a match.
        rq: recognition quality, the F1 score of finding segments.
        num_categories: number of categories in the mean.
    """

    pq: float
    sq: float
    rq: float
    num_categories: int = 1


@dataclass(frozen=True, slots=True)
class CategoryQuality:
    """Panoptic quality of one category, and the counts behind it."""

    category: str
    quality: Quality
    num_matched: int
    num_found_only: int
    num_true_only: int


@dataclass(frozen=True, slots=True)
class PanopticQuality:
    """Panoptic quality over all categories, over things and stuff separately (None without any), and by category."""

    all: Quality
    things: Quality | None
    stuff: Quality | None
    categories: tuple[CategoryQuality, ...]


@dataclass(frozen=True, slots=True)
class CategoryIou:
    """Semantic IoU of one category over all images; None if the truth has no pixel of it."""

    category: str
    iou: float | None
    num_true_pixels: int


@dataclass(frozen=True, slots=True)
class SemanticIou:
    """Mean IoU over the categories that the truth contains, and the IoU of each category, over all images."""

    miou: float
    categories: tuple[CategoryIou, ...]


@dataclass(slots=True)
class _Tally:
    iou_sum: float = 0.0
    matched: int = 0
    found_only: int = 0
    true_only: int = 0

    @property
    def total(self) -> int:
        return self.matched + self.found_only + self.true_only

    def quality(self) -> Quality:
        segments = self.matched + 0.5 * self.found_only + 0.5 * self.true_only
        sq = self.iou_sum / self.matched if self.matched else 0.0
        return Quality(pq=self.iou_sum / segments, sq=sq, rq=self.matched / segments)


def panoptic_quality(images: Iterable[Maps], *, stuff: Collection[str]) -> PanopticQuality:
    """Return PQ, SQ and RQ (Kirillov et al., arXiv:1801.00868), by the rules of panopticapi.

    - A found and a true segment of the same category match if IoU > 0.5; void pixels, which no true segment covers, do
      not count in the union.
    - An unmatched found segment is ignored if more than half of it is void or crowd of its category.
    - A crowd needs no match. If an image has several crowds of a category, panopticapi uses the last one; here all
      count.
    - Categories for which everything found or true is ignored are left out of the means.

    Args:
        images: for each image the found and the true segments.
        stuff: names of the stuff categories; all others are things.

    Raises:
        ValueError: nothing to compare, overlapping segments, masks of different sizes in one image, or broken RLE.
    """
    tallies: dict[str, _Tally] = defaultdict(_Tally)
    for found, truth in images:
        _add_image(tallies, _non_empty(found), _non_empty(truth))
    counted = {name: tallies[name] for name in sorted(tallies) if tallies[name].total}
    if not counted:
        raise ValueError("panoptic quality needs at least one segment that is not ignored")
    rows = tuple(
        CategoryQuality(name, tally.quality(), tally.matched, tally.found_only, tally.true_only)
        for name, tally in counted.items()
    )
    everything = _mean(rows)
    assert everything is not None, "there is a category"
    return PanopticQuality(
        all=everything,
        things=_mean([row for row in rows if row.category not in stuff]),
        stuff=_mean([row for row in rows if row.category in stuff]),
        categories=rows,
    )


def _mean(rows: Sequence[CategoryQuality]) -> Quality | None:
    if not rows:
        return None
    values = [(row.quality.pq, row.quality.sq, row.quality.rq) for row in rows]
    pq, sq, rq = (sum(column) / len(rows) for column in zip(*values, strict=True))
    return Quality(pq=pq, sq=sq, rq=rq, num_categories=len(rows))


def _add_image(tallies: Mapping[str, _Tally], found: Sequence[Segment], truth: Sequence[Segment]) -> None:
    """Count one image. overlaps[f, t] is the number of pixels in found segment f and true segment t; 0 means none."""
    overlaps = _overlaps(found, truth)
    found_areas, true_areas = overlaps.sum(axis=1), overlaps.sum(axis=0)
    matched_found, matched_true = set(), set()
    for f, t in np.argwhere(overlaps[1:, 1:]) + 1:
        mask, target = found[f - 1], truth[t - 1]
        if target.is_crowd or mask.category != target.category:
            continue
        # Column 0: the found segment's void pixels do not count.
        union = found_areas[f] + true_areas[t] - overlaps[f, t] - overlaps[f, 0]
        # No other pair of either segment can pass, so no assignment problem has to be solved.
        if (iou := overlaps[f, t] / union) > MIN_IOU:
            tallies[mask.category].matched += 1
            tallies[mask.category].iou_sum += float(iou)
            matched_found.add(f)
            matched_true.add(t)
    for t, target in enumerate(truth, start=1):
        if t not in matched_true and not target.is_crowd:
            tallies[target.category].true_only += 1
    for f, mask in enumerate(found, start=1):
        crowds = [t for t, s in enumerate(truth, start=1) if s.is_crowd and s.category == mask.category]
        ignored = overlaps[f, [0, *crowds]].sum()
        if f not in matched_found and ignored / found_areas[f] <= MIN_IOU:
            tallies[mask.category].found_only += 1


def semantic_iou(images: Iterable[Maps]) -> SemanticIou:
    """Return mIoU from one confusion matrix over the pixels of all images, as detectron2 and others compute it.

    The IoU of a category is pixels found and true / pixels found or true. Pixels that no true segment covers are left
    out; true pixels for which nothing is found are misses. Crowds count like other segments of their category.
    Categories without a true pixel are left out of the mean.

    Args:
        images: for each image the found and the true segments; several may have the same category.

    Raises:
        ValueError: no true pixel, overlapping segments, masks of different sizes in one image, or broken RLE.
    """
    both: dict[str, int] = defaultdict(int)
    num_found: dict[str, int] = defaultdict(int)
    num_true: dict[str, int] = defaultdict(int)
    for image in images:
        found, truth = (_non_empty(segments) for segments in image)
        overlaps = _overlaps(found, truth)
        for f, mask in enumerate(found, start=1):
            # From column 1 on: pixels without truth are left out.
            num_found[mask.category] += int(overlaps[f, 1:].sum())
            same = [t for t, target in enumerate(truth, start=1) if target.category == mask.category]
            both[mask.category] += int(overlaps[f, same].sum())
        for t, target in enumerate(truth, start=1):
            num_true[target.category] += int(overlaps[:, t].sum())
    if not num_true:
        raise ValueError("semantic IoU needs at least one true pixel")
    ious = {name: both[name] / (num_found[name] + pixels - both[name]) for name, pixels in num_true.items()}
    rows = tuple(CategoryIou(name, ious.get(name), num_true.get(name, 0)) for name in sorted({*num_found, *num_true}))
    return SemanticIou(miou=sum(ious.values()) / len(ious), categories=rows)


def _non_empty(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if rle.area(segment.segmentation)]


def _overlaps(found: Sequence[Segment], truth: Sequence[Segment]) -> NDArray[np.int64]:
    """Return numbers of shared pixels, int64 (1 + found, 1 + truth); row and column 0 are pixels in no segment."""
    sizes = {segment.segmentation.size_hw for segment in (*found, *truth)}
    if len(sizes) > 1:
        raise ValueError(f"segments of one image have different sizes: {sorted(sizes)}")
    if not sizes:
        return np.zeros((1, 1), np.int64)
    size_hw = sizes.pop()
    # Each pixel's pair of segments as one number: a single bincount gives all overlaps, at the cost of one pass.
    joint = _numbered(found, size_hw) * (len(truth) + 1) + _numbered(truth, size_hw)
    shape = (len(found) + 1, len(truth) + 1)
    return np.bincount(joint.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def _numbered(segments: Sequence[Segment], size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return a map, int64 (H, W), of segment numbers from 1; 0 where there is no segment."""
    numbers = np.zeros(size_hw, np.int64)
    for number, segment in enumerate(segments, start=1):
        mask = rle.decode(segment.segmentation)
        if numbers[mask].any():
            raise ValueError(f"segments of a map must not overlap, but one of {segment.category!r} does")
        numbers[mask] = number
    return numbers
