"""Around the network memory goes with an image's pixels, not with the square of its side or the length of a stroke."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pipelines.images.decode import MAX_IMAGE_SIDE, DecodeError, decode_image
from pipelines.types import ImageRef, Reason
from tests.reliability import bounded_model_calls as calls
from tests.support.fakes import png
from tests.support.peak_memory import Peak

Measure = Callable[..., Peak]
pytestmark = pytest.mark.timeout(400)  # the first process imports torch


@pytest.mark.parametrize("size", [(30_000, 600), (600, 30_000)])
def test_a_long_strip_is_prepared_without_its_square(peak: Measure, size: tuple[int, int]) -> None:
    small = peak(calls.prepare, (600, 600)).mb
    found = peak(calls.prepare, size)
    assert found.said == "(1, 3, 384, 384) (1, 3, 1024, 1024)"
    pixels_mb = size[0] * size[1] / 1e6
    assert found.mb < small + 9 * pixels_mb + 60


def test_a_longer_strip_is_refused_before_it_is_decoded() -> None:
    data = png(np.zeros((1, MAX_IMAGE_SIDE + 1, 3), np.uint8))
    with pytest.raises(DecodeError, match="65537 x 1 pixels; a side may have at most 65,536") as caught:
        decode_image(data, ImageRef(image_id="x", uri="x"))
    assert caught.value.reason == Reason.TOO_MANY_PIXELS
    assert decode_image(png(np.zeros((1, 3000, 3), np.uint8)), ImageRef(image_id="x", uri="x")).size_hw == (1, 3000)


SIZE_HW = (6500, 6500)
STROKES = {
    "one line from corner to corner": [0, 0, 6499, 6499],
    "to and fro": [0, 0, 6499, 6499, 0, 6499, 6499, 0],
    "along the edge": [0, 3, 6499, 3],
}


@pytest.mark.parametrize("stroke", STROKES)
def test_a_stroke_takes_no_more_than_its_mask(peak: Measure, stroke: str) -> None:
    found = peak(calls.draw, "scribble", STROKES[stroke], SIZE_HW)
    assert int(found.said) > 40_000
    assert found.mb < SIZE_HW[0] * SIZE_HW[1] / 1e6 + 30


@pytest.mark.parametrize("kind", ["point", "polygon"])
def test_other_regions_take_little_more_than_their_mask(peak: Measure, kind: str) -> None:
    corners = [float(number % 6500) for number in range(0, 2_000 * 37, 37)]
    found = peak(calls.draw, kind, corners, SIZE_HW)
    assert found.error is None
    assert found.mb < 4 * SIZE_HW[0] * SIZE_HW[1] / 1e6 + 30


def test_weights_of_images_of_many_sizes_are_kept_up_to_so_many_bytes(peak: Measure) -> None:
    one = peak(calls.enlarge_masks, [(9000, 6000)]).mb
    found = peak(calls.enlarge_masks, [(9000 + number, 6000 - number) for number in range(40)])
    assert found.said == "40"
    assert found.mb < one + 64 * 1.05 + 140
