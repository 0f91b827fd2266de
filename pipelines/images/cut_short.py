"""Tell truncated image files from corrupt ones by their format's structure: a decoder's exception often does not."""

from __future__ import annotations

import struct

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipelines.images.headers.jpeg_markers import jpeg_head, jpeg_scans
from pipelines.images.headers.png_chunks import png_has_end

# Bytes of a value by TIFF field type: BYTE, ASCII, SHORT, LONG, RATIONAL, ... (TIFF 6.0, section 2).
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def ends_early(data: bytes, plugin: type[ImageFile]) -> bool:
    """Return whether an image file that Pillow could not read is truncated, judged by its format's structure."""
    if plugin is JpegImageFile:
        return not jpeg_scans(data, jpeg_head(data)).has_end_marker
    if plugin is PngImageFile:
        return not png_has_end(data)
    if plugin is WebPImageFile:
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if plugin is BmpImageFile:
        return len(data) < max(54, int.from_bytes(data[2:6], "little"))
    if plugin is GifImageFile:
        return not data.rstrip(b"\0").endswith(b";")
    end = _boxes_end(data) if data[4:8] == b"ftyp" else _tiff_end(data)
    return end > len(data)


def _boxes_end(data: bytes) -> int:
    """Return the byte offset where the last box of a HEIC or AVIF file ends."""
    place = 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size == 1:  # the size follows in 64 bits
            size = int.from_bytes(data[place + 8 : place + 16], "big")
        if size == 0:  # up to the end of the file
            return len(data)
        place += max(8, size)
    return place if place >= len(data) else len(data) + 1


def _tiff_end(data: bytes) -> int:
    """Return the byte offset where the first directory of a classic TIFF and the values it points to end."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", data, start)
        entries = list(struct.iter_unpack(f"{order}HHII", data[start + 2 : start + 2 + 12 * num_entries]))
    except struct.error:
        return len(data) + 1
    sizes = [(offset, _TIFF_TYPE_BYTES.get(kind, 0) * count) for _, kind, count, offset in entries]
    # Values of up to four bytes stand in the entry itself, in place of an offset.
    far_values = [offset + size for offset, size in sizes if size > 4]
    ends: list[int] = [int(start) + 2 + 12 * int(num_entries), *far_values]
    return max(ends)
