"""The segmentor: mask encoder, connector, pixel decoder, transformer decoder and class head.

Contains only what X-SAM changes; the pixel decoder and the transformer decoder are transformers' Mask2Former. Shape
letters: B images, N decodes (one per `<SEG>`), Q queries, K conditions, C channels, H and W rows and columns of a map.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoder,
    Mask2FormerPreTrainedModel,
)
from transformers.models.sam.modeling_sam import SamPositionalEmbedding, SamVisionEncoder

from xsam_model.configuration_xsam import XSamConfig, XSamSegmentorConfig, XSamTrunkConfig
from xsam_model.layers.deformable_attention import XSamDeformableAttention
from xsam_model.layers.mask_encoder_attention import attention_like
from xsam_model.layers.sine_positions import use_sine_positions
from xsam_model.layers.transformer_decoder import XSamTransformerDecoder
from xsam_model.layers.trunk import XSamTrunk, XSamTrunkConv

# Both as in the reference implementation.
MAX_CLASS_LOGIT = 500.0
PADDED_CLASS_LOGIT = -1e9
_SAMPLES = ("heads", "levels", "points")


def space_to_depth(features: Tensor, block: int) -> Tensor:
    """Fold every block x block square of a (B, H, W, C) map into channels (pixel unshuffle).

    Returns:
        (B, H / block, W / block, block * block * C), channels ordered by row in the block, column in it, and channel.
    """
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height // block, block, width // block, block, channels)
    return blocks.permute(0, 1, 3, 2, 4, 5).reshape(batch, height // block, width // block, -1)


def depth_to_space(features: Tensor, block: int) -> Tensor:
    """Unfold channels of a (B, H, W, C) map into block x block squares (pixel shuffle).

    Channels are ordered by column in the block, row in it, and channel, as the released weights expect. This is
    *not* the inverse of `space_to_depth`, nor the order of `torch.nn.PixelShuffle`.

    Returns:
        (B, H * block, W * block, C / block**2).
    """
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height, width, block, block, channels // block**2)
    return blocks.permute(0, 1, 4, 2, 3, 5).reshape(batch, height * block, width * block, -1)


def pad_to_multiple(features: Tensor, multiple: int) -> Tensor:
    """Zero-pad a (B, H, W, C) map at the bottom and right until both sides are multiples."""
    height, width = features.shape[1:3]
    return F.pad(features, (0, 0, 0, -width % multiple, 0, -height % multiple))


class XSamChannelNorm(nn.LayerNorm):
    """Layer normalization over the channels of a (B, C, H, W) map, rounded as in the reference implementation.

    `mask_encoder_attention` says why the rounding matters.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), with float32 statistics; fastest with the channels last in memory."""
        if features.dtype == self.weight.dtype == torch.float32:  # torch normalizes no mixed types
            normal = F.layer_norm(features.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
            return normal.permute(0, 3, 1, 2)
        centered = features.float() - features.float().mean(1, keepdim=True)
        normal = centered / torch.sqrt(centered.pow(2).mean(1, keepdim=True) + self.eps)
        # Cast back before the affine part, not after it.
        return self.weight[:, None, None] * normal.to(features.dtype) + self.bias[:, None, None]


class XSamConnectorBranch(nn.Module):
    """One level of the connector: a bottleneck without activations, then a pixel shuffle (X-SAM, sec. 3.2)."""

    def __init__(self, in_channels: int, hidden_channels: int, scale: float, *, even: bool = True) -> None:
        super().__init__()
        self.scale, self.multiple = scale, max(2 if even else 1, round(1 / scale))
        out_channels = int(in_channels * scale)
        self.model = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, 1, bias=False),
            XSamChannelNorm(hidden_channels),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=False),
            XSamChannelNorm(hidden_channels),
            nn.Conv2d(hidden_channels, out_channels, 1, bias=False),
            XSamChannelNorm(out_channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, C / scale, H * scale, W * scale), the channels last in memory."""
        # Of no effect for an even number of patches, as in the released weights.
        features = pad_to_multiple(features, self.multiple)
        features = self.model(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if self.scale < 1:
            features = space_to_depth(features, round(1 / self.scale))
        elif self.scale > 1:
            features = depth_to_space(features, round(self.scale))
        return features.permute(0, 3, 1, 2)


class XSamConnector(nn.Module):
    """Turns hidden states of the mask encoder into a feature pyramid; those of SAM's ViT have all one resolution."""

    def __init__(self, config: XSamConfig) -> None:
        super().__init__()
        segmentor = config.segmentor_config
        # A row of padding would shift a trunk's map against the others.
        even = not isinstance(config.mask_encoder_config, XSamTrunkConfig)
        self.model = nn.ModuleList(
            XSamConnectorBranch(config.mask_encoder_map(layer)[0], segmentor.connector_hidden_dim, scale, even=even)
            for layer, scale in zip(segmentor.used_layers, segmentor.used_scale_factors, strict=True)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (B, H, W, C) map per branch -> one (B, C_i, H_i, W_i) map per branch, highest resolution first."""
        return [branch(level) for branch, level in zip(self.model, features, strict=True)]


class XSamSegmentor(Mask2FormerPreTrainedModel):
    """Mask encoder, pixel decoder, transformer decoder and class head."""

    config: XSamSegmentorConfig
    config_class = XSamSegmentorConfig
    # This class dispatches no attention itself, so it accepts all; the mask encoder checks its own configuration.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    # Deformable attention samples at fractions of a pixel: half precision would move its samples.
    _keep_in_fp32_modules_strict = ["pixel_decoder"]  # noqa: RUF012

    def __init__(self, whole: XSamConfig) -> None:
        config: XSamSegmentorConfig = whole.segmentor_config
        super().__init__(config)
        mask2former, encoder = config.to_mask2former(), whole.mask_encoder_config
        levels = zip(config.used_layers, config.used_scale_factors, strict=True)
        channels = [int(whole.mask_encoder_map(layer)[0] / scale) for layer, scale in levels]
        if isinstance(encoder, XSamTrunkConfig):
            self.encoder = XSamTrunk(encoder, whole.mask_encoder_map(whole.token_layer))
        else:
            # Unused; kept so that checkpoints of the reference implementation convert both ways without loss.
            self.shared_image_embedding = SamPositionalEmbedding(encoder)
            vit = SamVisionEncoder(encoder)
            for layer in vit.layers:
                layer.attn = attention_like(layer.attn, encoder, layer.window_size)
            self.encoder = vit
        self.pixel_decoder = Mask2FormerPixelDecoder(mask2former, feature_channels=channels)
        for layer in self.pixel_decoder.encoder.layers:
            sizes = (layer.self_attn.d_model, *(getattr(layer.self_attn, f"n_{name}") for name in _SAMPLES))
            layer.self_attn = XSamDeformableAttention(*sizes)
        self.decoder = XSamTransformerDecoder(in_features=config.feature_size, config=mask2former)
        use_sine_positions(self)
        self.logit_scale = nn.Parameter(torch.full([1], config.logit_scale_init))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, XSamSegmentor):
            init.constant_(module.logit_scale, self.config.logit_scale_init)
        elif isinstance(module, SamPositionalEmbedding):
            init.normal_(module.positional_embedding, std=module.scale)
        elif isinstance(module, XSamTrunk):
            init.copy_(module.token_positions, module.initial_positions())
        elif isinstance(module, XSamTrunkConv):
            # Without normalization, other variances would fade or explode from stage to stage.
            init.kaiming_normal_(module.weight, nonlinearity="linear" if module.linear else "relu")
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    def encode(self, pixel_values: Tensor, layers: Collection[int]) -> dict[int, Tensor]:
        """Run the mask encoder up to the deepest layer asked for; SAM's neck is never needed.

        Args:
            pixel_values: (B, 3, S, S), normalized.
            layers: hidden states to return: 0 is the patch embedding or the stem, i the output of layer i.

        Returns:
            (B, H, W, C) for each of `layers`.
        """
        if isinstance(self.encoder, XSamTrunk):
            return self.encoder.encode(pixel_values, layers)
        hidden = self.encoder.patch_embed(pixel_values)
        if self.encoder.pos_embed is not None:
            hidden = hidden + self.encoder.pos_embed
        kept = {0: hidden}
        for index, layer in enumerate(self.encoder.layers[: max(layers)], start=1):
            hidden = layer(hidden)
            if index in layers:
                kept[index] = hidden
        return {index: kept[index] for index in layers}

    def place_tokens(self, features: Tensor) -> Tensor:
        """Make a hidden state (B, H, W, C) of the mask encoder ready to become language tokens of the same shape."""
        # A ViT's tokens know their places from its first layer on.
        return features + self.encoder.token_positions if isinstance(self.encoder, XSamTrunk) else features

    def decode_pixels(self, pyramid: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """Run the pixel decoder on the connector's pyramid.

        Args:
            pyramid: (B, C_i, H_i, W_i), highest resolution first.

        Returns:
            Feature maps (B, C, H_i, W_i), lowest resolution first, and mask features (B, C, H, W).
        """
        # In and out of float32, which the pixel decoder keeps in a half-precision model.
        dtype = pyramid[0].dtype
        output = self.pixel_decoder([level.to(self.pixel_decoder.level_embed.dtype) for level in pyramid])
        return tuple(level.to(dtype) for level in output.multi_scale_features), output.mask_features.to(dtype)

    def classify(self, queries: Tensor, conditions: Tensor, condition_mask: Tensor) -> Tensor:
        """Compute class logits: scaled cosine similarity of every query and every condition (X-SAM, sec. 3.2).

        Args:
            queries: (N, Q, C).
            conditions: (N, K + 1, C), the learned background embedding last.
            condition_mask: (N, K + 1) bool, False for padding.

        Returns:
            (N, Q, K + 1) float32 logits in [-500, 500]; -1e9 where padded.
        """
        similarity = F.normalize(queries.float(), dim=-1) @ F.normalize(conditions.float(), dim=-1).transpose(1, 2)
        logits = (self.logit_scale.float().exp() * similarity).clamp(-MAX_CLASS_LOGIT, MAX_CLASS_LOGIT)
        return logits.masked_fill(~condition_mask[:, None], PADDED_CLASS_LOGIT)

    def classify_levels(self, levels: Sequence[Tensor], conditions: Tensor, condition_mask: Tensor) -> Tensor:
        """Compute class logits of the queries of every decoder level, (L, N, Q, K + 1); the other arguments as above.

        Args:
            levels: `decoder_hidden_states` of the output, (Q, N, C) each.
        """
        queries = torch.stack(list(levels)).permute(2, 0, 1, 3)
        logits = self.classify(queries.flatten(1, 2), conditions, condition_mask)
        return logits.unflatten(1, queries.shape[1:3]).transpose(0, 1)
