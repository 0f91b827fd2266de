"""How much the tags of a TIFF, or of an EXIF block, hold: the values of many tags may be one and the same bytes.

Pillow copies every value of a directory when it opens one; what a small file says of itself may be gigabytes.
"""

from __future__ import annotations

import struct

MAX_EXIF_BYTES = 2**24

_SLACK_BYTES = 2**16  # tags may share some values
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_EXIF_START = b"Exif\0\0"
_APP1, _START_OF_SCAN, _END_OF_IMAGE = 0xE1, 0xDA, 0xD9


def holds_too_much(block: bytes) -> bool:
    """Say whether the tags of a block's first directory hold far more bytes than the block: they share them.

    Args:
        block: a TIFF file, or an EXIF block, with or without its first six bytes.
    """
    return _value_bytes(block.removeprefix(_EXIF_START)) > 2 * len(block) + _SLACK_BYTES


def jpeg_exif(data: bytes) -> bytes:
    """Return the EXIF block of a JPEG, which may go on over many segments; cut off behind MAX_EXIF_BYTES."""
    found, num_bytes, position = list[bytes](), 0, 2
    while data[position : position + 1] == b"\xff" and num_bytes <= MAX_EXIF_BYTES:
        marker = data[position + 1 : position + 2]
        if not marker or marker[0] in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        if marker[0] == 0xFF:  # filling
            position += 1
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        if marker[0] == _APP1 and data.startswith(_EXIF_START, position + 4):
            found.append(data[position + 4 + len(_EXIF_START) : position + 2 + length])
            num_bytes += len(found[-1])
        position += 2 + max(2, length)
    return b"".join(found)


def _value_bytes(block: bytes) -> int:
    """Return how many bytes the values of the first directory have that lie elsewhere in the block."""
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
