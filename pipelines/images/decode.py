"""Decode an encoded image to RGB, or say for which reason it cannot be. No I/O and no state: safe from any thread."""

from __future__ import annotations

import hashlib
import time
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import model_validator

from pipelines.images.decode_error import PIL_ERRORS, DecodeError, translated
from pipelines.images.deep_values import GRAY16_MODES, VALUE_MODES, is_deep_color
from pipelines.images.endless_jpeg import has_end, load_without_end
from pipelines.images.headers.jpeg_markers import START_OF_SCAN, jpeg_scans
from pipelines.images.opening import Opened, open_image
from pipelines.images.other_decoders import MAX_BYTES_PER_PIXEL, OtherImage
from pipelines.images.pixels import BAND_PIXELS, Pixels, load
from pipelines.images.tiff_windows import tiff_windows
from pipelines.images.value_range import VALUE_BAND_BYTES, VALUE_BAND_PIXELS, Stretch
from pipelines.settings import Settings
from pipelines.types import Image, ImageRef, Reason

MAX_IMAGE_SIDE = 2**16
"""The model sees an image padded to a square: a longer strip would shrink to nothing, at 100 MB and more of memory."""

_ONE_BYTE_MODES = frozenset({"1", "L", "P"})
# A progressive JPEG has about ten scans. Each is a pass over all pixels, and may be only a few bytes: a small file with
# thousands of them would keep a thread busy for hours.
_MAX_JPEG_SCANS = 100
_BAND_BYTES = 14  # of each pixel of a band


