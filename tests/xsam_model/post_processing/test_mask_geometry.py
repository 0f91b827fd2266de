"""Masks where they can be: the same pixels as of both resizes over the whole image."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.post_processing import mask_geometry
from xsam_model.post_processing.mask_geometry import MaskGeometry


def smooth(seed, cells, shift):
    """Logits of blobs on (5, cells, cells); the last mask is empty."""
    noise = torch.randn(1, 5, 5, 5, generator=torch.Generator().manual_seed(seed))
    logits = 4 * F.interpolate(noise, (cells, cells), mode="bicubic")[0] - shift
    logits[4] = -1.0
    return logits


def changes_of(mask):
    """Positions at which a (H, W) mask begins and ends, column by column, those between two columns included."""
    bordered = np.pad(mask.numpy(), ((1, 1), (0, 0)))
    columns, rows = np.nonzero((bordered[1:] != bordered[:-1]).T)
    return torch.from_numpy(columns * len(mask) + rows)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(1, 150),
    width=st.integers(1, 150),
    sides=st.sampled_from([(8, 32), (16, 64), (12, 50), (7, 64), (32, 32)]),
    shift=st.sampled_from([-8.0, 0.0, 3.0, 6.0]),
)
@pytest.mark.parametrize("block_pixels", [None, 100, 2**16])
def test_masks_and_scores_are_those_of_the_whole_enlarged_image(seed, height, width, sides, shift, block_pixels):
    cells, canvas = sides
    scaled = XSamImageProcessor(segmentor_size=canvas).scaled_size((height, width))
    geometry = MaskGeometry(canvas_size=canvas, scaled_size=scaled, original_size=(height, width))
    logits = smooth(seed, cells, shift)
    queries = [3, 0, 4, 2]
    full = geometry.enlarge(logits)
    # Three masks of the canvas at a time, and one that is left.
    if block_pixels is None:
        found = list(geometry.iter_whole(logits, queries, max_chunk_pixels=3 * max(height * width, canvas**2)))
    else:
        with mock.patch.object(mask_geometry, "_BLOCK_PIXELS", block_pixels):
            found = list(geometry.iter_windowed(logits, queries))
    assert [mask.query for mask in found] == queries
    for mask in found:
        pasted = torch.zeros(height, width, dtype=torch.bool)
        mask.paste(pasted)
        expected = full[mask.query] > 0
        # A logit within rounding of 0 may fall on either side.
        assert not ((pasted != expected) & (full[mask.query].abs() > 1e-5)).any()
        mean = full[mask.query][expected].sigmoid().mean().nan_to_num(0)
        assert mask.score.item() == pytest.approx(mean.item(), abs=1e-3 if expected.sum() < 10 else 1e-4)
        assert torch.equal(mask.changes(height), changes_of(pasted))


def test_a_window_is_hardly_larger_than_its_mask():
    geometry = MaskGeometry(canvas_size=256, scaled_size=(256, 192), original_size=(640, 480))
    logits = torch.full((1, 64, 64), -4.0)
    logits[0, 20:24, 10:16] = 4.0
    (mask,) = geometry.iter_masks(logits, [0])
    inside = mask.inside.nonzero()
    assert ((inside.amax(0) - inside.amin(0) + 1) >= 0.6 * torch.tensor(mask.inside.shape)).all()
    assert mask.inside.shape[0] <= 10 * 7
    assert mask.inside.shape[1] <= 10 * 9


@pytest.mark.parametrize("where", ["nowhere", "in the padding"])
def test_a_mask_that_cannot_be_in_the_image_has_no_window(where):
    geometry = MaskGeometry(canvas_size=64, scaled_size=(64, 20), original_size=(128, 40))
    logits = torch.full((1, 16, 16), -4.0)
    if where == "in the padding":
        logits[0, 4:8, 10:14] = 4.0
    (mask,) = geometry.iter_masks(logits, [0])
    assert mask.inside.numel() == 0
    assert mask.score == 0
    pasted = torch.zeros(128, 40, dtype=torch.bool)
    mask.paste(pasted)
    assert not pasted.any()


def test_no_masks_are_asked_for():
    geometry = MaskGeometry(canvas_size=64, scaled_size=(64, 20), original_size=(128, 40))
    assert list(geometry.iter_masks(torch.zeros(3, 16, 16), [])) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_masks_of_a_gpu_are_those_of_the_host():
    geometry = MaskGeometry(canvas_size=256, scaled_size=(256, 192), original_size=(640, 480))
    logits, queries = smooth(0, 64, 0.0), [3, 0, 4, 2]
    full = geometry.enlarge(logits)
    there = list(geometry.iter_masks(logits.cuda(), queries))
    for host, mask in zip(geometry.iter_masks(logits, queries), there, strict=True):
        expected, found = torch.zeros(2, 640, 480, dtype=torch.bool)
        host.paste(expected)
        mask.paste(found := found.cuda())
        assert not ((found.cpu() != expected) & (full[host.query].abs() > 1e-4)).any()
        assert mask.score.item() == pytest.approx(host.score.item(), abs=1e-3)
        assert torch.equal(mask.changes(640), changes_of(found.cpu()))
