"""Builds a small X-SAM with random weights that runs in milliseconds on one core: for the demo, tests and dry runs.

Its masks mean nothing, but they are finite, not empty, and the same for the same seed on every machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xsam_model.configuration_xsam import XSamConfig
from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import ADDED_TOKENS, XSamProcessor, add_tokens

BASE_TOKENS = ("<unk>", "<s>", "</s>")
_CHAT_TOKENS = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")

# Untrained mask logits are about 1e-3, which is undecided at every pixel. This brings them to about 1.
_MASK_LOGIT_GAIN = 1000.0

_VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 28,
}
_MASK_ENCODER = {
    "hidden_size": 64,
    "mlp_dim": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 256,
    "patch_size": 16,
    "window_size": 7,
    "global_attn_indexes": [1, 3],
    "output_channels": 16,
    "num_pos_feats": 8,
}
_LANGUAGE = {
    "model_type": "phi3",
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
    "sliding_window": 2047,
}
_SEGMENTOR = {
    "select_layers": [1, 2, 3, 4],
    "connector_hidden_dim": 48,
    "feature_size": 64,
    "mask_feature_size": 64,
    "hidden_dim": 64,
    "encoder_feedforward_dim": 128,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 4,
    "dim_feedforward": 128,
    "num_queries": 32,
}
_SIZES = {
    "vision_config": _VISION,
    "mask_encoder_config": _MASK_ENCODER,
    "text_config": _LANGUAGE,
    "segmentor_config": _SEGMENTOR,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with the chat tokens of Phi-3 and the tokens of X-SAM; no data needed."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*BASE_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in BASE_TOKENS])
    return with_chat_tokens(tokenizer)


def with_chat_tokens(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Add the chat tokens of Phi-3 and the tokens of X-SAM to a tokenizer that has `BASE_TOKENS`."""
    # In Phi-3's tokenizer, white space after a chat token belongs to the token.
    chat = [AddedToken(token, rstrip=True, normalized=False, special=True) for token in _CHAT_TOKENS]
    tokenizer.add_special_tokens(chat)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    add_tokens(fast)
    return fast


def untrained_tiny_config(**overrides: Any) -> XSamConfig:
    """Return a configuration of about a million parameters: 256 pixel canvas, 112 pixel vision tower, 32 queries.

    Args:
        overrides: fields of `XSamConfig` that replace these.
    """
    return config_with(build_tokenizer(), _SIZES, **overrides)


def config_with(tokenizer: PreTrainedTokenizerFast, sizes: Mapping[str, Any], **overrides: Any) -> XSamConfig:
    """Return the configuration of a model of these sizes, fields of `XSamConfig`, that reads a tokenizer's tokens.

    Args:
        tokenizer: a tokenizer with X-SAM's tokens.
        sizes: the parts' configurations, `text_config` among them.
        overrides: fields that replace all others.
    """
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    seg, start, end = tokenizer.convert_tokens_to_ids(list(ADDED_TOKENS))
    fields: dict[str, Any] = {
        **sizes,
        "text_config": {**sizes["text_config"], **special, "vocab_size": len(tokenizer)},
        "seg_token_id": seg,
        "phrase_start_token_id": start,
        "phrase_end_token_id": end,
    }
    return XSamConfig(**{**fields, **overrides})


def build_processor(config: XSamConfig, tokenizer: PreTrainedTokenizerFast) -> XSamProcessor:
    """Return the processor for a model with this configuration."""
    return XSamProcessor(
        XSamImageProcessor(
            vision_size=config.vision_config.image_size, segmentor_size=config.mask_encoder_config.image_size
        ),
        tokenizer,
        max_text_length=config.max_text_length,
        image_token_index=config.image_token_index,
        region_token_index=config.region_token_index,
    )


def save_untrained(
    folder: str | Path,
    seed: int = 0,
    config: XSamConfig | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a complete `from_pretrained` folder: configuration, random weights, tokenizer and processor.

    Args:
        folder: created if missing.
        seed: seed of the weights; the same seed writes the same bytes.
        config: sizes; `untrained_tiny_config()` by default.
        tokenizer: the tokenizer of the config's token ids; `build_tokenizer()` by default.

    Returns:
        The folder.
    """
    folder = Path(folder)
    config = untrained_tiny_config() if config is None else config
    # Leaves the caller's random state alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = XSamForSegmentation(config)
    with torch.no_grad():
        model.segmentor.pixel_decoder.mask_projection.weight.mul_(_MASK_LOGIT_GAIN)
    model.save_pretrained(folder)
    build_processor(config, build_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder


__all__ = [
    "BASE_TOKENS",
    "build_processor",
    "build_tokenizer",
    "config_with",
    "save_untrained",
    "untrained_tiny_config",
    "with_chat_tokens",
]
