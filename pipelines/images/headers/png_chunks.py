"""What a PNG's chunks tell that Pillow does not."""

from __future__ import annotations

from collections.abc import Iterator

_SIGNATURE_BYTES = 8
_APPLE_START = b"CgBI"


def png_significant_bits(data: bytes) -> int | None:
    """Return the bits of a color sample that are significant (sBIT), the most of all colors; None if not stated."""
    for name, start, length in _chunks(data):
        if name == b"sBIT":
            # The last of two or four values is that of the opacity.
            return max(data[start : start + (1 if length < 3 else 3)], default=None)
        if name == b"IDAT":
            return None
    return None


def png_has_end(data: bytes) -> bool:
    """Return whether a PNG has its end chunk, whatever follows it."""
    return data[-8:-4] == b"IEND" or any(name == b"IEND" for name, _, _ in _chunks(data))


def is_apple_png(data: bytes) -> bool:
    """Return whether this is an application's resource in Apple's own variant of PNG, which is no PNG."""
    return data[_SIGNATURE_BYTES + 4 : _SIGNATURE_BYTES + 8] == _APPLE_START


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each chunk's name, where its content starts, and its length in bytes."""
    position = _SIGNATURE_BYTES
    while position + 8 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        yield data[position + 4 : position + 8], position + 8, length
        position += 12 + length
