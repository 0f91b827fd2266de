"""The values of pixels that Pillow opens but cannot show: more than 8 bits, signed, floating-point."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.images.headers import tiff_tags
from pipelines.images.headers.png_chunks import png_significant_bits
from pipelines.images.opening import as_raw_mode
from pipelines.images.value_range import Values

GRAY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
VALUE_MODES = GRAY16_MODES | {"I", "F"}
"""Pillow's modes of one sample whose values are no 8-bit gray."""

# Below this high byte, colors of 16 bits use a quarter of their range at most.
_DARK_HIGH_BYTE = 64
# Pillow keeps the high byte of a deep color. Read in the other byte order, that is the low one.
_OTHER_ORDER = str.maketrans("BLN", "LBB")


def is_deep_color(image: ImageFile) -> bool:
    """Return whether an image that is not yet loaded has colors of 16 bits, of which Pillow keeps 8."""
    return image.mode not in VALUE_MODES and any(";16" in _raw_mode(tile.args) for tile in image.tile)


def values_of(image: ImageFile, data: bytes, *, is_deep: bool) -> Values | None:
    """Return the values of a loaded image whose 8-bit form would lose or mistake something; None for any other.

    Args:
        image: the loaded image.
        data: the file.
        is_deep: what `is_deep_color` returned before it was loaded.
    """
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    if image.mode in VALUE_MODES or (image.mode == "L" and tiff_tags.is_signed(tags)):
        return _one_sample(image, data, tags)
    if not is_deep or image.mode not in ("RGB", "RGBA"):
        return None
    # The last band of RGBA is opacity, which is no sign of brightness.
    most = max(high for _, high in cast("list[tuple[int, int]]", image.getextrema())[:3])
    if most < _DARK_HIGH_BYTE or "transparency" in image.info:
        return _deep_colors(image, data, tags)
    return None


def _one_sample(image: ImageFile, data: bytes, tags: Any) -> Values:
    dtype = _dtype(image, tags)

    def rows(top: int, bottom: int) -> NDArray[Any]:
        held = np.asarray(image.crop((0, top, image.width, bottom)))
        held = held.astype(held.dtype.newbyteorder("="), copy=False)
        # Pillow holds unsigned values as signed ones, and the other way round for 8 bits.
        return (held.view(dtype) if held.itemsize == dtype.itemsize else held.astype(dtype))[..., None]

    return _described(image, data, tags, dtype=dtype, rows=rows, colors=(0,))


def _dtype(image: ImageFile, tags: Any) -> np.dtype:
    if image.mode == "F":
        return np.dtype(np.float32)
    if image.mode in GRAY16_MODES:
        return np.dtype(np.uint16)
    is_signed, bits = tiff_tags.is_signed(tags), tiff_tags.bits_of(tags)
    return np.dtype(f"{'i' if is_signed else 'u'}{bits // 8}") if bits in (8, 16, 32) else np.dtype(np.int32)


def _deep_colors(image: ImageFile, data: bytes, tags: Any) -> Values:
    """Return colors of 16 bits, their high bytes from the loaded image, their low ones from a second reading."""
    is_gray = isinstance(image, PngImageFile) and _is_gray_with_alpha(data)
    low = as_raw_mode(data, (lambda _: "RGBA") if is_gray else (lambda raw: raw[:-1] + raw[-1].translate(_OTHER_ORDER)))

    def rows(top: int, bottom: int) -> NDArray[Any]:
        box = (0, top, image.width, bottom)
        if is_gray:  # its four bytes are those of gray and opacity, high byte first
            return np.asarray(low.crop(box)).view(">u2").astype(np.uint16)
        high_bytes = np.asarray(image.crop(box)).astype(np.uint16)
        return (high_bytes << np.uint16(8)) | np.asarray(low.crop(box)).astype(np.uint16)

    num_colors = 1 if is_gray else 3
    has_alpha = image.mode == "RGBA"
    return _described(
        image,
        data,
        tags,
        dtype=np.dtype(np.uint16),
        rows=rows,
        colors=tuple(range(num_colors)),
        alpha=num_colors if has_alpha else None,
    )


def _described(image: ImageFile, data: bytes, tags: Any, **facts: Any) -> Values:
    """Add what the file says of its values."""
    blank: Any = None
    if isinstance(image, TiffImageFile):
        limits, bits, blank = tiff_tags.stated_limits(tags), tiff_tags.bits_of(tags), tiff_tags.no_data(tags)
    else:
        significant, bits = png_significant_bits(data), 16
        limits = (0.0, float(2**significant - 1)) if significant and significant < bits else None
        blank = image.info.get("transparency")
    if blank is not None and not isinstance(blank, tuple):
        blank = (blank,) * len(facts["colors"])
    return Values(
        size=image.size,
        limits=limits,
        bits=bits,
        blank=blank,
        is_white_zero=tiff_tags.is_white_zero(tags),
        num_samples=int(tags.get(tiff_tags.SAMPLES_PER_PIXEL, len(facts["colors"]) + (facts.get("alpha") is not None))),
        **facts,
    )


def _is_gray_with_alpha(data: bytes) -> bool:
    return data[25] == 4  # the color type of a PNG's header


def _raw_mode(args: Any) -> str:
    return str(args[0]) if isinstance(args, tuple) else str(args)
