"""Polygons of annotation files: checked before pycocotools draws them, for it trusts every coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pipelines.masks.rle import MAX_PIXELS, union
from pipelines.types import Rle

MAX_COORDINATE = 100_000
"""Beyond any image, and far below what pycocotools can count with: it ends the process, or fills what it should not."""

# At 40 bytes for each pixel of an outline, drawing takes up to 170 MB.
_MAX_OUTLINE_PX = 2**22


def check_coordinates(numbers: NDArray[np.float64]) -> None:
    """Check that coordinates are finite and not far beyond any image.

    Args:
        numbers: float64, absolute pixels, of any shape.

    Raises:
        ValueError: one is not.
    """
    # NaN fails this comparison too.
    wrong = numbers[~(np.abs(numbers) <= MAX_COORDINATE)]
    if wrong.size:
        raise ValueError(f"polygon has a vertex at {wrong.flat[0]:g}, beyond any image: at most {MAX_COORDINATE:,}")


def from_polygons(polygons: Sequence[Any], size_hw: tuple[int, int]) -> Rle:
    """Draw COCO's polygons, as pycocotools does: a pixel belongs to the union of them if its center does.

    Args:
        polygons: flat lists of x and y in absolute pixels, three points each or more. One of fewer points encloses no
            pixel; it is left out where there is another.
        size_hw: (height, width) of the image.

    Raises:
        ValueError: no polygon has three points, a coordinate is no number or lies beyond any image, or the outlines or
            the image are too large to be drawn.
    """
    height, width = size_hw
    if min(size_hw) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f"an image of {width} x {height} pixels is not drawn on")
    drawn = [polygon for part in polygons if (polygon := _read(part)).size >= 6]
    if not drawn:
        raise ValueError("a polygon is a list of at least three x, y")
    if (length := sum(map(_length, drawn))) > _MAX_OUTLINE_PX:
        raise ValueError(f"its polygons have an outline of {length:,.0f} pixels; at most {_MAX_OUTLINE_PX:,} are drawn")
    parts = coco_mask.frPyObjects([polygon.tolist() for polygon in drawn], height, width)
    return union([Rle(size_hw=(height, width), counts=part["counts"].decode("ascii")) for part in parts])


def _read(part: Any) -> NDArray[np.float64]:
    if not isinstance(part, list) or any(isinstance(number, bool | str) for number in part):
        raise ValueError("a polygon is a list of at least three x, y")
    try:
        polygon = np.asarray(part, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("a polygon is a flat list of x and y") from error
    if polygon.ndim != 1 or polygon.size % 2:
        raise ValueError(f"a polygon of {polygon.size} numbers is no list of x, y")
    check_coordinates(polygon)
    return polygon


def _length(polygon: NDArray[np.float64]) -> float:
    corners = polygon.reshape(-1, 2)
    return float(np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum())
