"""From the pixel decoder's maps and `<SEG>` embeddings to queries and mask logits.

`forward` gives the last prediction alone, with everything that depends on an image alone computed once for all that is
asked of it; `every_prediction` gives all of them, as training needs them.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerTransformerModule,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class XSamTransformerDecoder(Mask2FormerTransformerModule):
    """Mask2Former's transformer decoder whose initial queries are shifted by the `<SEG>` embedding."""

    def forward(
        self,
        multi_scale_features: Sequence[Tensor],
        mask_features: Tensor,
        seg_embeddings: Tensor,
        images: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode queries.

        What the masked attention of a layer looks at is a prediction at its own, lower resolution: mask features are
        resized before they meet the queries, which is the same as after, for both are linear.

        Args:
            multi_scale_features: (I, C, H_i, W_i) each, lowest resolution first.
            mask_features: (I, C, H, W).
            seg_embeddings: (N, C), added to every query's features.
            images: (N,) int64, the image of each.

        Returns:
            Normalised queries (N, Q, C), and mask logits (N, Q, H, W).
        """
        used, images, counts = images.unique(return_inverse=True, return_counts=True)
        if len(used) < len(mask_features):
            multi_scale_features, mask_features = [level[used] for level in multi_scale_features], mask_features[used]
        order = images.argsort(stable=True)
        by_image = _Grouped(images[order], counts)
        tokens, positions = self._memories(multi_scale_features)
        small = [
            F.interpolate(mask_features, level.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
            for level in multi_scale_features
        ]
        places = self.queries_embedder.weight
        hidden = self.queries_features.weight + seg_embeddings[order, None]
        for layer, level in zip(self.decoder.layers, cycle(range(len(tokens)))):
            seen = by_image.product(self._mask_embeddings(hidden), small[level]) >= 0
            seen |= ~seen.any(-1, keepdim=True)  # a query that sees nothing looks everywhere
            hidden = _decode_layer(layer, hidden, places, tokens[level], positions[level], seen, by_image)
        queries, back = self.decoder.layernorm(hidden), order.argsort()
        masks = by_image.product(self._mask_embeddings(hidden), mask_features.flatten(2))
        return queries[back], masks[back].unflatten(-1, mask_features.shape[-2:])

    def every_prediction(
        self,
        multi_scale_features: Sequence[Tensor],
        mask_features: Tensor,
        seg_embeddings: Tensor,
    ) -> Mask2FormerMaskedAttentionDecoderOutput:
        """Decode queries and return what each layer predicts.

        Args:
            multi_scale_features: (N, C, H_i, W_i) each, lowest resolution first.
            mask_features: (N, C, H, W).
            seg_embeddings: (N, C), added to every query's features.

        Returns:
            `masks_queries_logits` and `intermediate_hidden_states` (normalised queries) of every prediction, in order.
        """
        tokens, positions = self._memories(multi_scale_features)
        return self.decoder(
            inputs_embeds=self.queries_features.weight[:, None] + seg_embeddings[None],
            query_position_embeddings=self.queries_embedder.weight[:, None].expand(-1, len(seg_embeddings), -1),
            multi_stage_positional_embeddings=[position.transpose(0, 1) for position in positions],
            pixel_embeddings=mask_features,
            encoder_hidden_states=[level.transpose(0, 1) for level in tokens],
            feature_size_list=[level_map.shape[-2:] for level_map in multi_scale_features],
            return_dict=True,
        )

    def _memories(self, multi_scale_features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(I, C, H_i, W_i) each -> tokens (I, H_i * W_i, C) each, and their positions (1, H_i * W_i, C)."""
        tokens, positions = [], []
        for level, level_map in enumerate(multi_scale_features):
            shape = torch.Size((1, *level_map.shape[1:]))
            position = self.position_embedder(shape, level_map.device, level_map.dtype, None)
            projected = self.input_projections[level](level_map).flatten(2) + self.level_embed.weight[level][:, None]
            tokens.append(projected.transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
        return tokens, positions

    def _mask_embeddings(self, hidden: Tensor) -> Tensor:
        """(N, Q, C) -> (N, Q, C): what is compared with mask features."""
        return self.decoder.mask_predictor.mask_embedder(self.decoder.layernorm(hidden))


class _Grouped:
    """Decodes in the order of their images: where all images have as many, those of one are rows of one product."""

    def __init__(self, images: Tensor, counts: Tensor) -> None:
        self._images, self._num_images = images, len(counts)
        self._is_even = bool((counts == counts[0]).all())

    def fold(self, rows: Tensor) -> Tensor:
        """(N, Q, ...) -> (I, N / I * Q, ...) where images have equally many decodes, else unchanged."""
        return rows.reshape(self._num_images, -1, *rows.shape[2:]) if self._is_even else rows

    def spread(self, per_image: Tensor) -> Tensor:
        """(I, ...) -> what stands beside folded rows: the same, or (N, ...)."""
        return per_image if self._is_even else per_image[self._images]

    def product(self, rows: Tensor, per_image: Tensor) -> Tensor:
        """(N, Q, C) and (I, C, T) -> (N, Q, T)."""
        return (self.fold(rows) @ self.spread(per_image)).view(*rows.shape[:2], -1)


def _decode_layer(  # noqa: PLR0917  (what a layer of the decoder sees)
    layer: Mask2FormerMaskedAttentionDecoderLayer,
    hidden: Tensor,
    places: Tensor,
    tokens: Tensor,
    positions: Tensor,
    seen: Tensor,
    by_image: _Grouped,
) -> Tensor:
    """Masked cross-attention, self-attention and MLP.

    Args:
        layer: holds the weights.
        hidden: (N, Q, C).
        places: (Q, C), position embeddings of the queries.
        tokens: (I, T, C), of the images.
        positions: (1, T, C), their position embeddings.
        seen: (N, Q, T) bool, what each query may look at.
        by_image: whose decodes are whose.
    """

    def look(hidden: Tensor) -> Tensor:
        attention = layer.cross_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        given = (by_image.fold(hidden + places), tokens + positions, tokens)
        query, key, value = (F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True))
        key, value = by_image.spread(key), by_image.spread(value)
        found = _attend(query, key, value, attention.num_heads, by_image.fold(seen))
        return attention.out_proj(found.view_as(hidden))

    def compare(hidden: Tensor) -> Tensor:
        attention, placed = layer.self_attn, hidden + places
        projected = attention.q_proj(placed), attention.k_proj(placed), attention.v_proj(hidden)
        return attention.out_proj(_attend(*projected, attention.num_heads))

    def transform(hidden: Tensor) -> Tensor:
        return layer.fc2(layer.activation_fn(layer.fc1(hidden)))

    for block, norm in (
        (look, layer.cross_attn_layer_norm),
        (compare, layer.self_attn_layer_norm),
        (transform, layer.final_layer_norm),
    ):
        hidden = hidden + block(norm(hidden)) if layer.pre_norm else norm(hidden + block(hidden))
    return hidden


def _attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, seen: Tensor | None = None) -> Tensor:
    """(B, Q, C), (B, T, C), (B, T, C) and perhaps (B, Q, T) bool -> (B, Q, C)."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if seen is None else seen[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


__all__ = ["XSamTransformerDecoder"]
