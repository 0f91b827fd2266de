"""Chooses the windows of an image in which a visual prompt is shown enlarged.

A model with a small canvas sees a small object as a few pixels of a large image. Looking at the part around the prompt
gives the object the canvas to itself, as "zoom-in" does in interactive segmentation (f-BRS, arXiv 2001.10331).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.visual import POINT_RADIUS, draw_points

# A smaller region that fills its bounding box is not taken for a box: it may be a point in a tiny image.
_LEAST_BOX_SIDE = 8
# What a prompt that may lie on a part of its object is looked at in: the image, and windows smaller by this, down to a
# share of the image.
_STEP, _LEAST_SHARE = 0.6, 0.2
# A window of fewer pixels shows nothing that a larger one does not.
_LEAST_SIDE = 48
# A mask that reaches so many edges of a window, or all that the image has beyond it, is cut off.
_MOST_EDGES = 3
# Radius of a point, as a share of its window's longer side.
_POINT_SHARE = POINT_RADIUS / 640


@dataclass(frozen=True, slots=True, eq=False)
class CloseUp:
    """A window of an image, and a visual prompt as it is drawn there.

    Attributes:
        top, left: row and column of the window's first pixel in the image.
        region: bool (h, w), the visual prompt in the window, whose size it has.
        is_box: whether the prompt is a box, outside which its object has no pixels.
    """

    top: int
    left: int
    region: NDArray[np.bool_]
    is_box: bool

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the window of an image, (H, W, 3) -> (h, w, 3)."""
        height, width = self.region.shape
        return np.ascontiguousarray(pixels[self.top : self.top + height, self.left : self.left + width])

    def is_filled_by(self, mask: NDArray[np.bool_], image_shape: Sequence[int]) -> bool:
        """Return whether a mask is cut off by the window: reaches most of the edges that are not the image's own.

        Args:
            mask: bool (h, w).
            image_shape: height and width of the image first.
        """
        height, width = self.region.shape
        edges = (
            (self.top > 0, mask[0]),
            (self.left > 0, mask[:, 0]),
            (self.top + height < image_shape[0], mask[-1]),
            (self.left + width < image_shape[1], mask[:, -1]),
        )
        reached = [bool(pixels.any()) for is_inner, pixels in edges if is_inner]
        return len(reached) > 1 and sum(reached) >= min(len(reached), _MOST_EDGES)


def close_ups(region: NDArray[np.bool_], zoom: float, kind: str | None = None) -> list[CloseUp]:
    """Return the windows in which to look for the object that a visual prompt stands for.

    A box holds its object, so one window shows both. A point, a scribble or a mask may lie on a part of it: there are
    windows of several sizes, the whole image the first of them.

    Args:
        region: bool (H, W), the visual prompt at the image's size, not empty.
        zoom: length of the window around a box, as a multiple of the box's longer side, 1 or more.
        kind: one of `visual.REGION_KINDS`. None if it is not known: then a region that fills its bounding box is taken
            for a box if it is not tiny, and one that is as `draw_points` draws a point for a point.
    """
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    top, left, bottom, right = (int(edge) for edge in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    sides = (bottom - top, right - left)
    fills = min(sides) >= _LEAST_BOX_SIDE and bool(region[top:bottom, left:right].all())
    if kind == "box" or (kind is None and fills):
        return [_window(region, ((top + bottom) / 2, (left + right) / 2), zoom * max(sides), is_box=True)]
    center = (_middle(top, bottom, region.shape[0]), _middle(left, right, region.shape[1]))
    is_point = max(sides) <= 2 * POINT_RADIUS + 1 and (kind == "point" or (kind is None and _is_drawn(region, center)))
    whole = max(region.shape)
    least = max(_LEAST_SHARE * whole, _LEAST_SIDE, 0 if is_point else zoom * max(sides))
    lengths = [float(whole)]
    while (length := _STEP * lengths[-1]) >= least:
        lengths.append(length)
    windows = [_window(region, center, length) for length in lengths]
    return [_with_point(one, center) for one in windows] if is_point else windows


def _middle(start: int, end: int, side: int) -> float:
    """Return the middle of a disc that reaches from a row or column to another, of which an edge may cut off a part."""
    if start == 0 and POINT_RADIUS < end < side:
        return end - POINT_RADIUS - 0.5
    if end == side and 0 < start < side - POINT_RADIUS:
        return start + POINT_RADIUS + 0.5
    return (start + end) / 2


def _is_drawn(region: NDArray[np.bool_], center: tuple[float, float]) -> bool:
    """Return whether a region is a point as it is drawn, or a single pixel."""
    height, width = region.shape
    point = draw_points([(center[1] - 0.5, center[0] - 0.5)], (height, width))
    return bool(region.sum() == 1 or np.array_equal(region, point))


def _window(region: NDArray[np.bool_], center: tuple[float, float], length: float, *, is_box: bool = False) -> CloseUp:
    """Return the square window of a length around a place, moved into the image and cut off where it is narrower."""
    starts, ends = [], []
    for middle, side in zip(center, region.shape, strict=True):
        taken = min(side, max(round(length), _LEAST_SIDE))
        start = min(max(0, round(middle - taken / 2)), side - taken)
        starts.append(start)
        ends.append(start + taken)
    return CloseUp(starts[0], starts[1], region[starts[0] : ends[0], starts[1] : ends[1]], is_box)


def _with_point(window: CloseUp, center: tuple[float, float]) -> CloseUp:
    """Draw a point anew, so that it is as small in its window as points are in a whole image."""
    size_hw, radius = window.region.shape, _POINT_SHARE * max(window.region.shape)
    place = (center[1] - 0.5 - window.left, center[0] - 0.5 - window.top)
    return CloseUp(
        window.top, window.left, draw_points([place], (size_hw[0], size_hw[1]), max(1, radius)), is_box=False
    )
