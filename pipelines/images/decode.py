"""Decode an encoded image to RGB, or say for which reason it cannot be. No I/O and no state: safe from any thread."""

from __future__ import annotations

import hashlib
import io
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import model_validator

from pipelines.images.cut_short import ends_early
from pipelines.images.tag_bounds import MAX_EXIF_BYTES, holds_too_much, jpeg_exif
from pipelines.settings import Settings
from pipelines.types import Image, ImageRef, Reason

# Exceptions that Pillow raises on broken files: OSError, SyntaxError and ValueError deliberately, the others escape
# from its parsers. DecompressionBombError derives from none of them.
_PIL_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    MemoryError,
    PilImage.DecompressionBombError,
)

# The plugin is chosen here, not by PIL.Image.open, which would hide why a file is broken ("cannot identify"), try
# formats that are not offered, and impose one process-wide pixel limit.
_SIGNATURES: tuple[tuple[bytes, type[ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"II+\0", TiffImageFile),
    (b"MM\0+", TiffImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
)

MAX_IMAGE_SIDE = 2**16
"""The model sees an image padded to a square: a longer strip would shrink to nothing, at 100 MB and more of memory."""

_EXIF_ORIENTATION = 0x0112
_TIFF_BITS_PER_SAMPLE = 258
_TIFF_PHOTOMETRIC = 262
_WHITE_IS_ZERO = 0

# Pillow's modes whose values have a known range. Float, 32-bit integer and CIELAB modes are left out.
_RGB_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_ONE_BYTE_MODES = frozenset({"1", "L", "P"})
_GRAY16_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})

# A progressive JPEG has about ten scans. Each is a pass over all pixels, and may be only a few bytes: a small file with
# thousands of them would keep a thread busy for hours.
_MAX_JPEG_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

# For each EXIF orientation, the view of an upright (H, W, 3) array that has the layout of the stored pixels. Decoded
# pixels are written through it, so that turning them takes no second array.
_UPRIGHT: Mapping[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}
_SIDES_SWAPPED = (5, 6, 7, 8)
# Pixels are converted in bands of rows: converting takes some 14 bytes a pixel, which bands keep from adding up.
_BAND_PIXELS = 2**19
_BAND_BYTES = 14  # of each pixel of a band


