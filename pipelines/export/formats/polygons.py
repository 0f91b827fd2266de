"""Masks as one closed polygon each: holes and separate parts are joined by lines there and back, as YOLO wants them.

Needs OpenCV, which comes with the extra ``export``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SourceError

_MAX_RINGS = 256  # outlines of parts and holes that a polygon goes around, the largest ones
_MAX_COMPARED = 1000  # points among which the shortest ways from one to the next are looked for

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
    between separate parts, one pixel wide, and those to holes, which mostly lie inside the mask. Of a mask in more than
    256 pieces (parts and holes) the smallest are not traced.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        Its points, at least three.
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
    """Return one line through all rings: from the first to the nearest other and around it, and so on, and back."""
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
    """Return a line that leaves at one of its points for a point of a ring, goes around that, and comes back."""
    here, there = (int(np.flatnonzero((p == q).all(axis=1))[0]) for p, q in ((line, leave), (ring, enter)))
    around = np.roll(ring, -there, axis=0)
    return np.concatenate((line[: here + 1], around, around[:1], line[here:]))
