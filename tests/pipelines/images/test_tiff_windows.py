"""Windows of a TIFF are those of its decoded pixels, and whatever is not plain is decoded as a whole."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile

from pipelines.images import tiff_windows
from pipelines.images.decode import DecodeError, DecodeLimits, decode_image, decode_windows
from pipelines.types import Image, ImageRef, Reason
from tests.support.fakes import png

REF = ImageRef(image_id="large.tif", uri="large.tif")
PIXELS = np.random.default_rng(0).integers(0, 9, (150, 210, 3), dtype=np.uint8)


def tiff(pixels: np.ndarray = PIXELS, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "rgb" if pixels.ndim == 3 else "minisblack", **options})
    return file.getvalue()


def windows(data: bytes, longer_than: int = 64) -> Image | None:
    return decode_windows(data, REF, DecodeLimits(), longer_than=longer_than)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (64, 48)},
        {"tile": (64, 48), "compression": "deflate", "predictor": True},
        {"tile": (160, 224), "compression": "lzw", "byteorder": ">"},
        {"rowsperstrip": 40, "compression": "zlib"},
        {"rowsperstrip": 7},
        {"tile": (32, 32), "compression": "packbits", "bigtiff": True},
    ],
)
@pytest.mark.parametrize("colors", ["rgb", "gray"])
def test_windows_are_those_of_the_decoded_picture(options: dict[str, Any], colors: str) -> None:
    data = tiff(PIXELS if colors == "rgb" else np.ascontiguousarray(PIXELS[..., 0]), **options)
    whole, image = decode_image(data, REF), windows(data)
    assert image is not None
    assert (image.size_hw, image.content_sha256, image.notes) == (whole.size_hw, whole.content_sha256, whole.notes)
    for top, bottom, left, right in ((0, 150, 0, 210), (10, 75, 40, 104), (149, 150, 209, 210), (64, 128, 0, 48)):
        found = image.pixels[top:bottom, left:right]
        assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
        np.testing.assert_array_equal(found, whole.pixels[top:bottom, left:right])
    np.testing.assert_array_equal(image.pixels[5:25], whole.pixels[5:25])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(tiff(tile=(64, 48), compression="jpeg"), id="lossy"),
        pytest.param(tiff(PIXELS.astype(np.uint16), tile=(64, 48)), id="deep"),
        pytest.param(tiff(np.dstack((PIXELS, PIXELS[..., 0])), tile=(64, 48), extrasamples=["unassalpha"]), id="alpha"),
        pytest.param(tiff(np.moveaxis(PIXELS, 2, 0), planarconfig="separate", tile=(64, 48)), id="planes"),
        pytest.param(tiff(PIXELS[..., 0], photometric="miniswhite", tile=(64, 48)), id="white is zero"),
        pytest.param(tiff(tile=(64, 48), extratags=[(274, 3, 1, 6, True)]), id="turned"),
        pytest.param(tiff(tile=(64, 48))[:-5000], id="cut short"),
        pytest.param(png(PIXELS), id="no TIFF"),
    ],
)
def test_what_is_not_plain_has_none(data: bytes) -> None:
    assert windows(data) is None


def test_a_picture_that_is_no_longer_than_a_tile_has_none() -> None:
    assert windows(tiff(tile=(64, 48)), longer_than=210) is None


def test_the_limit_of_pixels_holds_before_any_is_decoded() -> None:
    with pytest.raises(DecodeError) as refused:
        decode_windows(tiff(tile=(64, 48)), REF, DecodeLimits(max_image_pixels=1000), longer_than=64)
    assert refused.value.reason is Reason.TOO_MANY_PIXELS


def test_a_damaged_part_is_told_where_it_is_looked_at() -> None:
    data = tiff(tile=(64, 48), compression="deflate")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        start, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    image = windows(data[:start] + b"\x55" * count + data[start + count :])
    assert image is not None
    assert image.pixels[:64, :48].shape == (64, 48, 3)
    with pytest.raises(DecodeError) as damaged:
        image.pixels[140:, 200:]
    assert damaged.value.reason is Reason.CORRUPT


def test_strips_that_are_needed_again_are_held_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff_windows, "_HELD_BYTES", 30_000)
    image = windows(tiff(rowsperstrip=10, compression="deflate"))
    assert image is not None
    np.testing.assert_array_equal(image.pixels[:150, 100:], PIXELS[:, 100:])
    held = vars(image.pixels)["_held"].values()
    assert 20_000 < sum(strip.nbytes for strip in held) <= 30_000
