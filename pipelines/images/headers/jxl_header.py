"""The header of a JPEG XL file: how large the picture is, before anything is decoded (ISO/IEC 18181-1, 18181-2)."""

from __future__ import annotations

from dataclasses import dataclass

_CONTAINER = b"\0\0\0\x0cJXL \r\n\x87\n"
_CODESTREAM = b"\xff\x0a"
_MAX_BOXES, _HEADER_BYTES = 1000, 64
# Kinds of numbers: for each of the four values of two bits how many bits follow, and what is added to them.
_SIDE = ((9, 1), (13, 1), (18, 1), (30, 1))
_PREVIEW_EIGHTHS, _PREVIEW_SIDE = ((0, 16), (0, 32), (5, 1), (9, 33)), ((6, 1), (8, 65), (10, 321), (12, 1345))
_TICKS, _TICK_PARTS = ((0, 100), (0, 1000), (10, 1), (30, 1)), ((0, 1), (0, 1001), (8, 1), (10, 1))
_LOOPS, _EXTRA_CHANNELS = ((0, 0), (3, 0), (16, 0), (32, 0)), ((0, 0), (0, 1), (4, 2), (12, 1))
_BITS, _FLOAT_BITS = ((0, 8), (0, 10), (0, 12), (6, 1)), ((0, 32), (0, 16), (0, 24), (6, 1))
# Width to height, by the number that stands for them.
_RATIOS = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
_TURNED = 5  # orientations from here on exchange width and height


@dataclass(frozen=True, slots=True, kw_only=True)
class JxlHeader:
    """What a JPEG XL file says of its picture.

    Attributes:
        size: (width, height) in pixels, upright.
        bits: bits of a sample.
        is_float: whether samples are floating-point numbers.
        num_extra_channels: channels beside the colors, such as opacity.
    """

    size: tuple[int, int]
    bits: int
    is_float: bool
    num_extra_channels: int


def is_jxl(data: bytes) -> bool:
    """Return whether a file begins as JPEG XL does: as a container, or as the bare codestream."""
    return data.startswith(_CONTAINER) or (data.startswith(_CODESTREAM) and len(data) >= 12)


def jxl_header(data: bytes) -> JxlHeader:
    """Read the header.

    Raises:
        ValueError: the file ends before, or is damaged.
    """
    bits = _Bits(_codestream(data))
    width, height = _size(bits)
    orientation, num_bits, is_float, num_extra_channels = 1, 8, False, 0
    if not bits.flag():  # else all is as by default
        if bits.flag():
            orientation = 1 + bits.take(3)
            if bits.flag():
                _size(bits)  # the size at which it is meant to be shown
            if bits.flag():
                _skip_preview(bits)
            if bits.flag():
                _skip_animation(bits)
        is_float = bits.flag()
        num_bits = bits.number(_FLOAT_BITS if is_float else _BITS)
        if is_float:
            bits.take(4)
        bits.flag()
        num_extra_channels = bits.number(_EXTRA_CHANNELS)
    size = (height, width) if orientation >= _TURNED else (width, height)
    return JxlHeader(size=size, bits=num_bits, is_float=is_float, num_extra_channels=num_extra_channels)


class _Bits:
    """Numbers in a row of bits, the lowest bit of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._all, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def take(self, count: int) -> int:
        """Return the next bits as a number."""
        if count > self._left:
            raise ValueError("the header is cut short")
        value = self._all & ((1 << count) - 1)
        self._all, self._left = self._all >> count, self._left - count
        return value

    def flag(self) -> bool:
        """Return the next bit."""
        return bool(self.take(1))

    def number(self, kinds: tuple[tuple[int, int], ...]) -> int:
        """Return a number of which two bits say how it is written."""
        count, least = kinds[self.take(2)]
        return least + self.take(count)


def _codestream(data: bytes) -> bytes:
    """Return the beginning of the codestream behind its signature."""
    place = 0
    for _ in range(_MAX_BOXES if data.startswith(_CONTAINER) else 0):
        size, kind, begin = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8], place + 8
        if size == 1:
            size, begin = int.from_bytes(data[begin : begin + 8], "big"), begin + 8
        if kind in (b"jxlc", b"jxlp"):
            place = begin + 4 * (kind == b"jxlp")  # a part has a number in front
            break
        if size < begin - place:
            raise ValueError("no codestream in its boxes")
        place += size
    if not data.startswith(_CODESTREAM, place):
        raise ValueError("no codestream in its boxes")
    return data[place + 2 : place + 2 + _HEADER_BYTES]


def _size(bits: _Bits) -> tuple[int, int]:
    """Return width and height, in pixels."""
    is_in_eighths = bits.flag()
    height = 8 * (1 + bits.take(5)) if is_in_eighths else bits.number(_SIDE)
    if ratio := bits.take(3):
        return height * _RATIOS[ratio][0] // _RATIOS[ratio][1], height
    return (8 * (1 + bits.take(5)) if is_in_eighths else bits.number(_SIDE)), height


def _skip_preview(bits: _Bits) -> None:
    kinds = _PREVIEW_EIGHTHS if bits.flag() else _PREVIEW_SIDE
    bits.number(kinds)
    if not bits.take(3):
        bits.number(kinds)


def _skip_animation(bits: _Bits) -> None:
    for kinds in (_TICKS, _TICK_PARTS, _LOOPS):
        bits.number(kinds)
    bits.flag()
