"""Read a JPEG that lacks its end marker, if all its pixels are there."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

from PIL.ImageFile import ImageFile

from pipelines.images.decode_error import PIL_ERRORS, DecodeError
from pipelines.images.headers.jpeg_markers import START_OF_SCAN, JpegHead, jpeg_scans
from pipelines.images.opening import open_image
from pipelines.images.pixels import Pixels, load
from pipelines.types import PixelNote

_END_OF_IMAGE = b"\xff\xd9"
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# What may stand behind the data: no 0xFF, and different from the first bit on.
_FILLS = (bytes(4096), b"\xb6\x5a\xa3" * 1400, b"\x6d\xd9\x35" * 1400)


def has_end(data: bytes, head: JpegHead) -> bool:
    """Return whether a JPEG's first image has its end marker."""
    return data.endswith(_END_OF_IMAGE) or jpeg_scans(data, head).has_end_marker


def load_without_end(data: bytes, head: JpegHead, enough_px: int | None) -> Pixels | None:
    """Decode a JPEG without end marker; None if it has one, or pixels are missing.

    A decoder does not tell whether the data sufficed: it makes up what is missing. So the picture is decoded several
    times, with other bytes behind its data each time. If these change no pixel, none was missing.

    Args:
        data: the file.
        head: what stands before its scans.
        enough_px: as for `decode_image`.
    """
    scans = jpeg_scans(data, head)
    if scans.has_end_marker or not scans.are_all_there:
        return None
    # Zeros are what a file system has for bytes that never were written; as data they would pass for flat blocks.
    sent = data[: scans.end].rstrip(b"\0")
    if sent.endswith(b"\xff"):
        sent += b"\0"
    found: Pixels | None = None
    digests = set()
    for pad in _pads(sent):
        found = None  # before the next is decoded
        try:
            padded = open_image(sent + pad + _END_OF_IMAGE)
            if enough_px is not None and isinstance(padded.image, ImageFile):
                padded.image.draft(None, (enough_px, enough_px))
            found = load(padded, b"", "raw")
        except (*PIL_ERRORS, DecodeError):
            return None
        digests.add(hashlib.sha256(found.rgb.data).digest())
        if len(digests) > 1:
            return None
    return None if found is None else replace(found, notes=(PixelNote.NO_END_MARKER, *found.notes))


def _pads(sent: bytes) -> list[bytes]:
    """Return what is put behind the data, one for each try.

    If the data end with a restart interval, a decoder goes on at the next restart marker alone, so there are some.
    """
    restarts = _RESTART.findall(sent, sent.rfind(START_OF_SCAN))
    next_one = restarts[-1][1] + 1 if restarts else 0
    markers = [bytes((0xFF, 0xD0 | (next_one + number) & 7)) for number in range(8)]
    return [fill + b"".join(marker + fill[:300] for marker in markers) for fill in _FILLS]
