"""The mask encoder's attention: what transformers' layers compute, with positions as channels instead of a mask."""

import pytest
import torch
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention

from xsam_model.layers.mask_encoder_attention import XSamVisionAttention, XSamVisionSdpaAttention, attention_like

CONFIG = SamVisionConfig(
    hidden_size=48, num_attention_heads=3, image_size=96, patch_size=8, window_size=5, use_rel_pos=True
)
LAYERS = {"eager": (SamVisionAttention, XSamVisionAttention), "sdpa": (SamVisionSdpaAttention, XSamVisionSdpaAttention)}


def pair(theirs, ours, window_size, config=CONFIG):
    """Both layers with the same random weights."""
    torch.manual_seed(0)
    layer = theirs(config, window_size)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    other = ours(config, window_size)
    other.load_state_dict(layer.state_dict())
    return layer, other


def tokens(height, width):
    return torch.randn(2, height, width, 48, generator=torch.Generator().manual_seed(1), requires_grad=True)


@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("size", [(12, 12, 0), (5, 5, 5), (8, 8, 0)], ids=["whole", "window", "smaller canvas"])
def test_attention_and_its_gradients_are_those_of_transformers(form, size):
    *sides, window_size = size
    outputs, gradients = [], []
    for layer in pair(*LAYERS[form], window_size):
        hidden = tokens(*sides)
        output = layer(hidden)[0]
        output.square().sum().backward()
        outputs.append(output)
        gradients.append([hidden.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=1e-5)
    for ours, theirs in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("form", LAYERS)
def test_attention_without_relative_positions(form):
    config = SamVisionConfig(**{**CONFIG.to_dict(), "use_rel_pos": False})
    theirs, ours = pair(*LAYERS[form], 0, config)
    torch.testing.assert_close(ours(tokens(12, 12))[0], theirs(tokens(12, 12))[0], atol=1e-5, rtol=1e-5)


def test_positions_decide_where_a_token_attends():
    _, layer = pair(*LAYERS["sdpa"], 0)
    hidden = tokens(12, 12)
    with torch.no_grad():
        before = layer(hidden)[0]
        layer.rel_pos_w.add_(torch.randn(layer.rel_pos_w.shape, generator=torch.Generator().manual_seed(2)))
        assert (layer(hidden)[0] - before).abs().max() > 0.1


def test_other_layers_stay_as_they_are():
    theirs, ours = pair(*LAYERS["sdpa"], 0)
    assert type(attention_like(theirs, CONFIG, 0)) is XSamVisionSdpaAttention
    assert attention_like(ours, CONFIG, 0) is ours
    other = torch.nn.Identity()
    assert attention_like(other, CONFIG, 0) is other
