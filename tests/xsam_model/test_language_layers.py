"""Phi-3's layers in fewer passes: the hidden states of transformers' own layers."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from transformers.cache_utils import DynamicCache
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from xsam_model.language_layers import XSamPhi3Attention, XSamPhi3RMSNorm, rotate, use_language_layers

SIZES = {"vocab_size": 50, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
ROPE = {"rope_theta": 1e4, "rope_type": "default"}


def both(attention="sdpa", **config):
    """The model with transformers' layers, and with ours."""
    torch.manual_seed(0)
    sizes = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    theirs = AutoModelForCausalLM.from_config(Phi3Config(**{**sizes, **config}), attn_implementation=attention).eval()
    ours = copy.deepcopy(theirs)
    use_language_layers(ours)
    return theirs, ours


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "config",
    [{}, {"sliding_window": 5}, {"rope_parameters": {**ROPE, "partial_rotary_factor": 0.5}}],
    ids=["whole", "window", "partial rotation"],
)
@torch.inference_mode()
def test_hidden_states_are_those_of_transformers_layers(attention, config):
    theirs, ours = both(attention, **config)
    embeds = torch.randn(3, 11, 48)
    expected = theirs.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    found = ours.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@torch.inference_mode()
def test_in_bfloat16_a_gpu_comes_as_close_to_float32_as_with_transformers_layers():
    theirs, ours = both()
    embeds = torch.randn(3, 300, 48)
    exact = theirs.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    errors = []
    for model in (theirs, ours):
        found = model.to("cuda", torch.bfloat16).base_model(
            inputs_embeds=embeds.to("cuda", torch.bfloat16), use_cache=False
        )
        errors.append((found.last_hidden_state.float().cpu() - exact).abs().mean().item())
    assert 0 < errors[1] <= 1.2 * errors[0]


@torch.inference_mode()
def test_what_was_read_before_is_kept():
    theirs, ours = both()
    embeds, caches = torch.randn(2, 9, 48), []
    for model in (theirs, ours):
        cache = DynamicCache(config=model.config)
        model.base_model(inputs_embeds=embeds[:, :6], past_key_values=cache, use_cache=True)
        model.base_model(inputs_embeds=embeds[:, 6:], past_key_values=cache, use_cache=True)
        caches.append(cache)
    for expected, found in zip(caches[0].layers, caches[1].layers, strict=True):
        torch.testing.assert_close(found.keys, expected.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_in_bfloat16_a_rotation_is_no_further_from_the_exact_one_than_transformers():
    generator = torch.Generator().manual_seed(0)
    heads = torch.randn(2, 200, 6, 16, generator=generator)
    angles = torch.rand(1, 200, 8, generator=generator).mul(6.3).repeat(1, 1, 2)
    whole = heads.bfloat16(), angles.cos().bfloat16(), angles.sin().bfloat16()
    exact = rotate(*(part.double() for part in whole))
    theirs, _ = apply_rotary_pos_emb(*[whole[0].transpose(1, 2)] * 2, *whole[1:])
    ours_error, their_error = (
        (found.double() - exact).abs().mean() for found in (rotate(*whole), theirs.transpose(1, 2))
    )
    assert 0 < ours_error <= their_error


def test_with_a_gradient_each_weight_gets_its_own():
    theirs, ours = both()
    embeds = torch.randn(2, 7, 48)
    for model in (theirs, ours):
        model.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.square().sum().backward()
    expected = dict(theirs.base_model.named_parameters())
    for name, weight in ours.base_model.named_parameters():
        if expected[name].grad is not None:
            torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-3, rtol=1e-3, msg=name)


def test_only_phi3_is_changed():
    _, ours = both()
    kinds = {type(module) for module in ours.modules()}
    assert {XSamPhi3Attention, XSamPhi3RMSNorm} <= kinds
    other = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, num_attention_heads=4))
    before = [type(module) for module in other.modules()]
    use_language_layers(other)
    assert [type(module) for module in other.modules()] == before
