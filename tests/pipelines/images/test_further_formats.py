"""AVIF, HEIC and JPEG XL: decoded where their decoders are installed, else told by name."""

from __future__ import annotations

import io
import sys

import imagecodecs
import numpy as np
import pytest
from PIL import Image as PilImage

from pipelines import image_formats
from pipelines.image_formats import registered_formats
from pipelines.images.decode import decode_image, peek_size
from pipelines.images.decode_error import DecodeError
from pipelines.types import Image, ImageRef, Reason

FORMATS = sorted(registered_formats())


def decoded(data: bytes) -> Image:
    return decode_image(data, ImageRef(image_id="a", uri="a"))


def encoded(name: str, orientation: int = 1) -> bytes:
    """A picture of 96 x 64 pixels as stored, red on its left half and green on its right."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48, 0] = pixels[:, 48:, 1] = 255
    exif, data = PilImage.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    PilImage.fromarray(pixels).save(data, name, exif=exif.tobytes())
    return data.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_pictures_of_further_formats_are_decoded_upright(name: str) -> None:
    image = decoded(encoded(name))
    assert image.pixels.shape == (64, 96, 3)
    assert image.pixels[32, 10, 0] > 200 > 60 > image.pixels[32, 10, 1]
    assert image.pixels[32, 90, 1] > 200 > 60 > image.pixels[32, 90, 0]
    # Turned by 90 degrees: what was on the left is on top.
    turned = decoded(encoded(name, orientation=6))
    assert turned.pixels.shape == (96, 64, 3)
    assert turned.pixels[10, 32, 0] > 200 > 60 > turned.pixels[10, 32, 1]


@pytest.mark.parametrize("name", FORMATS)
def test_a_picture_of_a_further_format_that_is_cut_short_is_truncated(name: str) -> None:
    data = encoded(name)
    with pytest.raises(DecodeError) as refused:
        decoded(data[: len(data) - 20])
    assert refused.value.reason == Reason.TRUNCATED


def test_a_format_whose_decoder_is_missing_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "registered_formats", frozenset)
    with pytest.raises(DecodeError, match=r"HEIF: pip install 'xsam-label\[pictures\]'") as refused:
        peek_size(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert refused.value.reason == Reason.UNSUPPORTED_MODE


PIXELS = np.zeros((16, 16, 3), np.uint8)


def by_pillow(name: str) -> bytes:
    data = io.BytesIO()
    PilImage.fromarray(PIXELS).save(data, name)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (imagecodecs.jpeg2k_encode(PIXELS), "JPEG 2000"),
        (imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k"), "JPEG 2000"),
        (imagecodecs.jpegxr_encode(PIXELS), "JPEG XR"),
        (by_pillow("PPM"), "PNM"),
        (by_pillow("ICO"), "ICO"),
        (by_pillow("DDS"), "DDS"),
        (bytes(128) + b"DICM" + bytes(20), "DICOM"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "CR3"),
        (b"8BPS\0\1" + bytes(20), "PSD"),
        (b"v/1\x01\2\0\0\0", "OpenEXR"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_picture_of_a_format_that_is_not_read_is_named_and_no_damage(data: bytes, name: str) -> None:
    with pytest.raises(DecodeError, match=f"^unsupported_mode: {name}: .* convert it to JPEG, PNG or TIFF") as refused:
        decoded(data)
    assert refused.value.reason == Reason.UNSUPPORTED_MODE


@pytest.mark.parametrize("data", [b"\0" * 400, b"P7 of 9", b"<html>", b"\xff\x0a", b"{}"])
def test_what_only_begins_like_a_picture_is_none(data: bytes) -> None:
    with pytest.raises(DecodeError) as refused:
        decoded(data)
    assert refused.value.reason == Reason.NOT_AN_IMAGE


SIDES = [(16, 16), (37, 53), (8, 4000), (24, 20), (9, 8200), (480, 640)]


@pytest.mark.parametrize("is_in_boxes", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_jpeg_xl_is_decoded_and_its_header_tells_its_size_before(num_channels, dtype, is_in_boxes) -> None:
    for height, width in SIDES:
        seen = np.arange(height * width, dtype=np.uint8).reshape(height, width, 1).repeat(num_channels, 2)
        seen[..., 3 if num_channels == 4 else 1 :] = 255 if num_channels in (2, 4) else seen[..., :1]
        stored = {np.uint8: seen, np.uint16: seen.astype(np.uint16) * 257, np.float32: seen / np.float32(255)}[dtype]
        data = imagecodecs.jpegxl_encode(
            stored.squeeze(), lossless=True, effort=1, usecontainer=is_in_boxes, photometric=None
        )
        assert peek_size(data) == (width, height)
        image = decoded(data)
        assert (image.pixels[..., 0] == seen[..., 0]).all()
        assert image.notes == ()


def test_a_jpeg_xl_that_is_cut_short_is_truncated() -> None:
    data = imagecodecs.jpegxl_encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), lossless=True)
    for end in (len(data) - 20, len(data) // 2):
        with pytest.raises(DecodeError) as refused:
            decoded(data[:end])
        assert refused.value.reason == Reason.TRUNCATED
    for end in (12, 13):
        with pytest.raises(DecodeError) as refused:
            decoded(data[:end])
        assert refused.value.reason in (Reason.TRUNCATED, Reason.CORRUPT)


def test_jpeg_xl_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(DecodeError, match=r"JPEG XL: pip install 'xsam-label\[pictures\]'") as refused:
        decoded(imagecodecs.jpegxl_encode(PIXELS))
    assert refused.value.reason == Reason.UNSUPPORTED_MODE
