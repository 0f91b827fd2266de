"""Trace a mask as a single closed polygon, as YOLO needs: holes and separate parts are joined by lines there and back.

Needs OpenCV, which the extra ``export`` installs.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SourceError

_MAX_RINGS = 256  # outlines of parts and holes that are traced; of more, the largest
_MAX_COMPARED = 1000  # points considered when looking for the shortest connections; comparing all pairs is quadratic

Points = NDArray[np.int64]
"""Points of a closed line, (N, 2) int64 pixels (x, y); the last is joined to the first."""


def opencv() -> Any:
    """Import OpenCV.

    Raises:
        SourceError: OpenCV is not installed.
    """
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise SourceError(
            f"polygons are traced by OpenCV, which is not there ({error}): pip install 'xsam-label[export]'"
        ) from error


def outline(mask: NDArray[np.bool_]) -> Points:
    """Trace a mask as one closed line through the centres of its outermost pixels.

    ``cv2.fillPoly``, which fills by the even-odd rule and draws the line itself, restores the mask from it, apart from
    the connecting lines: those between parts are one pixel wide, those to holes mostly lie inside the mask. If a mask
    has more than 256 parts and holes, the smallest are not traced.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        The points of the line, at least three.
    """
    cv2 = opencv()
    lines, tree = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parents: list[int] = tree[0, :, 3].tolist()
    largest: Sequence[int] = range(len(lines))
    if len(lines) > _MAX_RINGS:
        largest = sorted(largest, key=lambda number: -sum(cv2.boundingRect(lines[number])[2:]))[:_MAX_RINGS]
    rings = {number: lines[number].reshape(-1, 2).astype(np.int64) for number in largest}
    around = {number: [ring] for number, ring in rings.items() if parents[number] < 0}
    for number, ring in rings.items():
        if parents[number] in around:
            around[parents[number]].append(ring)
    whole = _joined([_joined(part) for part in around.values()])
    return whole if len(whole) >= 3 else np.resize(whole, (3, 2))


def _joined(rings: list[Points]) -> Points:
    """Join rings into one line: repeatedly insert the ring nearest to the line so far (Prim's algorithm)."""
    whole, step = rings[0], -(-sum(map(len, rings)) // _MAX_COMPARED)
    left = np.concatenate([ring[::step] for ring in rings[1:]] or [rings[0][:0]])
    owner = np.repeat(np.arange(1, len(rings)), [len(ring[::step]) for ring in rings[1:]])
    distance, start = np.full(len(left), np.iinfo(np.int64).max), np.zeros_like(left)
    added = whole
    while len(left):
        ways = ((left[:, None] - added[None, ::step]) ** 2).sum(axis=2)
        closest, shortest = ways.argmin(axis=1), ways.min(axis=1)
        is_nearer = shortest < distance
        distance[is_nearer], start[is_nearer] = shortest[is_nearer], added[::step][closest[is_nearer]]
        next_one = int(distance.argmin())
        added = rings[owner[next_one]]
        whole = _spliced(whole, start[next_one], added, left[next_one])
        keep = owner != owner[next_one]
        left, owner, distance, start = left[keep], owner[keep], distance[keep], start[keep]
    return whole


def _spliced(line: Points, leave: Points, ring: Points, enter: Points) -> Points:
    """Insert a ring into a line: leave the line at one point, enter the ring at another, go around it and come back."""
    here, there = (int(np.flatnonzero((p == q).all(axis=1))[0]) for p, q in ((line, leave), (ring, enter)))
    around = np.roll(ring, -there, axis=0)
    return np.concatenate((line[: here + 1], around, around[:1], line[here:]))
