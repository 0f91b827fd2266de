from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools import mask as coco_mask

from pipelines.masks import rle
from pipelines.types import Rle

masks = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=40))


@st.composite
def blobs(draw: st.DrawFn) -> np.ndarray:
    """Masks of few, long runs: what models give, and numbers of several characters."""
    mask = np.zeros((draw(st.integers(1, 300)), draw(st.integers(1, 300))), np.bool_)
    for _ in range(draw(st.integers(0, 3))):
        y, x = draw(st.integers(0, mask.shape[0])), draw(st.integers(0, mask.shape[1]))
        mask[y : y + draw(st.integers(0, 300)), x : x + draw(st.integers(0, 300))] ^= True
    return mask


any_mask = st.one_of(masks, blobs())


def coco_of(mask: np.ndarray) -> dict:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))


def test_docstring_picture_is_true() -> None:
    mask = np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 1]], np.bool_)
    encoded = rle.encode(mask)
    assert rle.to_runs(encoded).tolist() == [3, 4, 4, 1]
    assert encoded == Rle(size_hw=(3, 4), counts="344M")
    assert rle.bbox_xywh(encoded) == (1.0, 0.0, 3.0, 3.0)


@given(any_mask)
def test_mask_survives_the_round_trip(mask: np.ndarray) -> None:
    decoded = rle.decode(rle.encode(mask))
    assert decoded.dtype == np.bool_
    assert decoded.flags.f_contiguous
    np.testing.assert_array_equal(decoded, mask)


@given(any_mask)
def test_counts_equal_those_of_pycocotools(mask: np.ndarray) -> None:
    assert rle.encode(mask).counts == coco_of(mask)["counts"].decode()


@given(any_mask)
def test_area_and_box_equal_pycocotools_and_numpy(mask: np.ndarray) -> None:
    encoded, expected = rle.encode(mask), coco_of(mask)
    assert rle.area(encoded) == coco_mask.area(expected) == mask.sum()
    assert rle.bbox_xywh(encoded) == tuple(coco_mask.toBbox(expected))
    if mask.any():
        y, x = np.nonzero(mask)
        box = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        assert rle.bbox_xywh(encoded) == box


@given(any_mask)
def test_memory_layout_and_dtype_do_not_change_the_answer(mask: np.ndarray) -> None:
    expected = rle.encode(mask)
    padded = np.zeros((mask.shape[0] * 2, mask.shape[1] * 3), np.bool_)
    padded[::2, ::3] = mask
    for same in (
        np.ascontiguousarray(mask),
        np.asfortranarray(mask),
        padded[::2, ::3],
        mask.astype(np.uint8),
        np.asfortranarray(mask).astype(np.uint8) * 255,
        mask * np.arange(1, mask.size + 1).reshape(mask.shape).astype(np.uint8).clip(1, 200),
    ):
        assert rle.encode(same) == expected


@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=12)))
def test_batch_equals_its_masks_one_by_one(batch: np.ndarray) -> None:
    expected = [rle.encode(mask) for mask in batch]
    assert rle.encode_batch(batch) == expected
    assert rle.encode_batch(np.ascontiguousarray(batch.transpose(0, 2, 1)).transpose(0, 2, 1)) == expected


@given(any_mask, st.data())
def test_a_window_encodes_like_the_whole_mask(inside: np.ndarray, data: st.DataObject) -> None:
    above, below, left, right = (data.draw(st.integers(0, 3)) for _ in range(4))
    whole = np.pad(inside, ((above, below), (left, right)))
    assert rle.encode_window(inside, (above, left), whole.shape) == rle.encode(whole)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_a_window_of_nothing_is_an_empty_mask(shape: tuple[int, int]) -> None:
    assert rle.encode_window(np.zeros(shape, np.bool_), (1, 1), (4, 5)) == rle.encode(np.zeros((4, 5), np.bool_))


