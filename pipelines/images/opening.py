"""Open an encoded image: choose the decoder by its content, and refuse what would take memory or time before pixels."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipelines.image_formats import optional_decoder, optional_format, unread_format
from pipelines.images.cut_short import ends_early
from pipelines.images.decode_error import PIL_ERRORS, DecodeError, translated
from pipelines.images.headers import tiff_tags
from pipelines.images.headers.jpeg_markers import MAX_EXIF_BYTES, JpegHead, jpeg_head
from pipelines.images.headers.jxl_header import is_jxl
from pipelines.images.headers.png_chunks import is_apple_png
from pipelines.images.headers.tag_bounds import holds_too_much
from pipelines.images.other_decoders import OtherImage, jpeg_xl, other_jpeg, other_tiff
from pipelines.types import Reason

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
# Baseline, extended, progressive; the same two with arithmetic coding.
_DCT_FRAMES = (0xC0, 0xC1, 0xC2, 0xC9, 0xCA)
_NEW_SUBFILE_TYPE, _SUB_IFDS, _DNG_VERSION = 254, 330, 50706
_CANON_RAW = b"CR"
_BIG_ENDIAN_BIG_TIFF = b"MM\0+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An image whose header has been read.

    Attributes:
        image: as Pillow or another decoder holds it; no pixels are decoded.
        head: of a JPEG, what stands before its scans.
    """

    image: ImageFile | OtherImage
    head: JpegHead | None = None


def open_image(data: bytes) -> Opened:
    """Read an image's header.

    Raises:
        DecodeError: ZERO_BYTES, NOT_AN_IMAGE, UNSUPPORTED_MODE, or a header that is TRUNCATED or CORRUPT.
    """
    if not data:
        raise DecodeError(Reason.ZERO_BYTES, "the file is empty")
    plugin = _plugin(data)
    if plugin is None:
        if is_jxl(data):
            return Opened(image=jpeg_xl(data))
        if name := optional_format(data):
            raise DecodeError(Reason.UNSUPPORTED_MODE, f"{name}: pip install 'xsam-label[pictures]' for it to be read")
        if name := unread_format(data):
            raise DecodeError(
                Reason.UNSUPPORTED_MODE, f"{name}: no decoder here reads it; convert it to JPEG, PNG or TIFF"
            )
        raise DecodeError(
            Reason.NOT_AN_IMAGE, f"not a JPEG, PNG, WebP, TIFF, BMP or GIF file: it begins with {data[:12]!r}"
        )
    head = jpeg_head(data) if plugin is JpegImageFile else None
    _check_tags(data, plugin, head)
    if head is not None and _is_beyond_pillow(head):
        return Opened(image=other_jpeg(data, head), head=head)
    if plugin is PngImageFile and is_apple_png(data):
        raise DecodeError(Reason.UNSUPPORTED_MODE, "PNG: Apple's own variant of applications (CgBI)")
    if data.startswith(_BIG_ENDIAN_BIG_TIFF):
        return Opened(image=other_tiff(data, "BigTIFF of the byte order that Pillow mistakes"))
    try:
        image = plugin(io.BytesIO(data))
        is_misread = isinstance(image, TiffImageFile) and _is_misread(image, data)
    except PIL_ERRORS as error:
        if plugin is TiffImageFile and _is_unknown_kind(error) and not ends_early(data, plugin):
            return Opened(image=other_tiff(data, f"{type(error).__name__}: {error}"))
        raise translated(error, data, plugin) from error
    if is_misread:
        return Opened(image=other_tiff(data, "planes, byte order, bands or compression that Pillow mistakes"))
    return Opened(image=image, head=head)


def as_raw_mode(data: bytes, changed: Callable[[str], str]) -> ImageFile:
    """Read an image that Pillow can open once more, with its bytes taken for other ones.

    Args:
        data: the file.
        changed: from the raw mode that Pillow would use to the one to be used instead.

    Raises:
        Exception: one of `PIL_ERRORS`.
    """
    plugin = _plugin(data)
    assert plugin is not None
    image = plugin(io.BytesIO(data))
    image.info.pop("xmp", None)
    tiles = []
    for tile in image.tile:
        if isinstance(tile.args, tuple):
            tiles.append(tile._replace(args=(changed(tile.args[0]), *tile.args[1:])))
        else:
            tiles.append(tile._replace(args=changed(tile.args or image.mode)))
    image.tile = tiles
    image.load()
    return image


def _plugin(data: bytes) -> type[ImageFile] | None:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    known = (plugin for signature, plugin in _SIGNATURES if data.startswith(signature))
    found: type[ImageFile] | None = next(known, None) or optional_decoder(data)
    return found


def _check_tags(data: bytes, plugin: type[ImageFile], head: JpegHead | None) -> None:
    """Refuse an image whose tags claim far more bytes than the file has: Pillow would copy them all on opening it."""
    block = data if plugin is TiffImageFile else head.exif if head else b""
    if holds_too_much(block) or (head is not None and len(block) > MAX_EXIF_BYTES):
        raise DecodeError(Reason.CORRUPT, f"{plugin.format}: its tags claim far more bytes than there are")


def _is_beyond_pillow(head: JpegHead) -> bool:
    is_plain = head.frame in _DCT_FRAMES and head.bits == 8 and head.num_components in (1, 3, 4) and head.height
    return head.bits > 0 and not is_plain


def _is_unknown_kind(error: Exception) -> bool:
    """Return whether Pillow read a TIFF's tags, and found samples, planes or a compression that it does not know."""
    words = ("unknown pixel mode", "unknown data organization", "samples per pixel")
    return isinstance(error.__cause__, LookupError) or any(word in str(error) for word in words)


def _check_pages(image: TiffImageFile, data: bytes) -> None:
    """Refuse files whose first page, which all readers show, is a thumbnail; of camera raw the photograph is a mosaic.

    Raises:
        DecodeError: UNSUPPORTED_MODE.
    """
    is_reduced = int(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0)) & 1
    is_thumbnail = is_reduced and (_SUB_IFDS in image.tag_v2 or _has_second_page(image))
    if _DNG_VERSION in image.tag_v2 or data[8:10] == _CANON_RAW or is_thumbnail:
        raise DecodeError(
            Reason.UNSUPPORTED_MODE,
            "TIFF: its first page is a thumbnail, as in a camera's raw file; save the picture as JPEG, PNG or TIFF",
        )


def _has_second_page(image: TiffImageFile) -> bool:
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def _is_misread(image: TiffImageFile, data: bytes) -> bool:
    """Return whether Pillow would silently read wrong samples, or none.

    It does of 16-bit planes, of big-endian signed and floating-point values that are compressed (it swaps bytes that
    libtiff has swapped), and of colors that are named and are not the first bands. WebP its libtiff does not know.

    Raises:
        DecodeError: UNSUPPORTED_MODE if it is camera raw.
    """
    _check_pages(image, data)
    num_samples = int(image.tag_v2.get(tiff_tags.SAMPLES_PER_PIXEL, 1))
    is_planar = image.tag_v2.get(tiff_tags.PLANAR_CONFIGURATION, 1) == tiff_tags.PLANES and num_samples > 1
    is_swapped = image.tag_v2.prefix == b"MM" and image.mode in ("I", "F") and image.info["compression"] != "raw"
    is_webp = image.info["compression"] == "webp"
    if is_swapped or is_webp or (is_planar and tiff_tags.bits_of(image.tag_v2) > 8):
        return True
    return num_samples > 3 and tiff_tags.color_bands(image.tag_v2, num_samples) != (0, 1, 2)