class DecodeLimits(Settings):
    """How large an image may be before it is refused, and how its values become 8 bits."""

    max_image_bytes: int = 200_000_000
    """Encoded size. A collection's odd multi-gigabyte file would otherwise fill a fetch thread's memory."""
    max_image_pixels: int = 178_956_970
    """Width times height, read from the header before any pixel is allocated. Decoding takes 7 bytes a pixel at its
    peak, of TIFF 12 and of WebP 16, so the default is worth 1.3 to 2.9 GB. The default is also the most that Pillow
    itself opens as TIFF, GIF or WebP; a higher limit raises the ceiling of JPEG, PNG and BMP only.
    """
    stretch: Stretch = "percentile"
    """Of pictures whose values are signed, floating-point or of more than 8 bits, and whose file does not say which
    value is black and which white: "percentile" takes the 2nd and the 98th of the picture, "raw" the range of the type.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("max_image_bytes", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        return self


DEFAULT_LIMITS = DecodeLimits()


def peek_size(data: bytes) -> tuple[int, int]:
    """Read an image's size from its header, without decoding pixels.

    Args:
        data: an encoded image, or at least its first kilobytes (WebP and TIFF: all of it).

    Returns:
        (width, height) in pixels. An EXIF orientation of 5-8 may still swap the two.

    Raises:
        DecodeError: ZERO_BYTES, NOT_AN_IMAGE, or a header that is TRUNCATED or CORRUPT.
    """
    size = open_image(data).image.size
    return int(size[0]), int(size[1])


def decoding_bytes(data: bytes, limits: DecodeLimits = DEFAULT_LIMITS) -> int:
    """Estimate the peak memory of decoding an image, in bytes beside the encoded ones, without decoding pixels.

    Measured for each format and mode (tests/reliability/test_bounds_images.py): the image as Pillow holds it, the
    pixels returned, and the decoder's own buffers.

    Args:
        data: an encoded image.
        limits: an image that they refuse takes no memory.

    Raises:
        DecodeError: as for peek_size.
    """
    opened = open_image(data)
    image = opened.image
    num_pixels = image.size[0] * image.size[1]
    if num_pixels > limits.max_image_pixels:
        return 0
    if isinstance(image, OtherImage):
        return 2 * image.num_bytes + num_pixels * 3 + min(num_pixels, VALUE_BAND_PIXELS) * VALUE_BAND_BYTES
    held = 1 if image.mode in _ONE_BYTE_MODES else 2 if image.mode in GRAY16_MODES else 4
    is_deep = is_deep_color(image)
    match image:
        case WebPImageFile():
            of_pixel = 16
        case TiffImageFile():
            of_pixel = held + 8  # Pillow turns it upright while loading, or decodes one strip of 16 bits
        case _ if opened.head is not None and opened.head.has_many_scans:
            of_pixel = held + max(3, 2 * len(image.getbands()))  # progressive: all coefficients, two bytes each
        case GifImageFile():
            of_pixel = 8
        case _ if image.format in ("AVIF", "HEIF"):
            of_pixel = 13  # 8 to 12 with the bands, measured on 12 megapixels with and without alpha
        case _:
            of_pixel = held + 3
    bands = min(num_pixels, BAND_PIXELS) * _BAND_BYTES
    if is_deep or image.mode in VALUE_MODES:
        bands = min(num_pixels, VALUE_BAND_PIXELS) * VALUE_BAND_BYTES
    # The high and the low bytes of deep colors are held apart.
    return num_pixels * (of_pixel + 4 * is_deep) + bands


def decode_image(
    data: bytes, ref: ImageRef, limits: DecodeLimits = DEFAULT_LIMITS, *, enough_px: int | None = None
) -> Image:
    """Decode a JPEG, PNG, WebP, TIFF, BMP or GIF; AVIF or HEIC where a decoder is installed.

    The format is told by the content, never by the file's name.

    The first frame of an animation or multi-page file is taken. Transparent pixels are blended onto white, as viewers
    do: the color stored under them is often garbage. CMYK is converted without a color profile. Values of more than 8
    bits, signed and floating-point ones become 8 bits as `value_range.range_of` decides. CIELAB is refused. What had to
    be decided is told in the image's notes (docs/pictures.md).

    Args:
        data: the encoded image.
        ref: the reference that it was fetched from.
        limits: sizes above which it is refused.
        enough_px: decode a JPEG at 1/2, 1/4 or 1/8 of its size, as long as neither side becomes shorter than this.

    Returns:
        An Image with pixels uint8 (height, width, 3), RGB, 0-255, C-contiguous and writable, its EXIF orientation
        applied and recorded.

    Raises:
        DecodeError: ZERO_BYTES, TOO_MANY_BYTES, NOT_AN_IMAGE, TOO_MANY_PIXELS, TRUNCATED, CORRUPT,
            UNSUPPORTED_MODE or OUT_OF_MEMORY.
    """
    started = time.perf_counter()
    if len(data) > limits.max_image_bytes:
        raise DecodeError(Reason.TOO_MANY_BYTES, f"{len(data)} bytes; max_image_bytes is {limits.max_image_bytes}")
    opened = open_image(data)
    _check_bounds(opened, data, limits)
    image = opened.image
    if enough_px is not None and isinstance(image, ImageFile):
        # Only JPEG can be decoded at a fraction of its size; the other plugins ignore this.
        image.draft(None, (enough_px, enough_px))
    pixels = _load(opened, data, limits, enough_px)
    return Image(
        ref=ref,
        pixels=pixels.rgb,
        exif_orientation=pixels.orientation,
        notes=pixels.notes,
        num_bytes=len(data),
        content_sha256=hashlib.sha256(data).hexdigest(),
        decode_ms=(time.perf_counter() - started) * 1e3,
    )


def decode_windows(data: bytes, ref: ImageRef, limits: DecodeLimits, *, longer_than: int) -> Image | None:
    """Return an image whose pixels are decoded as windows of them are looked at; None if it needs `decode_image`.

    Args:
        data, ref, limits: as for `decode_image`.
        longer_than: an image with no longer side needs `decode_image`; others if their format has no windows.

    Returns:
        An Image whose pixels have a shape, their number of bytes, and windows by slicing, but are no array.

    Raises:
        DecodeError: as for `decode_image`. A window may raise it, too.
    """
    started = time.perf_counter()
    if len(data) > limits.max_image_bytes:
        return None
    opened = open_image(data)
    if not isinstance(opened.image, TiffImageFile) or max(opened.image.size) <= longer_than:
        return None
    _check_bounds(opened, data, limits)
    windows = tiff_windows(opened.image, data)
    if windows is None:
        return None
    return Image(
        ref=ref,
        pixels=cast("NDArray[np.uint8]", windows),
        num_bytes=len(data),
        content_sha256=hashlib.sha256(data).hexdigest(),
        decode_ms=(time.perf_counter() - started) * 1e3,
    )


def _check_bounds(opened: Opened, data: bytes, limits: DecodeLimits) -> None:
    image, head = opened.image, opened.head
    width, height = image.size
    if width * height > limits.max_image_pixels:
        raise DecodeError(
            Reason.TOO_MANY_PIXELS,
            f"{width} x {height} = {width * height} pixels; max_image_pixels is {limits.max_image_pixels}",
        )
    if max(width, height) > MAX_IMAGE_SIDE:
        raise DecodeError(
            Reason.TOO_MANY_PIXELS, f"{width} x {height} pixels; a side may have at most {MAX_IMAGE_SIDE:,}"
        )
    if isinstance(image, OtherImage) and image.num_bytes > MAX_BYTES_PER_PIXEL * limits.max_image_pixels:
        raise DecodeError(
            Reason.TOO_MANY_PIXELS,
            f"{width} x {height} pixels of {image.num_samples} samples are {image.num_bytes} bytes; "
            f"{MAX_BYTES_PER_PIXEL} for each of max_image_pixels = {limits.max_image_pixels} are allowed",
        )
    # A file may hold much more than the first image, and there the bytes of a marker mean nothing.
    if head is not None and head.has_many_scans and data.count(START_OF_SCAN) > _MAX_JPEG_SCANS:
        scans = jpeg_scans(data, head).count
        if scans > _MAX_JPEG_SCANS:
            raise DecodeError(Reason.CORRUPT, f"JPEG: it has {scans} scans; at most {_MAX_JPEG_SCANS} are decoded")


def _load(opened: Opened, data: bytes, limits: DecodeLimits, enough_px: int | None) -> Pixels:
    plugin = type(opened.image) if isinstance(opened.image, ImageFile) else TiffImageFile
    error: Exception = DecodeError(Reason.TRUNCATED, "JPEG: it has no end marker, and pixels are missing")
    try:
        # With zeros behind the place where it is cut, a decoder takes a JPEG for whole.
        if opened.head is None or has_end(data, opened.head):
            return load(opened, data, limits.stretch)
    except PIL_ERRORS as caught:
        error = translated(caught, data, plugin)
        error.__cause__ = caught
    if opened.head is not None and (whole := load_without_end(data, opened.head, enough_px)) is not None:
        return whole
    raise error


__all__ = [
    "DEFAULT_LIMITS",
    "MAX_IMAGE_SIDE",
    "DecodeError",
    "DecodeLimits",
    "decode_image",
    "decode_windows",
    "decoding_bytes",
    "peek_size",
]
