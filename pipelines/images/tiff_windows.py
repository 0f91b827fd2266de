"""Windows of a large TIFF, decoded as they are looked at, where tifffile is installed (the extra ``pictures``)."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import TiffImageFile

from pipelines.images.decode_error import DecodeError
from pipelines.images.headers import tiff_tags
from pipelines.images.orientation import orientation_of, turns_in_xmp
from pipelines.types import Reason

# Lossless ones: whoever decodes them gives the same bits.
_COMPRESSIONS = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "zstd")
_PHOTOMETRIC = {"L": 1, "RGB": 2}
_MAX_SEGMENT_BYTES = 2**25
_HELD_BYTES = 2**27
"""Decoded strips and tiles of the file that are held: a band of tiles needs them once for each."""


class TiffWindows:
    """Stands for the pixels of a TIFF: ``windows[top:bottom, left:right]`` decodes uint8 (h, w, 3).

    Safe from any thread.

    Attributes:
        shape: (height, width, 3).
        nbytes: the most that is held: the file, and what was decoded last.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, data: bytes, page: Any) -> None:
        self._data, self._page = data, page
        self._lock = threading.Lock()
        self._held: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self.shape = (int(page.imagelength), int(page.imagewidth), 3)
        self._segment_hw = (int(page.chunks[0]), int(page.chunks[1]))
        segment_bytes = self._segment_hw[0] * self._segment_hw[1] * int(page.samplesperpixel)
        self._max_held = max(1, _HELD_BYTES // segment_bytes)
        self.nbytes = len(data) + min(_HELD_BYTES, 3 * self.shape[0] * self.shape[1])

    def __getitem__(self, window: slice | tuple[slice, slice]) -> NDArray[np.uint8]:
        """Decode a window.

        Raises:
            DecodeError: CORRUPT.
        """
        rows, columns = window if isinstance(window, tuple) else (window, slice(None))
        (top, bottom, _), (left, right, _) = rows.indices(self.shape[0]), columns.indices(self.shape[1])
        found = np.empty((bottom - top, right - left, 3), np.uint8)
        (height, width), across = self._segment_hw, self._page.chunked[1]
        for row in range(top // height, -(-bottom // height)):
            for column in range(left // width, -(-right // width)):
                with self._lock:
                    segment = self._segment(row * across + column)
                y, x = row * height, column * width
                first, last = (max(top, y), max(left, x)), (min(bottom, y + height), min(right, x + width))
                found[first[0] - top : last[0] - top, first[1] - left : last[1] - left] = segment[
                    first[0] - y : last[0] - y, first[1] - x : last[1] - x
                ]
        return found

    def _segment(self, number: int) -> NDArray[np.uint8]:
        """Return a strip or tile of the file, uint8 (h, w, 1 or 3)."""
        if (held := self._held.pop(number, None)) is None:
            start, count = self._page.dataoffsets[number], self._page.databytecounts[number]
            try:
                held = np.asarray(self._page.decode(self._data[start : start + count], number)[0][0])
            except Exception as error:
                raise DecodeError(Reason.CORRUPT, f"TIFF: part {number}: {type(error).__name__}: {error}") from error
            if len(self._held) >= self._max_held:
                self._held.popitem(last=False)
        self._held[number] = held
        return held


def tiff_windows(image: TiffImageFile, data: bytes) -> TiffWindows | None:
    """Return the windows of a TIFF, or None if it has to be decoded as a whole.

    It has windows if it has 8-bit gray or RGB and nothing else, upright, in strips or tiles that are compressed without
    loss, if at all; their pixels are then those that Pillow would give.

    Args:
        image: as Pillow has opened it.
        data: the file.
    """
    tags = image.tag_v2
    is_plain = (
        tiff_tags.photometric(tags) == _PHOTOMETRIC.get(image.mode)
        and tiff_tags.bits_of(tags) == 8
        and int(tags.get(tiff_tags.SAMPLES_PER_PIXEL, 1)) == len(image.getbands())
        and tags.get(tiff_tags.PLANAR_CONFIGURATION, 1) != tiff_tags.PLANES
        and image.info.get("compression") in _COMPRESSIONS
        and orientation_of(image) == 1
        and not turns_in_xmp(image)
    )
    if not is_plain:
        return None
    try:
        import imagecodecs  # noqa: F401  (without it a part may decode to more than it says)
        from tifffile import TiffFile

        page = TiffFile(io.BytesIO(data)).pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        is_whole = all(count and start + count <= len(data) for start, count in places)
        segment_bytes = int(np.prod(page.chunks))
        num_segments = int(page.chunked[0] * page.chunked[1])
        has_size = (page.imagewidth, page.imagelength) == image.size
        page.decode  # noqa: B018  (whether there is a decoder is found out here)
    except Exception:  # noqa: BLE001 - whatever is wrong, the decoder of whole pictures tells what
        return None
    # Or parts would be decoded again for each tile of a row.
    is_held = segment_bytes <= _MAX_SEGMENT_BYTES and int(page.chunked[1]) * segment_bytes <= _HELD_BYTES
    if not (is_whole and has_size and len(places) == num_segments and is_held):
        return None
    return TiffWindows(data, page)
