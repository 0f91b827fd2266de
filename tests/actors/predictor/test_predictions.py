"""Masks become RLE without their pixels leaving the device that they were made on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from actors.predictor import predictions
from pipelines.masks import rle
from xsam_model.post_processing.mask_geometry import WindowedMask

windows = st.tuples(st.integers(0, 12), st.integers(0, 12)).flatmap(
    lambda shape: arrays.arrays(np.bool_, shape, elements=st.booleans())
)


@given(
    inside=windows, above=st.integers(0, 3), below=st.integers(0, 3), left=st.integers(0, 3), right=st.integers(1, 3)
)
def test_changes_found_on_the_device_give_the_rle_of_the_whole_mask(
    inside: np.ndarray, above: int, below: int, left: int, right: int
) -> None:
    whole = np.pad(inside, ((above, max(below, 1 - inside.shape[0])), (left, right)))
    mask = WindowedMask(0, above, left, torch.from_numpy(inside), torch.tensor(1.0))
    changes = mask.changes(whole.shape[0]).numpy()
    expected = rle.encode(whole)
    assert rle.from_changes(changes, whole.shape) == expected
    found = predictions._Encoded.of_changes(changes, whole.shape)
    assert (found.segmentation, found.area) == (expected, rle.area(expected))
    assert found.bbox_xywh == rle.bbox_xywh(expected)


@pytest.mark.parametrize("changes", [[-1, 3], [0, 13], [14]])
def test_changes_outside_the_mask_are_refused(changes: list[int]) -> None:
    with pytest.raises(ValueError, match="do not lie in a mask of 12 pixels"):
        rle.from_changes(np.array(changes), (3, 4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_changes_found_on_a_gpu_are_those_found_on_the_host() -> None:
    inside = torch.rand(700, 500, generator=torch.Generator().manual_seed(0)) > 0.7
    here, there = (
        WindowedMask(0, 20, 30, where, torch.tensor(1.0)).changes(900).cpu() for where in (inside, inside.cuda())
    )
    assert torch.equal(here, there)
