"""Draws visual prompts as masks: points, boxes, scribbles and polygons at the original resolution of their image.

Coordinates are absolute pixels, x to the right and y down from the top left corner; the pixel in row r and column c has
its center at x = c, y = r. Masks are bool (height, width).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Radii in pixels of the original image, as in the training of the released weights.
POINT_RADIUS = 10
SCRIBBLE_RADIUS = 5
_TILE_SIDE = 256
_MAX_COORDINATE = 100_000
REGION_KINDS = ("point", "box", "scribble", "polygon", "mask")


def draw_region(
    kind: str, coordinates: Sequence[float], size_hw: tuple[int, int], mask: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Draw a visual prompt of any kind.

    Args:
        kind: "point", "box", "scribble", "polygon" or "mask".
        coordinates: flat list of numbers. point: x, y of one or more points. box: x, y, width, height. scribble and
            polygon: x, y of each vertex in order. mask: none.
        size_hw: (height, width) of the image.
        mask: bool (height, width), for kind "mask" only.

    Returns:
        bool (height, width), never empty.

    Raises:
        ValueError: if the kind is unknown, the coordinates do not form a region, or it lies outside the image.
    """
    if kind == "mask":
        return check_mask(mask, size_hw)
    if kind not in REGION_KINDS:
        raise ValueError(f"unknown kind of visual prompt {kind!r}; known: {', '.join(REGION_KINDS)}")
    numbers = [float(number) for number in coordinates]
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError(f"{kind} has coordinates that are not finite: {numbers}")
    if kind == "box":
        return draw_box(numbers, size_hw)
    if len(numbers) % 2:
        raise ValueError(f"{kind} needs pairs of x, y; got {len(numbers)} numbers")
    vertices = list(zip(numbers[::2], numbers[1::2], strict=True))
    if kind == "point":
        return draw_points(vertices, size_hw)
    return draw_scribble(vertices, size_hw) if kind == "scribble" else draw_polygon(vertices, size_hw)


def draw_points(
    points: Sequence[tuple[float, float]], size_hw: tuple[int, int], radius: float = POINT_RADIUS
) -> NDArray[np.bool_]:
    """Draw a disc (distance <= radius) around every (x, y).

    Raises:
        ValueError: if there is no point, or one lies outside the image.
    """
    if not points:
        raise ValueError("point needs at least one x, y")
    for x, y in points:
        _check_inside("point", x, y, size_hw)
    mask = np.zeros(size_hw, dtype=np.bool_)
    for x, y in points:
        _add_stroke(mask, (x, y), (x, y), radius)
    return mask


def draw_scribble(
    vertices: Sequence[tuple[float, float]], size_hw: tuple[int, int], radius: float = SCRIBBLE_RADIUS
) -> NDArray[np.bool_]:
    """Draw a stroke with round ends along the (x, y) vertices.

    Raises:
        ValueError: if there are fewer than two vertices, or one lies outside the image.
    """
    if len(vertices) < 2:
        raise ValueError(f"scribble needs at least two x, y vertices, got {len(vertices)}")
    for x, y in vertices:
        _check_inside("scribble", x, y, size_hw)
    mask = np.zeros(size_hw, dtype=np.bool_)
    for start, end in itertools.pairwise(vertices):
        _add_stroke(mask, start, end, radius)
    return mask


