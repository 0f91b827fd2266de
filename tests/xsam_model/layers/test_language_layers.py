"""Phi-3's layers in fewer passes: the hidden states of transformers' own layers."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config
from transformers.cache_utils import DynamicCache
from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

from xsam_model.layers.language_layers import (
    XSamPhi3Attention,
    XSamPhi3RMSNorm,
    attend_in_window,
    read_right_padded,
    rotate,
    use_language_layers,
)

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


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 1, 4, 5, 20])
@torch.inference_mode()
def test_texts_padded_on_the_right_are_read_as_if_each_stood_alone(attention, window):
    theirs, ours = both(attention, sliding_window=window)
    texts = [torch.randn(length, 48) for length in (11, 5, 16, 1)]
    found = read_right_padded(ours.base_model, torch.nn.utils.rnn.pad_sequence(texts, batch_first=True))
    for row, text in zip(found, texts, strict=True):
        expected = theirs.base_model(inputs_embeds=text[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(row[: len(text)], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("window", [None, 5, 16])
@torch.inference_mode()
def test_states_that_are_left_out_change_no_other(attention, window):
    theirs, ours = both(attention, sliding_window=window)
    embeds = torch.randn(2, 16, 48)
    expected = theirs.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    for first in (0, 1, 9, 15):
        found = read_right_padded(ours.base_model, embeds, states_from=first)
        torch.testing.assert_close(found, expected[:, first:], atol=1e-5, rtol=1e-5)


def test_a_text_longer_than_the_window_is_read_without_its_mask(monkeypatch):
    _, ours = both(sliding_window=4)
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watched(*tensors, attn_mask=None, is_causal=False, **options):
        seen.append((is_causal, None if attn_mask is None else tuple(attn_mask.shape)))
        return attention(*tensors, attn_mask=attn_mask, is_causal=is_causal, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.inference_mode():
        read_right_padded(ours.base_model, torch.randn(1, 9, 48))
    assert seen == 2 * [(True, None), (False, (4, 7)), (False, (1, 4))]


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize(("length", "window"), [(1, 1), (7, 3), (9, 3), (10, 3), (5, 8), (8, 8), (9, 8)])
def test_attention_in_a_window_is_that_under_its_mask(length, window, key_heads):
    query, key, value = (torch.randn(2, heads, length, 8) for heads in (6, key_heads, key_heads))
    places = torch.arange(length)
    back = places[:, None] - places
    expected = torch.nn.functional.scaled_dot_product_attention(
        query,
        *(part.repeat_interleave(6 // key_heads, 1) for part in (key, value)),
        attn_mask=(back >= 0) & (back < window),
        scale=0.3,
    )
    torch.testing.assert_close(attend_in_window(query, key, value, window, 0.3).transpose(1, 2), expected)


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


@pytest.mark.parametrize("window", [None, 3])
def test_with_a_gradient_each_weight_gets_its_own(window):
    theirs, ours = both(sliding_window=window)
    embeds = torch.randn(2, 7, 48)
    theirs.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state.square().sum().backward()
    read_right_padded(ours.base_model, embeds).square().sum().backward()
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
    embeds = torch.randn(1, 4, 48)
    expected = other.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    torch.testing.assert_close(read_right_padded(other.base_model, embeds), expected)
