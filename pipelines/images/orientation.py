"""EXIF orientation: found, and applied while pixels are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.images.decode_error import PIL_ERRORS
from pipelines.images.headers.jpeg_markers import MAX_EXIF_BYTES
from pipelines.images.headers.tag_bounds import holds_too_much

ORIENTATION = 0x0112
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
_BLOCK_ROWS, _BLOCK_COLUMNS = 256, 64
_IN_XMP = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])")


def upright(size: tuple[int, int], orientation: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an array for upright RGB pixels, and its view as stored: (height, width, 3) for the ``size`` given.

    Args:
        size: (width, height) as stored.
        orientation: EXIF orientation, 1 to 8.
    """
    width, height = size
    pixels = np.empty((width, height, 3) if orientation in _SIDES_SWAPPED else (height, width, 3), np.uint8)
    turn = _UPRIGHT.get(orientation)
    return pixels, turn(pixels) if turn else pixels


def write_upright(pixels: NDArray[np.uint8], as_stored: NDArray[np.uint8]) -> None:
    """Write pixels through a view of an upright array.

    Turned ones are written color by color, in blocks that a processor's cache holds: in less than half the time.

    Args:
        pixels: uint8 (height, width, 3) as stored, or (height, width, 1) if they are gray.
        as_stored: what `upright` returned, or some rows of it.
    """
    if as_stored.strides[1:] == pixels.strides[1:]:
        as_stored[:] = pixels
        return
    height, width = pixels.shape[:2]
    for top in range(0, height, _BLOCK_ROWS):
        for left in range(0, width, _BLOCK_COLUMNS):
            block = np.s_[top : top + _BLOCK_ROWS, left : left + _BLOCK_COLUMNS]
            for color in range(3):
                as_stored[block][..., color] = pixels[block][..., min(color, pixels.shape[2] - 1)]


def orientation_of(image: ImageFile) -> int:
    """Return the EXIF orientation of an image, 1 where it has none. XMP is not asked: see `turns_in_xmp`."""
    if isinstance(image, TiffImageFile):
        value = image.tag_v2.get(ORIENTATION, 1)
    else:
        try:
            block = _exif_block(image)
            if not block or len(block) > MAX_EXIF_BYTES or holds_too_much(block):
                return 1
            # Not image.getexif(), which takes the orientation from XMP where EXIF has none.
            exif = PilImage.Exif()
            exif.load(block)
            value = exif.get(ORIENTATION, 1)
        except PIL_ERRORS:  # a broken EXIF block says nothing about the pixels
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def turns_in_xmp(image: ImageFile) -> bool:
    """Return whether an image's XMP has an orientation other than upright.

    Browsers, OpenCV and annotation tools turn pictures by EXIF alone. Masks must fit what they show, so an orientation
    that only XMP has is not applied.
    """
    text = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    found = _IN_XMP.search(text.encode() if isinstance(text, str) else text)
    return found is not None and found[1] != b"1"


def _exif_block(image: ImageFile) -> bytes:
    # ImageMagick stores a PNG's EXIF as hex digits in a text chunk, behind three header lines.
    text = image.info.get("Raw profile type exif")
    if "exif" not in image.info and isinstance(text, str):
        return bytes.fromhex("".join(text.split("\n")[3:]))
    return bytes(image.info.get("exif") or b"")
