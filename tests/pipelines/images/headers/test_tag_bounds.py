"""Tags that share their values make a small image claim much: it is refused, or its EXIF left alone."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image as PILImage

from pipelines.images.decode import DecodeError, decode_image
from pipelines.images.headers.jpeg_markers import jpeg_head
from pipelines.images.headers.tag_bounds import holds_too_much
from pipelines.types import ImageRef, Reason

REF = ImageRef(image_id="x", uri="x")
PIXELS = np.full((20, 30, 3), 90, np.uint8)


def block(tags: int, value_bytes: int, *, is_shared: bool, order: str = "<") -> bytes:
    """A TIFF structure whose tags have values of so many bytes, each its own or all the same."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    first = 8 + 2 + 12 * (tags + 1) + 4
    entries = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    for number in range(tags):
        offset = first + (0 if is_shared else number * value_bytes)
        entries += struct.pack(f"{order}HHII", 0x9000 + number, 7, value_bytes, offset)
    values = bytes(value_bytes * (1 if is_shared else tags))
    return start + struct.pack(f"{order}I", 8) + struct.pack(f"{order}H", tags + 1) + entries + bytes(4) + values


@pytest.mark.parametrize("order", ["<", ">"])
def test_values_that_are_shared_are_counted_as_often_as_they_are_held(order: str) -> None:
    assert not holds_too_much(block(100, 1000, is_shared=False, order=order))
    assert holds_too_much(block(100, 30_000, is_shared=True, order=order))
    assert not holds_too_much(block(100, 30_000, is_shared=True, order=order)[:500])
    assert not holds_too_much(b"")
    assert not holds_too_much(b"II*\0")


def encoded(kind: str, exif: bytes) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(PIXELS).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_exif_block_that_claims_too_much_says_nothing(kind: str) -> None:
    fine = decode_image(encoded(kind, b"Exif\0\0" + block(10, 100, is_shared=False)), REF)
    assert (fine.exif_orientation, fine.size_hw) == (6, (30, 20))
    vast = decode_image(encoded(kind, b"Exif\0\0" + block(100, 30_000, is_shared=True)), REF)
    assert (vast.exif_orientation, vast.size_hw) == (1, (20, 30))


def test_a_jpeg_whose_exif_claims_too_much_is_corrupt() -> None:
    good = block(10, 100, is_shared=False)
    data = encoded("JPEG", b"Exif\0\0" + good)
    assert jpeg_head(data).exif == good
    assert decode_image(data, REF).exif_orientation == 6
    with pytest.raises(DecodeError, match="JPEG: its tags claim far more bytes than there are") as caught:
        decode_image(encoded("JPEG", b"Exif\0\0" + block(100, 30_000, is_shared=True)), REF)
    assert caught.value.reason == Reason.CORRUPT


def test_a_tiff_whose_tags_claim_too_much_is_corrupt() -> None:
    with pytest.raises(DecodeError, match="TIFF: its tags claim far more bytes than there are"):
        decode_image(block(100, 30_000, is_shared=True), REF)


@pytest.mark.parametrize("is_big", [False, True])
def test_tiffs_of_many_strips_are_read_as_ever(is_big: bool) -> None:
    buffer = io.BytesIO()
    pixels = np.zeros((500, 30, 3), np.uint8)
    PILImage.fromarray(pixels).save(buffer, "TIFF", compression="raw", strip_size=90, big_tiff=is_big)
    assert decode_image(buffer.getvalue(), REF).size_hw == (500, 30)


def test_exif_that_goes_on_over_segments_is_put_together() -> None:
    segment = b"\xff\xe1" + struct.pack(">H", 2 + 6 + 4) + b"Exif\0\0"
    data = b"\xff\xd8" + segment + b"abcd" + b"\xff\xe0\x00\x04ab" + segment + b"efgh" + b"\xff\xda"
    assert jpeg_head(data).exif == b"abcdefgh"
    for end in range(len(data)):
        jpeg_head(data[:end])
