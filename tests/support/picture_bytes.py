"""Bytes of pictures that no library writes, or not in that way: PNG, TIFF and JPEG put together by hand."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from pipelines.types import PixelNote, Reason


@dataclass(frozen=True, slots=True, eq=False)
class OddPicture:
    """A file, and what is right for it.

    Attributes:
        name: file name.
        data: the file.
        pixels: what is to be seen, uint8 (height, width, 3); None if nothing can be.
        tolerance: by how much lossy compression may change a value.
        notes: what has to be told of it.
        reason: why nothing can be seen.
        orientation: its EXIF orientation.
    """

    name: str
    data: bytes
    pixels: NDArray[np.uint8] | None = None
    tolerance: int = 0
    notes: tuple[PixelNote, ...] = ()
    reason: Reason | None = None
    orientation: int = 1


HEIGHT, WIDTH = 24, 40
_y, _x = np.mgrid[:HEIGHT, :WIDTH]
RGB: NDArray[np.uint8] = np.stack([_x * 6, _y * 10, (_x + _y) * 4], axis=-1).astype(np.uint8)
GRAY: NDArray[np.uint8] = (_x * 6 + _y // 2).astype(np.uint8)


def encoded(image: PilImage.Image | NDArray[Any], file_format: str, **options: Any) -> bytes:
    """Encode with Pillow."""
    picture = PilImage.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def as_rgb(gray: NDArray[Any]) -> NDArray[np.uint8]:
    """Return gray values as RGB."""
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def segment(marker: int, body: bytes) -> bytes:
    """Return a JPEG's segment."""
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def png(
    pixels: NDArray[Any], color_type: int, *chunks: tuple[bytes, bytes], bits: int = 8, has_end: bool = True
) -> bytes:
    """Return a PNG with any chunks before its pixels, whose last axis is the samples'; 16-bit values are uint16."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in pixels)
    before = b"".join(chunk(*one) for one in chunks)
    end = chunk(b"IEND", b"") if has_end else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + end


_TIFF_KINDS = {"H": 3, "I": 4, "s": 2, "d": 12, "f": 11, "h": 8, "i": 9}


def tiff(pixels: NDArray[Any], tags: dict[int, tuple[str, Any]] | None = None, *, photometric: int = 1) -> bytes:
    """Return an uncompressed TIFF of one strip.

    Args:
        pixels: (height, width) or (height, width, samples), of any type.
        tags: further tags: the kind of their values as in struct ("s" for text), and a value or a tuple.
        photometric: 0 white is zero, 1 black is zero, 2 RGB, 3 palette, 5 CMYK.
    """
    samples = pixels.reshape(*pixels.shape[:2], -1)
    height, width, count = samples.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    strip = samples.astype(pixels.dtype.newbyteorder("<")).tobytes()
    fields: dict[int, tuple[str, Any]] = {
        256: ("I", width), 257: ("I", height), 258: ("H", (pixels.dtype.itemsize * 8,) * count), 259: ("H", 1),
        262: ("H", photometric), 273: ("I", 0), 277: ("H", count), 278: ("I", height), 279: ("I", len(strip)),
        339: ("H", (kind,) * count), **(tags or {}),
    }  # fmt: skip
    fields = dict(sorted(fields.items()))
    far_at = 8 + 2 + 12 * len(fields) + 4
    packed, far = b"", b""
    for tag, (code, value) in fields.items():
        values = value if isinstance(value, tuple) else (value,)
        body = value.encode() + b"\0" if code == "s" else struct.pack(f"<{len(values)}{code}", *values)
        number = len(body) if code == "s" else len(values)
        if tag == 273:
            body = b"STRP"
        if len(body) > 4:
            packed += struct.pack("<HHII", tag, _TIFF_KINDS[code], number, far_at + len(far))
            far += body + b"\0" * (len(body) % 2)
        else:
            packed += struct.pack("<HHI", tag, _TIFF_KINDS[code], number) + body.ljust(4, b"\0")
    packed = packed.replace(b"STRP", struct.pack("<I", far_at + len(far)))
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + packed + bytes(4) + far + strip


def xmp(orientation: int) -> bytes:
    """Return an XMP packet that says nothing but an orientation."""
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/>'
        b"</rdf:RDF></x:xmpmeta>" % orientation
    )


def gdal_bands(*names: str) -> tuple[str, str]:
    """Return the text in which GDAL says what bands are."""
    items = "".join(
        f'  <Item name="COLORINTERP" sample="{number}" role="colorinterp">{name}</Item>\n'
        for number, name in enumerate(names)
    )
    return "s", f"<GDALMetadata>\n{items}</GDALMetadata>\n"


def infrared() -> NDArray[np.uint8]:
    """Return values of a band that is tagged as opacity and is none."""
    return (60 + (_x * 37 + _y * 17) % 120).astype(np.uint8)


def stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values as 8 bits, black and white at the 2nd and 98th percentile of all."""
    low, high = np.percentile(values[np.isfinite(values)], (2, 98))
    scaled = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255 + 0.5
    return np.nan_to_num(scaled).astype(np.uint8)
