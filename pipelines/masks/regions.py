"""Visual prompts (regions): parse them from table values, describe them, and check them against an image's size.

No I/O, and no pixels are needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.bounded_json import load_json
from pipelines.masks import rle
from pipelines.masks.polygons import check_coordinates
from pipelines.redaction import counted, quoted
from pipelines.types import REGION_KINDS, Prompt, Region, RegionKind, Rle

_NUMBERS_IN_TEXT = 4
# Drawing a region takes time and memory with its coordinates; no real outline has nearly as many.
_MAX_NUMBERS = 100_000
_MIN_VERTICES = {"point": 1, "scribble": 2, "polygon": 3}
_DECIMAL = re.compile(r"[+-]?(0|[1-9]\d*)(,\d+)?")
# 10,05 and 10,123456 are one number each: no image is so large, and nobody writes a whole number as 05.
_FRACTION = re.compile(r",(0\d|\d{6})")


def read_region(
    kind: str, *, coordinates: Any = None, segmentation: Any = None, has_decimal_commas: bool = False
) -> Region:
    """Parse a region from a table's values.

    Args:
        kind: point, box, scribble, polygon or mask, in any case.
        coordinates: absolute pixels, as flat numbers, ``[[x, y], ...]``, or text: a JSON list, or numbers separated by
            spaces, commas or semicolons. A box is x, y, width, height. Ignored for a mask.
        segmentation: COCO RLE, ``{"size": [h, w], "counts": str or run lengths}`` or the same as JSON text; for a mask.
        has_decimal_commas: whether commas in the text may be decimal signs, as in tables whose columns semicolons part.

    Raises:
        ValueError: an unknown kind, a wrong number of coordinates, commas that may part numbers or be decimal signs,
            NaN, a box without area, a polygon on one line or with a vertex far beyond any image, or an empty or broken
            mask; the message says which.
    """
    word = kind.strip().lower()
    known = next((known for known in REGION_KINDS if known == word), None)
    if known is None:
        raise ValueError(f"unknown kind {quoted(kind)}; known: {', '.join(REGION_KINDS)}")
    if known == "mask":
        return Region(kind=known, mask=_read_mask(segmentation))
    return Region(kind=known, coordinates=_read_coordinates(known, coordinates, has_decimal_commas))


def describe_region(region: Region) -> str:
    """Describe a region in a few words, e.g. ``box 12,30,40,50``, for the table's ``prompt`` column."""
    if region.mask is not None:
        return "mask in " + ",".join(f"{number:g}" for number in rle.bbox_xywh(region.mask))
    shown = ",".join(f"{round(number, 1):g}" for number in region.coordinates[:_NUMBERS_IN_TEXT])
    num_vertices = len(region.coordinates) // 2
    more = f",... ({num_vertices} points)" if len(region.coordinates) > _NUMBERS_IN_TEXT else ""
    return f"{region.kind} {shown}{more}"


def check_region(prompt: Prompt, size_hw: tuple[int, int]) -> str | None:
    """Explain why a visual prompt does not fit its image; None if it does, or if the prompt is text.

    Points and scribbles must lie entirely inside the image, its right and lower edges included. Boxes and polygons must
    overlap it (the rest is clipped). A mask must have the image's size.

    Args:
        prompt: as read from a table.
        size_hw: (height, width) of the image in pixels, after EXIF orientation.
    """
    region = prompt.region
    if region is None:
        return None
    height, width = size_hw
    of_image = f"of its image, {width} x {height} pixels (width x height)"
    if region.mask is not None:
        mask_height, mask_width = region.mask.size_hw
        fits = (mask_height, mask_width) == (height, width)
        return None if fits else f"mask is {mask_width} x {mask_height}, not the size {of_image}"
    if region.kind in ("point", "scribble"):
        for x, y in _vertices(region.coordinates):
            if not (0 <= x <= width and 0 <= y <= height):
                return f"{region.kind} {x:g},{y:g} lies outside {of_image}"
        return None
    left, top, right, bottom = extent(region)
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return f"{region.kind} lies outside {of_image}"
    return None