def draw_box(box_xywh: Sequence[float], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a COCO box, clipped to the image: every pixel that the box touches.

    Args:
        box_xywh: x and y of the top left corner, width and height; (0, 0, W, H) is the whole image.
        size_hw: (height, width) of the image.

    Raises:
        ValueError: if the box has no area or does not intersect the image.
    """
    if len(box_xywh) != 4:
        raise ValueError(f"box needs x, y, width, height; got {len(box_xywh)} numbers")
    x, y, width, height = box_xywh
    if width <= 0 or height <= 0:
        raise ValueError(f"box has no area: width {width:g}, height {height:g}")
    left, top = max(0, math.floor(x)), max(0, math.floor(y))
    right, bottom = min(size_hw[1], math.ceil(x + width)), min(size_hw[0], math.ceil(y + height))
    if left >= right or top >= bottom:
        raise ValueError(f"box {list(box_xywh)} lies outside its image of {_size_text(size_hw)}")
    mask = np.zeros(size_hw, dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def draw_polygon(vertices: Sequence[tuple[float, float]], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a polygon by the even-odd rule, its outline included, clipped to the image.

    Raises:
        ValueError: if there are fewer than three vertices, one is far beyond any image, they are collinear, or no part
            is inside the image.
    """
    if len(vertices) < 3:
        raise ValueError(f"polygon needs at least three x, y vertices, got {len(vertices)}")
    # Pillow draws the outline point by point, also those that are nowhere near the image.
    if (far := max(abs(number) for vertex in vertices for number in vertex)) > _MAX_COORDINATE:
        raise ValueError(f"polygon has a vertex at {far:g}, beyond any image: at most {_MAX_COORDINATE:,}")
    # Rank, not signed area: a self-crossing outline may enclose pixels although its areas cancel out.
    if np.linalg.matrix_rank(np.diff(np.asarray(vertices, dtype=np.float64), axis=0)) < 2:
        raise ValueError("polygon has no area: its vertices lie on one line")
    picture = Image.new("1", (size_hw[1], size_hw[0]))
    ImageDraw.Draw(picture).polygon([(float(x), float(y)) for x, y in vertices], fill=1, outline=1)
    mask = np.asarray(picture, dtype=np.bool_)
    if not mask.any():
        raise ValueError(f"polygon lies outside its image of {_size_text(size_hw)}")
    return mask


def check_mask(mask: NDArray[np.bool_] | None, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask prompt as bool (height, width).

    Raises:
        ValueError: if it is missing, empty, or differs in size from the image.
    """
    if mask is None:
        raise ValueError("a prompt of kind mask needs a mask")
    mask = np.asarray(mask)
    if mask.shape != tuple(size_hw):
        raise ValueError(f"mask has shape {mask.shape}, but its image is {_size_text(size_hw)}")
    mask = mask.astype(np.bool_)
    if not mask.any():
        raise ValueError("mask is empty")
    return mask


def _check_inside(kind: str, x: float, y: float, size_hw: tuple[int, int]) -> None:
    if not (0 <= x <= size_hw[1] and 0 <= y <= size_hw[0]):
        raise ValueError(f"{kind} ({x:g}, {y:g}) lies outside its image of {_size_text(size_hw)}")


def _size_text(size_hw: tuple[int, int]) -> str:
    return f"{size_hw[1]} x {size_hw[0]} pixels (width x height)"


def _add_stroke(mask: NDArray[np.bool_], start: tuple[float, float], end: tuple[float, float], radius: float) -> None:
    """Set every pixel whose center is within `radius` of the segment from `start` to `end`.

    Works in tiles, and only in those that the stroke can reach, because each pixel examined takes some 30 bytes.
    """
    (x0, y0), (x1, y1) = start, end
    top, bottom = max(0, math.floor(min(y0, y1) - radius)), min(mask.shape[0], math.ceil(max(y0, y1) + radius) + 1)
    left, right = max(0, math.floor(min(x0, x1) - radius)), min(mask.shape[1], math.ceil(max(x0, x1) + radius) + 1)
    for row in range(top, bottom, _TILE_SIDE):
        for column in range(left, right, _TILE_SIDE):
            middle = (column + _TILE_SIDE / 2, row + _TILE_SIDE / 2)
            # No pixel of a tile is further than its side from its middle.
            if _distance(*middle, start, end) <= radius + _TILE_SIDE:
                window = mask[row : min(row + _TILE_SIDE, bottom), column : min(column + _TILE_SIDE, right)]
                _add_to_window(window, (column, row), start, end, radius)


def _add_to_window(
    window: NDArray[np.bool_],
    corner: tuple[int, int],
    start: tuple[float, float],
    end: tuple[float, float],
    radius: float,
) -> None:
    """Set the pixels of a window that belong to a stroke; `corner` is its first pixel's x, y in the image."""
    (x0, y0), (x1, y1), (left, top) = start, end, corner
    rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
    dx, dy = x1 - x0, y1 - y0
    # A disc is a stroke of length 0: its divisor becomes 1, and `along` is 0 everywhere.
    along = ((columns - x0) * dx + (rows - y0) * dy) / (dx * dx + dy * dy or 1.0)
    along = np.clip(along, 0.0, 1.0)
    window |= (columns - x0 - along * dx) ** 2 + (rows - y0 - along * dy) ** 2 <= radius**2


def _distance(x: float, y: float, start: tuple[float, float], end: tuple[float, float]) -> float:
    """Return the distance of a point from a segment."""
    (x0, y0), (x1, y1) = start, end
    dx, dy = x1 - x0, y1 - y0
    along = min(1.0, max(0.0, ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy or 1.0)))
    return math.hypot(x - x0 - along * dx, y - y0 - along * dy)
