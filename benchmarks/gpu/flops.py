"""Floating-point operations of one image through X-SAM, from its sizes: what a share of a device's peak is a share of.

A multiplication and an addition are two operations. With L tokens of d channels:

    a matrix of a x b on L tokens            2 L a b
    attention of L tokens to M               4 L M d   (scores, and the mix of values)
    causal attention, window w               4 d (sum over i <= L of min(i, w))   the half that is needed
    relative positions of the mask encoder   4 L s d   (s: side of the map or window; rows and columns)

Layers that inference leaves out are not counted; norms, activations, softmax and the sampling of deformable attention
are not either. The pixel decoder and the transformer decoder, one or two hundredths of the whole, are counted by
torch's own FlopCounterMode while they run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from xsam_model.configuration_xsam import XSamConfig
    from xsam_model.modeling_xsam import XSamForSegmentation


def flops_per_image(config: XSamConfig, sequence_length: int) -> dict[str, float]:
    """Return the operations of one image by part, without the two decoders.

    Args:
        config: sizes.
        sequence_length: tokens of the language model, those of the image included.
    """
    vision, mask, text = config.vision_config, config.mask_encoder_config, config.text_config
    return {
        "vision tower": _vision_tower(config),
        "mask encoder": _mask_encoder(config),
        "visual projector": _projector(_vision_tokens(config), vision.hidden_size, text.hidden_size),
        "seg projector": _projector(
            config.num_image_tokens - _vision_tokens(config),
            mask.hidden_size * config.token_downsample**2,
            text.hidden_size,
        ),
        "connector": _connector(config),
        "language model": _language_model(config, sequence_length),
    }


def count_decoders(model: XSamForSegmentation, inputs: Mapping[str, Any]) -> dict[str, float]:
    """Run the model, whose weights need no gradient, on one image and return what torch counts in its two decoders."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(**inputs)
    counts = counter.get_flop_counts()
    parts = {"pixel decoder": "segmentor.pixel_decoder", "transformer decoder": "segmentor.decoder"}
    return {
        part: float(sum(next((c for name, c in counts.items() if name.endswith(module)), {}).values()))
        for part, module in parts.items()
    }


def _matrix(tokens: float, rows: float, columns: float) -> float:
    return 2 * tokens * rows * columns


def _layer(tokens: float, channels: int, inner: int) -> float:
    """The matrices of a transformer layer: query, key, value, output, and two around the activation."""
    return _matrix(tokens, channels, 4 * channels) + _matrix(tokens, channels, 2 * inner)


def _attention(tokens: float, others: float, channels: int) -> float:
    return 4 * tokens * others * channels


def _vision_tokens(config: XSamConfig) -> int:
    return int((config.vision_config.image_size // config.vision_config.patch_size) ** 2)


def _vision_tower(config: XSamConfig) -> float:
    vision, tokens = config.vision_config, _vision_tokens(config)
    layers = config.vision_select_layer + (vision.num_hidden_layers + 1 if config.vision_select_layer < 0 else 0)
    layer = _layer(tokens, vision.hidden_size, vision.intermediate_size)
    layer += _attention(tokens, tokens, vision.hidden_size)
    return _matrix(tokens, 3 * vision.patch_size**2, vision.hidden_size) + layers * layer


def _mask_encoder(config: XSamConfig) -> float:
    mask = config.mask_encoder_config
    channels, side, window = mask.hidden_size, mask.image_size // mask.patch_size, mask.window_size
    tokens = side**2
    padded = (math.ceil(side / window) * window) ** 2
    depth = max(config.segmentor_config.used_layers)
    num_global = sum(index < depth for index in mask.global_attn_indexes)

    def layer(attending: int, span: int) -> float:
        matrices = _matrix(attending, channels, 4 * channels) + _matrix(tokens, channels, 2 * mask.mlp_dim)
        return matrices + _attention(attending, span**2, channels) + 4 * attending * span * channels

    patches = _matrix(tokens, 3 * mask.patch_size**2, channels)
    return patches + num_global * layer(tokens, side) + (depth - num_global) * layer(padded, window)


def _projector(tokens: float, channels: int, out_channels: int) -> float:
    return _matrix(tokens, channels, out_channels) + _matrix(tokens, out_channels, out_channels)


def _connector(config: XSamConfig) -> float:
    mask, inner = config.mask_encoder_config, config.segmentor_config.connector_hidden_dim
    tokens, channels = (mask.image_size // mask.patch_size) ** 2, mask.hidden_size
    return sum(
        _matrix(tokens, channels, inner) + _matrix(tokens, 9 * inner, inner) + _matrix(tokens, inner, channels * scale)
        for scale in config.segmentor_config.used_scale_factors
    )


def _language_model(config: XSamConfig, tokens: int) -> float:
    text = config.text_config
    channels, heads = text.hidden_size, text.num_attention_heads
    key_value = channels * (text.num_key_value_heads or heads) // heads
    window = min(text.sliding_window or tokens, tokens)
    pairs = window * (window + 1) / 2 + (tokens - window) * window
    matrices = _matrix(tokens, channels, 2 * channels + 2 * key_value) + _matrix(
        tokens, channels, 3 * text.intermediate_size
    )
    return float(text.num_hidden_layers * (matrices + 4 * pairs * channels))
