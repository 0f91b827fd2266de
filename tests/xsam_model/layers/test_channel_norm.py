"""The norm over channels gives the same for all types of features and weights."""

from __future__ import annotations

import pytest
import torch

from xsam_model.layers.segmentor import XSamChannelNorm


@pytest.mark.parametrize("features", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_features_may_be_of_another_type_than_the_weights(features: torch.dtype, weights: torch.dtype) -> None:
    norm, given = XSamChannelNorm(8), torch.randn(2, 8, 5, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = norm(given)
        got = norm.to(weights)(given.to(features))
    assert torch.allclose(got.float(), expected, atol=0.05)
