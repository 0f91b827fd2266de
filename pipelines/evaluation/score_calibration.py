"""How far scores are from being probabilities: the expected calibration error (Guo et al., arXiv:1706.04599)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipelines.evaluation.coco_matching import FoundMask, TrueMask
from pipelines.masks import rle
from pipelines.types import Rle

RIGHT_IOU = 0.5
"""From this intersection over union with a true mask on, a mask is right."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Masks of alike scores.

    Attributes:
        count: how many, at least 1.
        mean_score: mean of their scores.
        right_share: share of them that is right.
    """

    count: int
    mean_score: float
    right_share: float


def calibration_bins(
    scores: ArrayLike, right: ArrayLike, *, bins: int = 15, equal_mass: bool = True
) -> list[CalibrationBin]:
    """Return the points of a reliability diagram, lowest scores first.

    Args:
        scores: (N,) in [0, 1].
        right: (N,) bool.
        bins: how many; those without a mask are left out.
        equal_mass: with as many masks in each bin, as far as they can be divided; else bins of equal width.
    """
    rated, hits = np.asarray(scores, np.float64), np.asarray(right, np.bool_)
    order = np.argsort(rated, kind="stable")
    rated, hits = rated[order], hits[order]
    if equal_mass:
        ends = np.linspace(0, len(rated), bins + 1).round().astype(int)
    else:
        ends = np.searchsorted(rated, np.linspace(0, 1, bins + 1), side="right")
        ends[0] = 0
    pairs = zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
    return [
        CalibrationBin(end - start, float(rated[start:end].mean()), float(hits[start:end].mean()))
        for start, end in pairs
        if end > start
    ]


def expected_calibration_error(
    scores: ArrayLike, right: ArrayLike, *, bins: int = 15, equal_mass: bool = True
) -> float:
    """Return the mean distance of scores from the share that is right, in bins; arguments as for `calibration_bins`.

    Returns:
        In [0, 1], 0 for perfect probabilities; NaN without masks. Of a few masks it is above 0 by chance alone.
    """
    found = calibration_bins(scores, right, bins=bins, equal_mass=equal_mass)
    if not found:
        return float("nan")
    distances = [one.count * abs(one.mean_score - one.right_share) for one in found]
    return sum(distances) / sum(one.count for one in found)


def right_masks(truth: Sequence[TrueMask], found: Sequence[FoundMask]) -> NDArray[np.bool_]:
    """Return which found masks show an object of their image and category, (N,) bool; several may show the same one."""
    wanted: dict[tuple[int | str, str], list[Rle]] = {}
    for one in truth:
        wanted.setdefault((one.image_id, one.category), []).append(one.segmentation)
    right = np.zeros(len(found), dtype=np.bool_)
    places: dict[tuple[int | str, str], list[int]] = {}
    for place, mask in enumerate(found):
        places.setdefault((mask.image_id, mask.category), []).append(place)
    for key, some in places.items():
        if key in wanted:
            ious = rle.iou([found[place].segmentation for place in some], wanted[key])
            right[some] = (ious >= RIGHT_IOU).any(1)
    return right
