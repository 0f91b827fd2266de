"""Chooses the parts of an image in which a visual prompt is looked at from near.

A model with a small canvas sees a small object as a few pixels of a large image. Looking at the part around the prompt
gives the object the canvas to itself, as "zoom-in" does in interactive segmentation (f-BRS, arXiv 2001.10331).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

    def num_edges_reached(self, mask: Any, image_shape: Sequence[int]) -> int:
        """Return how many edges of the window a mask reaches, those of the image itself left out.

        Args:
            mask: bool (h, w), a NumPy array or a tensor.
            image_shape: height and width of the image first.
        """
        height, width = self.region.shape
        inner = (
            self.top > 0 and mask[0].any(),
            self.left > 0 and mask[:, 0].any(),
            self.top + height < image_shape[0] and mask[-1].any(),
            self.left + width < image_shape[1] and mask[:, -1].any(),
        )
        return sum(map(bool, inner))


def close_ups(region: NDArray[np.bool_], zoom: float) -> list[CloseUp]:
    """Return the windows in which to look for the object that a visual prompt stands for.

    A box holds its object, so one window shows both. A point, a scribble or a mask may lie on a part of it: there are
    windows of several sizes, the whole image the first of them.

    Args:
        region: bool (H, W), the visual prompt at the image's size, not empty.
        zoom: length of the window around a box, as a multiple of the box's longer side, 1 or more.
    """
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    top, left, bottom, right = (int(edge) for edge in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    sides = (bottom - top, right - left)
    center = ((top + bottom) / 2, (left + right) / 2)
    is_box = min(sides) >= _LEAST_BOX_SIDE and bool(region[top:bottom, left:right].all())
    if is_box:
        return [_window(region, center, zoom * max(sides), is_box=True)]
    is_point = max(sides) <= 2 * POINT_RADIUS + 1
    whole = max(region.shape)
    least = max(_LEAST_SHARE * whole, _LEAST_SIDE, 0 if is_point else zoom * max(sides))
    lengths = [float(whole)]
    while (length := _STEP * lengths[-1]) >= least:
        lengths.append(length)
    windows = [_window(region, center, length) for length in lengths]
    return [_with_point(one, center) for one in windows] if is_point else windows


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