class DecodeLimits(Settings):
    """How large an image may be before it is refused."""

    max_image_bytes: int = 200_000_000
    """Encoded size. A collection's odd multi-gigabyte file would otherwise fill a fetch thread's memory."""
    max_image_pixels: int = 178_956_970
    """Width times height, read from the header before any pixel is allocated. Decoding takes 7 bytes a pixel at its
    peak, of TIFF 12 and of WebP 16, so the default is worth 1.3 to 2.9 GB. The default is also the most that Pillow
    itself opens as TIFF, GIF or WebP; a higher limit raises the ceiling of JPEG, PNG and BMP only.
    """

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("max_image_bytes", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        return self


DEFAULT_LIMITS = DecodeLimits()


class DecodeError(Exception):
    """An image cannot be decoded.

    Attributes:
        reason: one of the closed list of reasons.
        message: details for a person.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        """Create the error; both values go to Exception, so that it survives pickling between processes."""
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        """Return ``reason: message``."""
        return f"{self.reason}: {self.message}"


def peek_size(data: bytes) -> tuple[int, int]:
    """Read an image's size from its header, without decoding pixels.

    Args:
        data: an encoded image, or at least its first kilobytes (WebP and TIFF: all of it).

    Returns:
        (width, height) in pixels. An EXIF orientation of 5-8 may still swap the two.

    Raises:
        DecodeError: ZERO_BYTES, NOT_AN_IMAGE, or a header that is TRUNCATED or CORRUPT.
    """
    size = _open(data).size
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
    image = _open(data)
    num_pixels = image.size[0] * image.size[1]
    if num_pixels > limits.max_image_pixels:
        return 0
    held = 1 if image.mode in _ONE_BYTE_MODES else 2 if image.mode in _GRAY16_MODES else 4
    match image:
        case WebPImageFile():
            of_pixel = 16
        case TiffImageFile():
            of_pixel = held + 8  # Pillow turns it upright while loading, or decodes one strip of 16 bits
        case JpegImageFile() if data.count(_START_OF_SCAN) > 1:
            of_pixel = held + max(3, 2 * len(image.getbands()))  # progressive: all coefficients, two bytes each
        case GifImageFile():
            of_pixel = 8
        case _:
            of_pixel = held + 3
    return num_pixels * of_pixel + min(num_pixels, _BAND_PIXELS) * _BAND_BYTES


def decode_image(
    data: bytes, ref: ImageRef, limits: DecodeLimits = DEFAULT_LIMITS, *, enough_px: int | None = None
) -> Image:
    """Decode a JPEG, PNG, WebP, TIFF, BMP or GIF; the format is told by the content, never by the file's name.

    The first frame of an animation or multi-page file is taken. Transparent pixels are blended onto white, as viewers
    do: the colour stored under them is often garbage. 16-bit grey is scaled to 8 bits (65535 becomes 255); of 16-bit
    colour the high byte is kept. CMYK is converted without a colour profile. Float, 32-bit integer and CIELAB pixels
    are refused, since nothing says which value is white.

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
    image = _open(data)
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
    # Within compressed data 0xFF is followed by 0x00 or a restart marker, so only real markers are counted.
    if isinstance(image, JpegImageFile) and (scans := data.count(_START_OF_SCAN)) > _MAX_JPEG_SCANS:
        raise DecodeError(Reason.CORRUPT, f"JPEG: it has {scans} scans; at most {_MAX_JPEG_SCANS} are decoded")
    if enough_px is not None:
        # Only JPEG can be decoded at a fraction of its size; the other plugins ignore this.
        image.draft(None, (enough_px, enough_px))
    try:
        pixels, orientation = _load(image)
    except _PIL_ERRORS as error:
        raise _decode_error(error, data, type(image)) from error
    return Image(
        ref=ref,
        pixels=pixels,
        exif_orientation=orientation,
        num_bytes=len(data),
        content_sha256=hashlib.sha256(data).hexdigest(),
        decode_ms=(time.perf_counter() - started) * 1e3,
    )


def _open(data: bytes) -> ImageFile:
    if not data:
        raise DecodeError(Reason.ZERO_BYTES, "the file is empty")
    plugin = _plugin(data)
    if plugin is None:
        raise DecodeError(
            Reason.NOT_AN_IMAGE, f"not a JPEG, PNG, WebP, TIFF, BMP or GIF file: it begins with {data[:12]!r}"
        )
    _check_tags(data, plugin)
    try:
        return plugin(io.BytesIO(data))
    except _PIL_ERRORS as error:
        raise _decode_error(error, data, plugin) from error


def _check_tags(data: bytes, plugin: type[ImageFile]) -> None:
    """Refuse an image whose tags claim far more bytes than the file has: Pillow would copy them all on opening it."""
    block = data if plugin is TiffImageFile else jpeg_exif(data) if plugin is JpegImageFile else b""
    if holds_too_much(block) or (plugin is JpegImageFile and len(block) > MAX_EXIF_BYTES):
        raise DecodeError(Reason.CORRUPT, f"{plugin.format}: its tags claim far more bytes than there are")


def _plugin(data: bytes) -> type[ImageFile] | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    return next((plugin for signature, plugin in _SIGNATURES if data.startswith(signature)), None)


def _load(image: ImageFile) -> tuple[NDArray[np.uint8], int]:
    """Return upright RGB pixels, and the EXIF orientation as found."""
    if image.mode not in _RGB_MODES | _GRAY16_MODES:
        raise DecodeError(Reason.UNSUPPORTED_MODE, f"pixels of mode {image.mode} have no agreed 8 bit range")
    # A PNG may keep its EXIF behind the pixels, so it is read after loading; loading a TIFF turns it upright and
    # drops the tag, so there it is read before.
    found = _orientation(image) if isinstance(image, TiffImageFile) else None
    image.load()
    left = _orientation(image)
    turn = _UPRIGHT.get(left)
    (width, height), is_on_its_side = image.size, left in _SIDES_SWAPPED
    pixels = np.empty((width, height, 3) if is_on_its_side else (height, width, 3), np.uint8)
    as_found = turn(pixels) if turn else pixels
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        as_found[top:bottom] = _rgb(image, image.crop((0, top, width, bottom)))
    return pixels, left if found is None else found


def _rgb(image: ImageFile, band: PilImage.Image) -> NDArray[np.uint8]:
    """Return some rows of an image as RGB: uint8 (rows, width, 3)."""
    if image.mode in _GRAY16_MODES:
        band = _gray_from_16_bit(image, band)
    elif image.has_transparency_data:
        band = _over_white(band)
    return np.asarray(band.convert("RGB"))


def _orientation(image: ImageFile) -> int:
    if _has_vast_exif(image):
        return 1
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _PIL_ERRORS:  # a broken EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _has_vast_exif(image: ImageFile) -> bool:
    """Return whether an image's EXIF block is larger than any real one, or its tags claim far more than it has."""
    block = image.info.get("exif") or b""
    # ImageMagick stores a PNG's EXIF as hex digits in a text chunk, behind three header lines; Pillow reads that, too.
    if not block and isinstance(text := image.info.get("Raw profile type exif"), str):
        try:
            block = bytes.fromhex("".join(text.split("\n")[3:]))
        except ValueError:
            return False
    return len(block) > MAX_EXIF_BYTES or holds_too_much(bytes(block))


def _over_white(image: PilImage.Image) -> PilImage.Image:
    # Pillow converts La (premultiplied alpha) to nothing but LA.
    straight = image.convert("LA") if image.mode == "La" else image
    rgba = straight.convert("RGBA")
    canvas = PilImage.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba.getchannel("A"))
    return canvas


def _gray_from_16_bit(image: ImageFile, band: PilImage.Image) -> PilImage.Image:
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    # Pillow unpacks 12-bit samples into 16 bits without scaling them.
    top = 4095 if tags.get(_TIFF_BITS_PER_SAMPLE) == (12,) else 65535
    table = np.minimum((np.arange(65536) * 255 + top // 2) // top, 255).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:
        table = 255 - table
    return PilImage.fromarray(table[np.asarray(band)])


def _decode_error(error: Exception, data: bytes, plugin: type[ImageFile]) -> DecodeError:
    """Translate an exception of Pillow into a reason."""
    # Pillow has no exception classes for these cases: its messages, and the file itself, have to tell.
    words = str(error).lower()
    if isinstance(error, PilImage.DecompressionBombError):
        reason = Reason.TOO_MANY_PIXELS
    elif isinstance(error, MemoryError) or "out of memory" in words:
        reason = Reason.OUT_OF_MEMORY
    elif "truncated" in words or ends_early(data, plugin):
        reason = Reason.TRUNCATED
    elif "unsupported" in words or "unknown pixel mode" in words:
        reason = Reason.UNSUPPORTED_MODE
    else:
        reason = Reason.CORRUPT
    name = plugin.format or plugin.__name__
    return DecodeError(reason, f"{name}: {type(error).__name__}: {error}")
