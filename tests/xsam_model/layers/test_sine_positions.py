"""Sine positions are computed once for all batches."""

import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding

from xsam_model.layers.sine_positions import XSamSinePositions


def test_positions_are_those_of_transformers_and_made_once_for_all_batches(tiny_model):
    ours, theirs = (kind(8, normalize=True) for kind in (XSamSinePositions, Mask2FormerSinePositionEmbedding))
    shape, options = torch.Size((3, 16, 5, 7)), ("cpu", torch.float32)
    with torch.inference_mode():
        first = ours(shape, *options)
    assert torch.equal(first.expand(shape), theirs(shape, *options))
    assert ours(torch.Size((2, 16, 5, 7)), *options) is first
    # Training may use what labeling has made.
    assert not first.is_inference()
    assert ours(torch.Size((2, 16, 7, 5)), *options).shape == (1, 16, 7, 5)
    assert sum(isinstance(module, XSamSinePositions) for module in tiny_model.modules()) == 2
