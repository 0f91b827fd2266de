"""Pixels of more than 8 bits, of signed or of floating-point values: which value is black, which white, and what they
are as RGB.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.images.decode_error import DecodeError
from pipelines.types import PixelNote, Reason

Stretch = Literal["percentile", "raw"]

PERCENTILES = (2.0, 98.0)
# Values are sampled on a grid of at most so many pixels: enough for percentiles of any picture.
_MAX_SAMPLED_PIXELS = 2**20
VALUE_BAND_PIXELS = 2**17
VALUE_BAND_BYTES = 96
"""Bytes that converting takes for each pixel of a band of rows, of VALUE_BAND_PIXELS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Values:
    """Pixels as a file holds them.

    Attributes:
        size: (width, height) in pixels.
        dtype: type of the values.
        rows: returns the rows from one to another: (rows, width, samples), of ``dtype``.
        colors: positions of the samples to be shown: one (gray), or three (red, green, blue).
        alpha: position of the opacity; None where there is none.
        num_samples: how many samples the file has of each pixel.
        bits: bits of an unsigned value, as the file declares them.
        limits: the values of black and white that the file states, None where it states none.
        blank: the value of pixels that have none, for each of ``colors``; None where there is no such value. A value
            that is not finite, or the largest of its floating-point type, is blank in any case.
        is_white_zero: whether small values are bright.
    """

    size: tuple[int, int]
    dtype: np.dtype[Any]
    rows: Callable[[int, int], NDArray[Any]]
    colors: tuple[int, ...] = (0,)
    alpha: int | None = None
    num_samples: int = 1
    bits: int = 16
    limits: tuple[float, float] | None = None
    blank: tuple[float, ...] | None = None
    is_white_zero: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueRange:
    """Which value is black, which white, and how that was found out; None if nothing had to be."""

    black: float
    white: float
    note: PixelNote | None = None


def range_of(values: Values, stretch: Stretch) -> ValueRange:
    """Decide which value is black and which is white.

    In this order: what the file states; for floating-point values within 0 and 1 just these; for unsigned 16-bit values
    that reach into the upper three quarters of their range, that range; otherwise the 2nd and the 98th percentile of
    all color samples together, or with "raw" the range of the type.

    Raises:
        DecodeError: UNSUPPORTED_MODE for floating-point values beyond 0 and 1 under "raw": their type has no range.
    """
    least, most = _extremes(values)
    if values.limits is not None and values.limits[0] <= least and most <= values.limits[1]:
        return ValueRange(black=values.limits[0], white=values.limits[1], note=PixelNote.RANGE_FROM_TAG)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        whole = float(2**values.bits - 1)
        # A declared depth of less than 16 bits is a range by itself.
        if stretch == "raw" or values.bits < 16 or most >= 2**14 or most == 0:
            return ValueRange(black=0.0, white=whole)
    elif values.dtype.kind == "f":
        if least >= 0 and most <= 1:
            return ValueRange(black=0.0, white=1.0)
        if stretch == "raw":
            raise DecodeError(
                Reason.UNSUPPORTED_MODE,
                f"floating-point values from {least:g} to {most:g} have no agreed 8 bit range; "
                'label.decode.stretch = "percentile" takes that of the picture',
            )
    elif stretch == "raw":
        of_type = np.iinfo(values.dtype)
        return ValueRange(black=float(of_type.min), white=float(of_type.max))
    sampled = _sampled(values)
    black, white = (float(one) for one in np.percentile(sampled, PERCENTILES)) if sampled.size else (0.0, 1.0)
    if black == white:  # nearly all pixels are alike
        black, white = least, most
    return ValueRange(black=black, white=max(white, math.nextafter(black, math.inf)), note=PixelNote.STRETCHED)


