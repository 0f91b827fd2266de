"""Detect TIFF and EXIF directories whose tags claim far more bytes than the file has.

Many tags may point to the same bytes, and Pillow copies the value of each when it opens a directory: a small file could
so take gigabytes.
"""

from __future__ import annotations

import struct

_SLACK_BYTES = 2**16  # some sharing is legitimate
# Bytes of a value by field type, BigTIFF's (16 to 18) included.
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_EXIF_START = b"Exif\0\0"


def holds_too_much(block: bytes) -> bool:
    """Return whether the tags of a block's first directory claim far more bytes than the block has.

    Args:
        block: a TIFF file, or an EXIF block with or without its six-byte prefix.
    """
    return _value_bytes(block.removeprefix(_EXIF_START)) > 2 * len(block) + _SLACK_BYTES


def _value_bytes(block: bytes) -> int:
    """Return the total bytes that the first directory's tags claim outside the directory itself."""
    order = "<" if block[:2] == b"II" else ">"
    is_big = block[2:4] in (b"+\0", b"\0+")
    start_form, count_form, entry_form, inline = ("Q", "Q", "HHQQ", 8) if is_big else ("I", "H", "HHII", 4)
    try:
        (start,) = struct.unpack_from(order + start_form, block, 8 if is_big else 4)
        (count,) = struct.unpack_from(order + count_form, block, start)
        first, size = start + struct.calcsize(order + count_form), struct.calcsize(order + entry_form)
        count = min(count, (len(block) - first) // size)
        entries = struct.iter_unpack(order + entry_form, block[first : first + count * size])
        sizes = ((offset, _TYPE_BYTES.get(kind, 1) * number) for _, kind, number, offset in entries)
        return sum(min(size, max(0, len(block) - offset)) for offset, size in sizes if size > inline)
    except struct.error:
        return 0
