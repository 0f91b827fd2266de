"""Masks cut, moved, enlarged, intersected and united by spans of their columns, against the same with dense pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.masks import rle
from pipelines.masks.spans import Spans

SEEDS = range(25)


def random_mask(rng: np.random.Generator, size_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Noise, blocks, nothing or everything: bool (H, W)."""
    height, width = size_hw or rng.integers(1, 14, 2)
    mask = rng.random((height, width)) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
    return np.repeat(mask, 3, axis=0)[:height] if rng.random() < 0.5 else mask


def spans(mask: np.ndarray) -> Spans:
    return Spans.of(rle.encode(mask))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mask_comes_back_with_its_area_and_box(seed: int) -> None:
    encoded = rle.encode(random_mask(np.random.default_rng(seed)))
    found = Spans.of(encoded)
    left, top, right, bottom = found.box
    assert (found.to_rle(), found.area) == (encoded, rle.area(encoded))
    assert (left, top, right - left, bottom - top) == rle.bbox_xywh(encoded)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_window_of_a_mask_is_that_of_its_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    top, left = (int(rng.integers(side)) for side in mask.shape)
    height, width = (int(rng.integers(1, side - at + 1)) for side, at in zip(mask.shape, (top, left), strict=True))
    found = spans(mask).window((top, left), (height, width))
    assert found.to_rle() == rle.encode(mask[top : top + height, left : left + width])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_mask_placed_in_a_larger_one_is_its_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    above, below, before, behind = (int(rng.integers(5)) for _ in range(4))
    larger = np.pad(mask, ((above, below), (before, behind)))
    assert spans(mask).placed((above, before), larger.shape).to_rle() == rle.encode(larger)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_enlarged_mask_has_the_nearest_pixel_at_each_center(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    height, width = (side + int(rng.integers(40)) for side in mask.shape)
    # (2 r + 1) h // (2 H), in whole numbers: a center may fall between two pixels.
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    assert spans(mask).enlarged((height, width)).to_rle() == rle.encode(mask[rows][:, columns])


@pytest.mark.parametrize("seed", SEEDS)
def test_masks_are_intersected_and_united_as_their_pixels_are(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 14, 2))
    masks = [random_mask(rng, size) for _ in range(rng.integers(2, 5))]
    first, *others = map(spans, masks)
    united = first.union(*others)
    assert (united.to_rle(), united.area) == (rle.encode(np.any(masks, axis=0)), np.any(masks, axis=0).sum())
    assert [first.intersection(other) for other in others] == [int((masks[0] & mask).sum()) for mask in masks[1:]]


def test_a_mask_with_an_empty_run_inside_is_read_as_its_pixels_are() -> None:
    odd = rle.from_runs((4, 2), [1, 2, 0, 1, 4])
    assert Spans.of(odd).union().to_rle() == rle.canonical(odd)


def test_a_picture_of_400_megapixels_takes_no_dense_mask() -> None:
    square = spans(np.ones((64, 64), np.bool_))
    placed = square.placed((19_000, 19_000), (20_000, 20_000))
    assert (placed.area, placed.box) == (4096, (19_000, 19_000, 19_064, 19_064))
    assert placed.window((19_000, 19_000), (64, 64)).to_rle() == square.to_rle()
    assert square.enlarged((6_400, 6_400)).area == 6_400**2