def extent(region: Region) -> tuple[float, float, float, float]:
    """Return left, top, right, bottom of a region, in pixels of its image, beyond which it may reach."""
    if region.mask is not None or region.kind == "box":
        x, y, width, height = rle.bbox_xywh(region.mask) if region.mask is not None else region.coordinates
        return x, y, x + width, y + height
    xs, ys = region.coordinates[::2], region.coordinates[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def _vertices(coordinates: Sequence[float]) -> Iterator[tuple[float, float]]:
    return zip(coordinates[::2], coordinates[1::2], strict=True)


def _read_coordinates(kind: RegionKind, value: Any, has_decimal_commas: bool) -> tuple[float, ...]:
    if isinstance(value, str):
        is_json = value.lstrip().startswith("[")
        value = _load_json(value, "coordinates") if is_json else _split(_with_points(kind, value, has_decimal_commas))
    if not value:
        raise ValueError("has no coordinates")
    if not isinstance(value, list):
        raise ValueError(f"coordinates are {type(value).__name__}, not a list of numbers")
    flat = _flatten(value)
    if len(flat) > _MAX_NUMBERS:
        raise ValueError(f"{len(flat):,} coordinates are more than the {_MAX_NUMBERS:,} that a {kind} may have")
    numbers = _floats(flat)
    if kind != "point" and max(map(abs, numbers)) <= 1 and any(number % 1 for number in numbers):
        raise ValueError(f"{kind} lies within one pixel: coordinates are absolute pixels, not fractions of the image")
    if kind == "box":
        _check_box(numbers)
    elif len(numbers) % 2 or len(numbers) < 2 * _MIN_VERTICES[kind]:
        raise ValueError(
            f"{kind} needs x, y of at least {_MIN_VERTICES[kind]} point(s); got {counted(len(numbers), 'number')}"
        )
    elif kind == "polygon":
        check_coordinates(np.array(numbers))
        if _is_on_one_line(numbers):
            raise ValueError("polygon has no area: its corners lie on one line")
    return tuple(numbers)


def _check_box(numbers: Sequence[float]) -> None:
    if len(numbers) != 4:
        raise ValueError(f"box needs x, y, width, height; got {counted(len(numbers), 'number')}")
    if numbers[2] <= 0 or numbers[3] <= 0:
        raise ValueError(f"box has no area: width {numbers[2]:g}, height {numbers[3]:g}")


def _is_on_one_line(numbers: Sequence[float]) -> bool:
    (x0, y0), *others = _vertices(numbers)
    # The direction to the first corner that differs; cross products with it are zero for points on the same line.
    away = next(((x - x0, y - y0) for x, y in others if (x, y) != (x0, y0)), (0.0, 0.0))
    return all(away[0] * (y - y0) == away[1] * (x - x0) for x, y in others)


def _floats(values: Sequence[Any]) -> list[float]:
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        raise ValueError("coordinates hold something that is not a number")
    try:
        numbers = [float(value) for value in values]
    except OverflowError as error:
        raise ValueError("coordinates hold a number that is too large") from error
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("coordinates hold NaN or infinity")
    return numbers


def _with_points(kind: RegionKind, text: str, has_decimal_commas: bool) -> str:
    """Return a text of coordinates with points for decimal commas.

    Raises:
        ValueError: a comma may part x from y as well.
    """
    words = [word for part in re.split(r"[\s;]+", text) if (word := part.strip(","))]
    if "," not in "".join(words) or not all(map(_DECIMAL.fullmatch, words)):
        return text
    if kind == "box":  # of four words with commas nothing else is a box
        is_decimal = len(words) == 4
    else:
        is_decimal = has_decimal_commas and not len(words) % 2 and len(words) >= 2 * _MIN_VERTICES[kind]
        if is_decimal and all("," in word for word in words) and not any(map(_FRACTION.search, words)):
            raise ValueError(
                f"coordinates {quoted(text)} are {len(words)} points or, with decimal commas, {len(words) // 2}: write "
                f"decimals with a point ({quoted(' '.join(words[:2]).replace(',', '.'))}), or all numbers with blanks "
                "between them"
            )
    return " ".join(words).replace(",", ".") if is_decimal else text


def _split(text: str) -> list[float]:
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise ValueError(f"coordinates hold something that is not a number: {quoted(text)}") from error


def _flatten(value: list[Any]) -> list[Any]:
    """Flatten [[x, y], ...] or COCO's [[x, y, x, y, ...]] to [x, y, ...]; a flat list is returned as it is."""
    if not any(isinstance(item, list) for item in value):
        return value
    if all(isinstance(item, list) and len(item) == 2 for item in value):
        return [number for pair in value for number in pair]
    if len(value) == 1:
        return list(value[0])
    raise ValueError("coordinates are neither flat numbers nor pairs of x, y (one polygon to a row)")


def _read_mask(value: Any) -> Rle:
    if isinstance(value, str):
        value = _load_json(value, "segmentation")
    if not value:
        raise ValueError('mask has no segmentation; give {"size": [h, w], "counts": "..."}')
    if not isinstance(value, Mapping) or not isinstance(value.get("size"), list):
        raise ValueError('segmentation is not {"size": [h, w], "counts": "..."}')
    size_hw, counts = tuple(value["size"]), value.get("counts")
    if isinstance(counts, bytes):  # as pycocotools encodes
        counts = counts.decode("ascii", "replace")
    if isinstance(counts, str):
        mask = Rle(size_hw=size_hw, counts=counts)
    elif isinstance(counts, list) and all(isinstance(run, int) for run in counts):
        mask = rle.from_runs(size_hw, counts)
    else:
        raise ValueError("segmentation counts are neither RLE text nor a list of run lengths")
    if rle.area(mask) == 0:
        raise ValueError("mask is empty")
    return mask


def _load_json(text: str, column: str) -> Any:
    try:
        return load_json(text)
    except ValueError as error:
        raise ValueError(f"{column} is not JSON: {error}") from error
