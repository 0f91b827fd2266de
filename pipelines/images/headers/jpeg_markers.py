"""Walk the markers of a JPEG's first image: what it is, where it ends, how far its scans have refined it.

Phones put more behind that end than the picture takes itself (a film, a gain map, further pictures), and editors put
megabytes into its APPn segments. Bytes there may look like any marker, so nothing is searched for in the whole file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# Larger than any real EXIF block, thumbnails and maker notes included.
MAX_EXIF_BYTES = 2**24
START_OF_SCAN = b"\xff\xda"

_EXIF_START = b"Exif\0\0"
_ADOBE_START = b"Adobe"
_APP1, _APP14 = 0xE1, 0xEE
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})  # markers without a length
# C4, C8 and CC are a table, reserved, and a table; F7 is the frame of JPEG-LS.
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_PROGRESSIVE = frozenset({0xC2, 0xCA})
# Within compressed data 0xFF is followed by 0x00 or a restart marker; all else is the marker of a segment.
_IN_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegHead:
    """What stands before the first scan of a JPEG.

    Attributes:
        frame: second byte of the start-of-frame marker: 0xC0 baseline, 0xC2 progressive, 0xF7 JPEG-LS; 0 where absent.
        bits: bits of each sample, 0 without a frame.
        width, height: pixels; a height of 0 says that a later marker states it.
        num_components: 1 for gray, 3 for color, 4 for CMYK.
        has_many_scans: whether several passes make the pixels, so that a decoder holds all coefficients.
        has_adobe_marker: whether an Adobe segment says what the components are.
        exif: its EXIF block, joined from all segments, and cut off soon after MAX_EXIF_BYTES.
        scans_start: where the first scan's marker stands; the file's length if there is none.
    """

    frame: int = 0
    bits: int = 0
    width: int = 0
    height: int = 0
    num_components: int = 0
    has_many_scans: bool = False
    has_adobe_marker: bool = False
    exif: bytes = b""
    scans_start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JpegScans:
    """The scans of a JPEG's first image.

    Attributes:
        count: how many there are.
        end: where the image ends: behind its end marker, or where its data stop.
        has_end_marker: whether it has one.
        are_all_there: whether each coefficient of each component has been sent to its last bit, as far as the headers
            of the scans tell.
    """

    count: int
    end: int
    has_end_marker: bool
    are_all_there: bool


def jpeg_head(data: bytes) -> JpegHead:
    """Read what stands before a JPEG's first scan. Never raises: what is cut off stays at its default."""
    facts: dict[str, int] = {}
    exif, exif_bytes, has_adobe, position = list[bytes](), 0, False, 2
    while exif_bytes <= MAX_EXIF_BYTES and (found := _next_marker(data, position)) is not None:
        position, marker = found
        if marker in (_START_OF_SCAN, _END_OF_IMAGE):
            break
        length = max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        if marker == _APP1 and data.startswith(_EXIF_START, position + 4):
            exif.append(data[position + 4 + len(_EXIF_START) : position + 2 + length])
            exif_bytes += len(exif[-1])
        elif marker == _APP14 and data.startswith(_ADOBE_START, position + 4):
            has_adobe = True
        elif marker in _FRAMES and not facts:
            facts = _frame(marker, data[position + 4 : position + 10])
        position += 2 if marker in _STANDALONE else 2 + length
    else:
        position = len(data)
    in_first = data[position + 4] if len(data) > position + 4 else 0
    return JpegHead(
        **facts,
        has_many_scans=facts.get("frame") in _PROGRESSIVE or in_first < facts.get("num_components", 0),
        has_adobe_marker=has_adobe,
        exif=b"".join(exif),
        scans_start=min(position, len(data)),
    )


def jpeg_scans(data: bytes, head: JpegHead) -> JpegScans:
    """Walk a JPEG's scans up to the end of its first image.

    Args:
        data: the file; another image may follow in it.
        head: what stands before its scans.
    """
    refined: dict[tuple[int, int], int] = {}  # bits still to be sent of each (component, coefficient)
    count, position = 0, head.scans_start
    while (found := _next_marker(data, position)) is not None and found[1] != _START_OF_IMAGE:
        position, marker = found
        if marker == _END_OF_IMAGE:
            break
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        if marker == _START_OF_SCAN:
            count += 1
            _refine(refined, data[found[0] + 4 : position], is_progressive=head.frame in _PROGRESSIVE)
            next_marker = _IN_SCAN.search(data, position)
            position = next_marker.start() if next_marker else len(data)
    is_ended = found is not None and found[1] == _END_OF_IMAGE
    num_sent = sum(bits_left == 0 for bits_left in refined.values())
    return JpegScans(
        count=count,
        end=min(position + 2 if is_ended else position, len(data)),
        has_end_marker=is_ended,
        are_all_there=0 < 64 * head.num_components == num_sent,
    )


def _next_marker(data: bytes, position: int) -> tuple[int, int] | None:
    """Return where the next marker stands, and its second byte; readers skip other bytes and fill bytes before it."""
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        marker = data[position + 1]
        if marker not in (0x00, 0xFF):
            return position, marker
        position += 1
    return None


def _frame(marker: int, body: bytes) -> dict[str, int]:
    if len(body) < 6:
        return {"frame": marker}
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    return {"frame": marker, "bits": body[0], "width": width, "height": height, "num_components": body[5]}


def _refine(refined: dict[tuple[int, int], int], header: bytes, *, is_progressive: bool) -> None:
    """Record which coefficients a scan sends: all of them, or in a progressive image what its header tells."""
    if not header or len(header) < 4 + 2 * header[0]:
        return
    components = header[1 : 1 + 2 * header[0] : 2]
    first, last, shifts = header[1 + 2 * header[0] :][:3]
    coefficients = range(first, min(last, 63) + 1) if is_progressive else range(64)
    for component in components:
        for coefficient in coefficients:
            refined[component, coefficient] = shifts & 15 if is_progressive else 0
