"""Odd but valid pictures are seen as a reader who knows their formats sees them, or refused by their right reason."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from pipelines.images.decode import DecodeError, DecodeLimits, decode_image, decoding_bytes
from pipelines.types import ImageRef, PixelNote, Reason
from tests.support.odd_pictures import odd_pictures
from tests.support.picture_bytes import GRAY, RGB, OddPicture, as_rgb, encoded, png, tiff

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")

REF = ImageRef(image_id="a", uri="/a")
BY_NAME = {one.name: one for one in odd_pictures()}
RAW = DecodeLimits(stretch="raw")


@pytest.mark.parametrize("odd", odd_pictures(), ids=BY_NAME)
def test_an_odd_picture_is_seen_as_it_is_meant(odd: OddPicture) -> None:
    if odd.reason is not None:
        with pytest.raises(DecodeError) as refused:
            decode_image(odd.data, REF)
        assert refused.value.reason is odd.reason
        return
    assert odd.pixels is not None
    image = decode_image(odd.data, REF)
    assert image.pixels.shape == odd.pixels.shape
    assert np.abs(image.pixels.astype(int) - odd.pixels).max() <= odd.tolerance
    assert (image.notes, image.exif_orientation) == (odd.notes, odd.orientation)
    assert decoding_bytes(odd.data) >= image.pixels.nbytes


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_opacity_of_nothing_is_left_out(kind: str) -> None:
    unseen = np.dstack([RGB, np.zeros_like(GRAY)])
    image = decode_image(encoded(unseen, kind, lossless=True, exact=True), REF)
    assert (image.pixels == RGB).all()
    assert image.notes == (PixelNote.ALPHA_LEFT_OUT,)
    unseen[0, 0, 3] = 1
    assert decode_image(encoded(unseen, kind, lossless=True, exact=True), REF).pixels.min() > 250


def test_names_of_odd_pictures_are_distinct() -> None:
    assert len(BY_NAME) == len(odd_pictures())


@pytest.mark.parametrize(
    "name",
    ["of_12_bits.jpg", "lossless_of_16_bits.jpg", "jpeg_ls.jpg", "eight_bands_16.tif", "jpeg2000.tif", "planes_16.tif"],
)
def test_what_needs_another_decoder_says_so_where_there_is_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DecodeError, match=r"pip install 'xsam-label\[pictures\]'") as refused:
        decode_image(BY_NAME[name].data, REF)
    assert refused.value.reason is Reason.UNSUPPORTED_MODE


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(GRAY.astype(np.uint16)[..., None] * 16, 0, bits=16), GRAY // 16),
        (tiff(GRAY.astype(np.int16) * 100), (GRAY.astype(int) * 100 + 32768) / 65535 * 255 + 0.5),
        (tiff(GRAY.astype(np.float32) / 255), GRAY),
    ],
    ids=["16-bit", "signed", "float-within-0-and-1"],
)
def test_raw_takes_the_range_of_the_type(data: bytes, expected: np.ndarray) -> None:
    image = decode_image(data, REF, RAW)
    assert np.abs(image.pixels.astype(int) - as_rgb(expected)).max() <= 1
    assert image.notes == ()


def test_raw_refuses_floats_whose_range_nobody_knows() -> None:
    with pytest.raises(DecodeError, match=r"from 0 to 490 have no agreed 8 bit range; label.decode.stretch") as refused:
        decode_image(tiff(GRAY.astype(np.float32) * 2), REF, RAW)
    assert refused.value.reason is Reason.UNSUPPORTED_MODE


def test_many_bands_of_few_pixels_are_too_many_pixels() -> None:
    limits = DecodeLimits(max_image_pixels=24 * 40)
    assert decode_image(BY_NAME["eight_bands_16.tif"].data, REF, limits).size_hw == (24, 40)
    with pytest.raises(DecodeError, match="pixels of 9 samples are 17280 bytes; 16 for each of") as refused:
        decode_image(tiff(np.zeros((24, 40, 9), np.uint16), {338: ("H", (0,) * 6)}), REF, limits)
    assert refused.value.reason is Reason.TOO_MANY_PIXELS


def test_a_picture_of_one_value_or_of_none_is_no_error() -> None:
    assert not decode_image(tiff(np.full((5, 6), 7, np.int32)), REF).pixels.any()
    assert (decode_image(tiff(np.full((5, 6), np.nan, np.float32)), REF).pixels == 255).all()


def test_a_bright_dot_on_black_is_still_seen_when_percentiles_are_equal() -> None:
    values = np.zeros((30, 30), np.int32)
    values[3, 4] = 900
    image = decode_image(tiff(values), REF)
    assert image.pixels[3, 4].tolist() == [255, 255, 255]
    assert image.notes == (PixelNote.STRETCHED,)


def test_a_jpeg_without_end_is_read_small_as_well() -> None:
    image = decode_image(BY_NAME["no_end.jpg"].data, REF, enough_px=12)
    assert image.size_hw == (12, 20)
    assert image.notes == (PixelNote.NO_END_MARKER,)


def test_zeros_that_a_decoder_takes_for_the_rest_of_a_jpeg_are_no_picture() -> None:
    """Each block of zeros is 24 bytes: of a rich picture less than was there, so that libjpeg misses nothing."""
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encoded(noise, "JPEG", quality=95)
    half = len(data) // 2
    with pytest.raises(DecodeError) as refused:
        decode_image(data[:half] + bytes(len(data) - half), REF)
    assert refused.value.reason is Reason.TRUNCATED


def test_16_bit_colors_in_a_quarter_of_their_range_are_no_longer_nearly_black() -> None:
    colors = (GRAY.astype(np.uint16) * 4)[..., None].repeat(3, 2)
    assert decode_image(png(colors, 2, bits=16), REF).pixels.max() == 255
    assert decode_image(png(colors, 2, bits=16), REF, RAW).pixels.max() == 4
