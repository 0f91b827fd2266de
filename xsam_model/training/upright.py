"""Turns pictures upright as their EXIF says."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from PIL import Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

_ORIENTATION = 0x0112
_TURNS: Mapping[int, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Load an opened picture, and return it turned by its EXIF orientation.

    XMP is not asked, which `ImageOps.exif_transpose` does where EXIF has no orientation: browsers and annotation tools
    do not turn a picture by it, so masks drawn on what they show would be upside down.

    Args:
        image: as `Image.open` returns it.

    Raises:
        Whatever Pillow raises on broken pixels. A broken EXIF block says nothing about them: the picture is taken as
        it is.
    """
    if isinstance(image, TiffImageFile):
        image.info.pop("xmp", None)  # loading it turns it, by this if need be
    image.load()  # a PNG may keep its EXIF behind its pixels
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(_exif_block(image))
        value = exif.get(_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, struct.error):
        return 1
    return value if isinstance(value, int) else 1


def _exif_block(image: Image.Image) -> bytes:
    # ImageMagick stores a PNG's EXIF as hex digits in a text chunk, behind three header lines.
    text = image.info.get("Raw profile type exif")
    if "exif" not in image.info and isinstance(text, str):
        return bytes.fromhex("".join(text.split("\n")[3:]))
    return bytes(image.info.get("exif") or b"")