def write_rgb(values: Values, within: ValueRange, target: NDArray[np.uint8]) -> None:
    """Convert all pixels.

    Args:
        values: the pixels.
        within: which values are black and white; others are clipped.
        target: uint8 (height, width, 3), written.
    """
    (width, height), table, opaque = values.size, _table(values, within), _most_opaque(values)
    for top, bottom in _bands(width, height):
        shown = _shown(values, top, bottom)
        gray = _gray(shown, within.black, within.white, values.is_white_zero) if table is None else table.take(shown)
        if (blank := _blank(shown, values)) is not None:
            gray[blank] = 255
        if opaque and values.alpha is not None:
            alpha = values.rows(top, bottom)[..., values.alpha : values.alpha + 1].astype(np.float32) / opaque
            gray = (gray * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
        for color in range(3):  # much faster than to have one gray spread over three colors
            target[top:bottom, :, color] = gray[..., min(color, gray.shape[2] - 1)]


def is_like_opacity(values: Values) -> bool:
    """Return whether the sample tagged as opacity is one: of most pixels it is none or all, and not none of all.

    Files of satellites and drones often have near infrared there.
    """
    (width, height), opaque, num_extreme = values.size, _most_opaque(values), 0
    for top, bottom in _bands(width, height):
        alpha = values.rows(top, bottom)[..., values.alpha]
        num_extreme += int(((alpha == 0) | (alpha == opaque)).sum())
    return opaque > 0 and 2 * num_extreme >= width * height


def _most_opaque(values: Values) -> float:
    """Return the value of full opacity: the largest of the type, or that of the picture where it is far below."""
    if values.alpha is None:
        return 0.0
    most = max(float(values.rows(top, bottom)[..., values.alpha].max()) for top, bottom in _bands(*values.size))
    largest = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else 1.0
    return largest if largest / 4 <= most <= largest else most


def _bands(width: int, height: int) -> list[tuple[int, int]]:
    rows = max(1, VALUE_BAND_PIXELS // width)
    return [(top, min(height, top + rows)) for top in range(0, height, rows)]


def _shown(values: Values, top: int, bottom: int) -> NDArray[Any]:
    """Return the color samples of some rows: (rows, width, colors)."""
    rows, colors = values.rows(top, bottom), values.colors
    if colors == tuple(range(len(colors))):
        return rows[..., : len(colors)]  # a view, where the positions below would make a copy
    return rows[..., list(colors)]


def _extremes(values: Values) -> tuple[float, float]:
    """Return the least and the most color value, blank pixels left out."""
    least, most = math.inf, -math.inf
    for top, bottom in _bands(*values.size):
        shown = _shown(values, top, bottom)
        if (blank := _blank(shown, values)) is not None:
            shown = shown[~blank]
        if shown.size:
            least, most = min(least, float(shown.min())), max(most, float(shown.max()))
    return (least, most) if least <= most else (0.0, 1.0)


def _sampled(values: Values) -> NDArray[Any]:
    """Return the color values of the pixels on a grid, blank ones left out: (N,)."""
    width, height = values.size
    step = max(1, math.ceil(math.sqrt(width * height / _MAX_SAMPLED_PIXELS)))
    found = []
    for top, bottom in _bands(width, height):
        shown = _shown(values, top, bottom)[-top % step :: step, ::step]  # rows of the grid, in whichever band they are
        blank = _blank(shown, values)
        found.append(shown.reshape(-1) if blank is None else shown[~blank].reshape(-1))
    return np.concatenate(found)


def _blank(shown: NDArray[Any], values: Values) -> NDArray[np.bool_] | None:
    """Return which pixels have no value: bool (rows, width), or None if none can be without."""
    # The largest value of its type, below zero or above, is how many programs write that a pixel has none.
    blank = None if shown.dtype.kind != "f" else ~(np.abs(shown) < np.finfo(shown.dtype).max).all(axis=-1)
    if values.blank is not None and _are_values_of(shown.dtype, values.blank):
        alike = (shown == np.array(values.blank).astype(shown.dtype)).all(axis=-1)
        blank = alike if blank is None else blank | alike
    return blank


def _are_values_of(dtype: np.dtype[Any], numbers: tuple[float, ...]) -> bool:
    """Return whether a type holds some numbers: files of unsigned values name NaN or -9999 as their blank one."""
    if dtype.kind == "f":
        return True
    return all(np.iinfo(dtype).min <= number <= np.iinfo(dtype).max and number == int(number) for number in numbers)


def _table(values: Values, within: ValueRange) -> NDArray[np.uint8] | None:
    """Return what each value is as gray, where there are few enough: uint8 (65536,)."""
    if values.dtype.kind != "u" or values.dtype.itemsize > 2:
        return None
    return _gray_of_all(within.black, within.white, values.is_white_zero)


@functools.lru_cache(maxsize=8)  # most pictures of a collection have the same range
def _gray_of_all(black: float, white: float, is_white_zero: bool) -> NDArray[np.uint8]:
    return _gray(np.arange(2**16), black, white, is_white_zero)


def _gray(shown: NDArray[Any], black: float, white: float, is_white_zero: bool) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = (shown.astype(np.float64) - black) * (255 / (white - black))
    gray = np.clip(np.nan_to_num(scaled) + 0.5, 0, 255.5).astype(np.uint8)
    return 255 - gray if is_white_zero else gray
