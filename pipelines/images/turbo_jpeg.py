"""Decode JPEG to the same bits as Pillow in less time, where simplejpeg is installed (the extra ``jpeg``).

Both call libjpeg-turbo. Pillow holds four bytes a pixel, which have to be packed into three; simplejpeg writes three
bytes a pixel where they belong.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL.ImageFile import ImageFile

from pipelines.images.headers.jpeg_markers import JpegHead
from pipelines.images.orientation import upright, write_upright

# Baseline, extended, progressive: with Huffman coding.
_FRAMES = (0xC0, 0xC1, 0xC2)
# The decoder counts a picture's bytes in 31 bits.
_MAX_BYTES = 2**31 - 1
# At the side of fewer pixels two scales come to the same size.
_MIN_SCALED_SIDE = 8


def decoded_jpeg(image: ImageFile, head: JpegHead, data: bytes, orientation: int) -> NDArray[np.uint8] | None:
    """Decode a JPEG to what Pillow makes of it, without holding Python's global lock.

    Args:
        image: as Pillow has opened it, at the size that `draft` chose; its pixels are not decoded.
        head: what stands before its scans.
        data: the file.
        orientation: EXIF orientation, 1 to 8, by which the pixels are turned upright.

    Returns:
        uint8 (height, width, 3), RGB; None for all that is left to Pillow: CMYK, arithmetic coding, rare subsampling,
        and every file with which something is wrong, so that what becomes of it is the same everywhere.
    """
    decode = _decoder()
    scale = image.decoderconfig[0] if image.decoderconfig else 1
    size = (-(-head.width // scale), -(-head.height // scale))
    is_known = head.frame in _FRAMES and head.num_components in (1, 3) and size == image.size
    if decode is None or not is_known or size[0] * size[1] * 3 > _MAX_BYTES:
        return None
    if scale > 1 and min(head.width, head.height) < _MIN_SCALED_SIDE:
        return None
    # Gray is spread over three colors at the end where that takes less memory than to hold these all the time.
    is_spread = head.num_components == 1 and (orientation != 1 or head.has_many_scans)
    stored = np.empty((size[1], size[0], 1 if is_spread else 3), np.uint8)
    try:
        # Strict: what libjpeg only warns of is an error, too.
        colors = "GRAY" if is_spread else "RGB"
        decode(data, colors, min_width=size[0], min_height=size[1], buffer=stored, strict=True)
    except (ValueError, RuntimeError):
        return None
    if orientation == 1 and not is_spread:
        return stored
    rgb, as_stored = upright(size, orientation)
    write_upright(stored, as_stored)
    return rgb


@functools.cache
def _decoder() -> Callable[..., Any] | None:
    """Return simplejpeg's decoder; None if it is not installed, or Pillow's libjpeg gives other bits than its own."""
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        return None
    probe = PilImage.radial_gradient("L").rotate(30).resize((47, 33))
    colors = PilImage.merge("RGB", (probe, probe.rotate(90), probe.rotate(200)))
    decode: Callable[..., Any] = decode_jpeg
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        file = io.BytesIO()
        colors.save(file, "JPEG", subsampling=subsampling, quality=80)
        if (decode(file.getvalue(), "RGB") != np.asarray(PilImage.open(file))).any():
            return None
    return decode