@pytest.mark.parametrize(
    ("inside", "top_left", "message"),
    [
        (np.ones((3, 3), np.bool_), (2, 0), "3 x 3 at"),
        (np.ones((3, 3), np.bool_), (0, -1), "does not lie"),
        (np.ones((3, 3), np.uint8), (0, 0), "uint8"),
        (np.ones(3, np.bool_), (0, 0), "is bool"),
    ],
)
def test_a_window_beside_its_mask_is_refused(inside: np.ndarray, top_left: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.encode_window(inside, top_left, (4, 4))


def test_batch_of_no_masks_is_empty() -> None:
    assert rle.encode_batch(np.zeros((0, 4, 5), np.bool_)) == []


@given(st.data())
def test_iou_equals_pycocotools_and_numpy(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    first = data.draw(st.lists(arrays(np.bool_, shape), max_size=3))
    second = data.draw(st.lists(arrays(np.bool_, shape), max_size=3))
    matrix = rle.iou([rle.encode(mask) for mask in first], [rle.encode(mask) for mask in second])
    assert matrix.shape == (len(first), len(second))
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            union = (a | b).sum()
            assert matrix[i, j] == pytest.approx((a & b).sum() / union if union else 0.0)


def test_crowd_divides_by_the_detection_alone() -> None:
    whole, half = np.ones((2, 2), np.bool_), np.array([[1, 0], [1, 0]], np.bool_)
    crowd = rle.iou([rle.encode(half)], [rle.encode(whole)], is_crowd=[True])
    assert crowd.tolist() == [[1.0]]


def test_iou_survives_empty_runs_that_other_tools_write() -> None:
    mask = np.array([[1, 1, 1, 0]], np.bool_)
    odd = rle.from_runs((1, 4), [0, 1, 0, 2, 1])
    np.testing.assert_array_equal(rle.decode(odd), mask)
    assert rle.area(odd) == 3
    assert rle.bbox_xywh(odd) == (0.0, 0.0, 3.0, 1.0)
    assert rle.iou([odd], [rle.encode(mask)]).tolist() == [[1.0]]


def test_iou_of_different_sizes_is_refused() -> None:
    small, large = rle.encode(np.ones((2, 2), np.bool_)), rle.encode(np.ones((3, 3), np.bool_))
    with pytest.raises(ValueError, match="different sizes"):
        rle.iou([small], [large])


@given(any_mask)
def test_runs_pack_into_the_same_string(mask: np.ndarray) -> None:
    encoded = rle.encode(mask)
    assert rle.from_runs(encoded.size_hw, rle.to_runs(encoded).tolist()) == encoded


def test_large_runs_take_several_characters() -> None:
    size_hw = (20_000, 25_000)
    runs = [499_989_000, 1, 10_999]
    packed = rle.from_runs(size_hw, runs)
    assert packed.counts == coco_mask.frPyObjects({"size": list(size_hw), "counts": runs}, *size_hw)["counts"].decode()
    assert rle.area(packed) == 1
    assert rle.bbox_xywh(packed) == (24_999.0, 9_000.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("mask", "expectation"),
    [
        pytest.param(np.ones((1, 1), np.bool_), nullcontext(), id="one-pixel"),
        pytest.param(np.ones((3, 3), np.float32), pytest.raises(ValueError, match="bool or uint8"), id="float"),
        pytest.param(np.ones((3, 3), np.int64), pytest.raises(ValueError, match="bool or uint8"), id="int64"),
        pytest.param(np.ones((1, 3, 3), np.bool_), pytest.raises(ValueError, match=r"\(H, W\)"), id="three-axes"),
        pytest.param(np.ones((0, 3), np.bool_), pytest.raises(ValueError, match="at least one pixel"), id="no-pixels"),
    ],
)
def test_encode_takes_masks_only(mask: np.ndarray, expectation) -> None:
    with expectation:
        rle.encode(mask)


@pytest.mark.parametrize(
    ("size_hw", "counts", "message"),
    [
        pytest.param((3, 4), "", "empty", id="empty"),
        pytest.param((3, 4), "344", "cover 11 pixels", id="too-few-pixels"),
        pytest.param((3, 3), "344M", "cover 12 pixels", id="too-many-pixels"),
        pytest.param((3, 4), "344M\0", "outside", id="nul"),
        pytest.param((3, 4), "34\x7f4", "outside", id="del"),
        pytest.param((3, 4), "34é", "outside", id="not-ascii"),
        pytest.param((3, 4), "34 4", "outside", id="space"),
        pytest.param((3, 4), "344m", "cut short", id="cut"),
        pytest.param((3, 4), "o" * 20 + "0", "35 bits", id="endless-number"),
        pytest.param((3, 4), "3K", "negative", id="negative-run"),
        pytest.param((0, 4), "0", "positive integers", id="no-rows"),
        pytest.param((-3, -4), "344M", "positive integers", id="negative-size"),
        pytest.param((3.0, 4), "344M", "positive integers", id="float-size"),
        pytest.param((12,), "344M", "positive integers", id="one-side"),
    ],
)
def test_broken_rle_is_a_value_error_and_never_a_crash(size_hw, counts: str, message: str) -> None:
    broken = Rle(size_hw=size_hw, counts=counts)
    for read in (rle.decode, rle.area, rle.bbox_xywh, lambda mask: rle.iou([mask], [mask])):
        with pytest.raises(ValueError, match=message):
            read(broken)


def test_more_pixels_than_can_be_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="536,870,911 pixels"):
        rle.from_runs((2**15, 2**14), [2**29])


@pytest.mark.parametrize("runs", [[5, 6], [12, 1], [-1, 13], [], [2.5, 9.5], [float("nan"), 12], ["12"], [10**20]])
def test_runs_that_do_not_fit_are_refused(runs: list[object]) -> None:
    with pytest.raises(ValueError, match="RLE"):
        rle.from_runs((3, 4), runs)


@settings(max_examples=300)
@given(st.integers(1, 20), st.integers(1, 20), st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30))
def test_any_string_decodes_to_its_size_or_raises_value_error(height: int, width: int, counts: str) -> None:
    try:
        mask = rle.decode(Rle(size_hw=(height, width), counts=counts))
    except ValueError:
        return
    assert mask.shape == (height, width)
    np.testing.assert_array_equal(mask, coco_mask.decode({"size": [height, width], "counts": counts}))


@pytest.mark.parametrize("size_hw", [(7, 11), (3, 4), (20, 30), (1, 1)])
def test_a_scaled_mask_holds_the_pixels_at_its_centers(size_hw: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random((7, 11)) > 0.5
    rows, columns = (
        np.floor((np.arange(number) + 0.5) * side / number).astype(int)
        for number, side in zip(size_hw, mask.shape, strict=True)
    )
    scaled = rle.scaled(rle.encode(mask), size_hw)
    assert scaled.size_hw == size_hw
    assert (rle.decode(scaled) == mask[rows][:, columns]).all()
