"""Trace masks as polygons; holes, and for YOLO separate parts, are joined by bridges without width.

Needs OpenCV, which the extra ``export`` installs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SourceError
from pipelines.redaction import counted

# Outlines of parts and holes that are traced; of more, the largest. Parts that are not joined may be many more.
_MAX_RINGS, _MAX_SEPARATE = 256, 10_000
_MAX_COMPARED = 1000  # points considered when looking for the shortest connections; comparing all pairs is quadratic
# Where a pixel's left and right, upper and lower sides are traced. pycocotools asks whether the center is between them.
_LEFT, _RIGHT = 0.25, 0.7

Points = NDArray[np.int64]
"""Points of a closed line, (N, 2) int64 pixels (x, y); the last is joined to the first."""


@dataclass(slots=True)
class Loss:
    """What masks lose as polygons: how many are other masks when they are drawn again, and the least IoU."""

    num_masks: int = 0
    num_changed: int = 0
    least_iou: float = 1.0

    def add(self, iou: float) -> None:
        """Count a mask."""
        self.num_masks += 1
        self.num_changed += iou < 1
        self.least_iou = min(self.least_iou, iou)

    def told(self, when: str) -> str:
        """Say what was lost ``when`` the masks are drawn again."""
        if not self.num_changed:
            return f"all {counted(self.num_masks, 'mask comes', 'masks come')} back pixel by pixel {when}"
        # Rounded down, so that 1 is never said of a mask that lost something.
        least = math.floor(self.least_iou * 1e4) / 1e4
        changed = (
            f"{self.num_changed:,} of {counted(self.num_masks, 'mask')} {'is' if self.num_changed == 1 else 'are'}"
        )
        return f"{changed} not quite the same {when}: IoU {least:.4f} at least"


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
    """Trace a mask as one closed line through the centers of its outermost pixels.

    ``cv2.fillPoly``, which fills by the even-odd rule and draws the line itself, restores the mask from it, apart from
    the connecting lines: those between parts are one pixel wide, those to holes mostly lie inside the mask. If a mask
    has more than 256 parts and holes, the smallest are not traced.

    Args:
        mask: bool (H, W) with at least one pixel.

    Returns:
        The points of the line, at least three.
    """
    whole = _joined([_joined(part) for part in _parts(mask.astype(np.uint8), _MAX_RINGS)])
    return whole if len(whole) >= 3 else np.resize(whole, (3, 2))


def redrawn_iou(line: Points, mask: NDArray[np.bool_]) -> float:
    """Return the IoU of a mask, bool (H, W), with what ``cv2.fillPoly`` draws from its outline."""
    (left, top), (right, bottom) = line.min(axis=0), line.max(axis=0) + 1
    drawn = np.zeros((bottom - top, right - left), np.uint8)
    opencv().fillPoly(drawn, [(line - (left, top)).astype(np.int32)], 1)
    num_both = np.count_nonzero(drawn & mask[top:bottom, left:right])
    return num_both / (np.count_nonzero(drawn) + np.count_nonzero(mask) - num_both)


def edges(mask: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Trace each part of a mask just inside the edges of its pixels, with its holes joined to it.

    COCO's convention, in which the pixel in column x reaches from x to x + 1: pycocotools draws the mask again from it,
    pixel by pixel, unless it has more than 10,000 parts and holes, of which the smallest are not traced. So near the
    edge it matters nothing to it how far inside; to readers that cut to whole pixels and draw the outline too, as
    OpenCV does, being inside gives the same pixels again.

    Args:
        mask: bool (H, W).

    Returns:
        The points of each part, (N, 2) float64 pixels (x, y); the last is joined to the first.
    """
    # Twice as large, each pixel has two rows and columns, which tell the left side from the right.
    large = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    parts = [_joined(part) for part in _parts(large, _MAX_SEPARATE)]
    return [(part // 2).astype(np.float64) + np.where(part % 2, _RIGHT, _LEFT) for part in parts]


def _parts(mask: NDArray[np.uint8], most: int) -> list[list[Points]]:
    """Return the rings of each part: its outline, then its holes, through the centers of its outermost pixels."""
    cv2 = opencv()
    lines, tree = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if not lines:
        return []
    parents: list[int] = tree[0, :, 3].tolist()
    largest: Sequence[int] = range(len(lines))
    if len(lines) > most:
        largest = sorted(largest, key=lambda number: -sum(cv2.boundingRect(lines[number])[2:]))[:most]
    rings = {number: lines[number].reshape(-1, 2).astype(np.int64) for number in largest}
    around = {number: [ring] for number, ring in rings.items() if parents[number] < 0}
    for number, ring in rings.items():
        if parents[number] in around:
            around[parents[number]].append(ring)
    return list(around.values())


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
