"""Masks as one closed polygon each: holes and separate parts are joined by lines there and back, as YOLO wants them.

Needs OpenCV, which comes with the extra ``export``.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.tabular import SourceError

_MAX_COMPARED = 2000  # points of either line among which the shortest way from one to the other is looked for

Points = NDArray[np.int64]
"""(N, 2) pixels (x, y) of a closed line, the last joined to the first."""


def opencv() -> Any:
    """Return OpenCV.

    Raises:
        SourceError: it is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise SourceError(
            f"polygons are traced by OpenCV, which is not there ({error}): pip install 'xsam-label[export]'"
        ) from error


def outline(mask: NDArray[np.bool_]) -> Points:
    """Trace a mask as one closed line through the centres of its outermost pixels.

    Filled by the even-odd rule with its line drawn, as ``cv2.fillPoly`` does, it gives the mask again but for the lines
    between separate parts, one pixel wide, and those to holes, which mostly lie inside the mask.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        Its points, at least three.
    """
    cv2 = opencv()
    lines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings: dict[int, Points] = {}
    for number, (_, _, _, parent) in enumerate(tree[0]):
        if parent < 0:
            rings[number] = lines[number].reshape(-1, 2).astype(np.int64)
    for number, (_, _, _, parent) in enumerate(tree[0]):
        if parent >= 0:
            rings[parent] = _joined(rings[parent], lines[number].reshape(-1, 2).astype(np.int64))
    whole, *others = sorted(rings.values(), key=len, reverse=True)
    for ring in others:
        whole = _joined(whole, ring)
    return whole if len(whole) >= 3 else np.resize(whole, (3, 2))


def _joined(line: Points, other: Points) -> Points:
    """Return a line that leaves the first where it is nearest to the other, goes around that, and comes back."""
    step, other_step = (-(-len(points) // _MAX_COMPARED) for points in (line, other))
    ways = ((line[::step, None] - other[None, ::other_step]) ** 2).sum(axis=2)
    here, there = np.unravel_index(np.argmin(ways), ways.shape)
    start, around = int(here) * step, np.roll(other, -int(there) * other_step, axis=0)
    return np.concatenate((line[: start + 1], around, around[:1], line[start:]))
