"""The last prediction alone, with what is computed once for each image: the same as the last of all predictions."""

import pytest
import torch

from xsam_model.configuration_xsam import XSamSegmentorConfig
from xsam_model.layers.transformer_decoder import XSamTransformerDecoder

CLOSE = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(params=[False, True], ids=["post-norm", "pre-norm"])
def decoder(request):
    torch.manual_seed(0)
    config = XSamSegmentorConfig(
        **{"feature_size": 16, "hidden_dim": 16, "mask_feature_size": 16, "num_attention_heads": 4, "num_queries": 7},
        **{"decoder_layers": 5, "dim_feedforward": 32, "pre_norm": request.param},
    )
    decoder = XSamTransformerDecoder(in_features=16, config=config.to_mask2former()).eval()
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return decoder


@pytest.fixture
def maps():
    """Of three images: maps of three sizes, lowest resolution first, and mask features."""
    torch.manual_seed(1)
    return [torch.randn(3, 16, side, side + 2) for side in (4, 8, 16)], torch.randn(3, 16, 32, 36)


@pytest.mark.parametrize("images", [[0], [0, 1, 2], [2, 0, 2, 0], [1, 1, 1], [2, 2, 0]])
def test_the_last_prediction_is_that_of_the_full_decoder(decoder, maps, images):
    levels, mask_features = maps
    shift, images = torch.randn(len(images), 16), torch.tensor(images)
    with torch.no_grad():
        every = decoder.every_prediction([level[images] for level in levels], mask_features[images], shift)
        queries, masks = decoder(levels, mask_features, shift, images)
    torch.testing.assert_close(queries, every.intermediate_hidden_states[-1].transpose(0, 1), **CLOSE)
    torch.testing.assert_close(masks, every.masks_queries_logits[-1], **CLOSE)


def test_queries_that_see_nothing_look_everywhere(decoder, maps):
    levels, mask_features = maps
    mask_features = -mask_features.abs()
    decoder.decoder.mask_predictor.mask_embedder = torch.nn.ReLU()  # with it no mask logit is above zero
    images, shift = torch.tensor([0, 1]), torch.randn(2, 16)
    with torch.no_grad():
        every = decoder.every_prediction([level[images] for level in levels], mask_features[images], shift)
        queries, _ = decoder(levels, mask_features, shift, images)
    assert every.masks_queries_logits[-1].max() <= 0
    assert queries.isfinite().all()
    torch.testing.assert_close(queries, every.intermediate_hidden_states[-1].transpose(0, 1), **CLOSE)
