"""The transformer decoder: from feature maps of the pixel decoder and `<SEG>` embeddings to queries and mask logits.

`forward` returns only the last prediction, and computes what depends on an image alone once for all decodes of it.
`every_prediction` returns the prediction of every layer, which training needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import torch.nn.functional as F
from torch import Tensor
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerMaskedAttentionDecoderLayer,
    Mask2FormerMaskedAttentionDecoderOutput,
    Mask2FormerTransformerModule,
)


class XSamTransformerDecoder(Mask2FormerTransformerModule):
    """Mask2Former's transformer decoder, with the `<SEG>` embedding added to the initial queries."""

    def forward(
        self,
        multi_scale_features: Sequence[Tensor],
        mask_features: Tensor,
        seg_embeddings: Tensor,
        images: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode queries and mask logits.

        The attention mask of a layer is a mask prediction at that layer's lower resolution. Mask features are resized
        before the product with the queries instead of after it; both are linear, so the result is the same.

        Args:
            multi_scale_features: (I, C, H_i, W_i) each, lowest resolution first.
            mask_features: (I, C, H, W).
            seg_embeddings: (N, C), added to the features of every query.
            images: (N,) int64, the image of each decode.

        Returns:
            Queries (N, Q, C) after the final layer norm, and mask logits (N, Q, H, W).
        """
        # Images that nothing is decoded of, such as those whose answer has no `<SEG>`, are left out.
        used, images, counts = images.unique(return_inverse=True, return_counts=True)
        if len(used) < len(mask_features):
            multi_scale_features, mask_features = [level[used] for level in multi_scale_features], mask_features[used]
        # Sorted by image for the products below, and put back at the end.
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
            # The logit is at least 0 where the probability is at least 0.5, without computing a sigmoid.
            seen = by_image.product(self._mask_embeddings(hidden), small[level]) >= 0
            seen |= ~seen.any(-1, keepdim=True)  # a query with an empty mask attends everywhere
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
        """Decode queries and return the predictions before the first and after every layer.

        Args:
            multi_scale_features: (N, C, H_i, W_i) each, lowest resolution first.
            mask_features: (N, C, H, W).
            seg_embeddings: (N, C), added to the features of every query.

        Returns:
            `masks_queries_logits` and `intermediate_hidden_states` (queries after the final layer norm) of every
            prediction, in order.
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
        """(I, C, H_i, W_i) each -> tokens (I, H_i * W_i, C) each, and their position embeddings (1, H_i * W_i, C)."""
        tokens, positions = [], []
        for level, level_map in enumerate(multi_scale_features):
            position = self.position_embedder(level_map.shape, level_map.device, level_map.dtype, None)
            projected = self.input_projections[level](level_map).flatten(2) + self.level_embed.weight[level][:, None]
            tokens.append(projected.transpose(1, 2))
            positions.append(position.flatten(2).transpose(1, 2))
        return tokens, positions

    def _mask_embeddings(self, hidden: Tensor) -> Tensor:
        """Queries (N, Q, C) -> mask embeddings (N, Q, C), whose product with mask features gives mask logits."""
        return self.decoder.mask_predictor.mask_embedder(self.decoder.layernorm(hidden))


class _Grouped:
    """Batches decodes by image: if all images have equally many, those of one image share one matrix product.

    Decodes must be sorted by image.
    """

    def __init__(self, images: Tensor, counts: Tensor) -> None:
        self._images, self._num_images = images, len(counts)
        self._is_even = bool((counts == counts[0]).all())

    def fold(self, rows: Tensor) -> Tensor:
        """(N, Q, ...) -> (I, N / I * Q, ...) where images have equally many decodes, else unchanged."""
        return rows.reshape(self._num_images, -1, *rows.shape[2:]) if self._is_even else rows

    def spread(self, per_image: Tensor) -> Tensor:
        """(I, ...) -> the operand for folded rows: unchanged if rows are folded, else repeated to (N, ...)."""
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
    """Run one decoder layer: masked cross-attention, self-attention and MLP.

    Args:
        layer: holds the weights.
        hidden: (N, Q, C), the queries.
        places: (Q, C), position embeddings of the queries.
        tokens: (I, T, C), tokens of the images.
        positions: (1, T, C), their position embeddings.
        seen: (N, Q, T) bool, tokens that each query may attend to.
        by_image: which decodes are of which image.
    """

    def look(hidden: Tensor) -> Tensor:
        attention = layer.cross_attn
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        given = (by_image.fold(hidden + places), tokens + positions, tokens)
        query, key, value = (F.linear(x, w, b) for x, w, b in zip(given, weights, biases, strict=True))
        # Keys and values are projected once an image and repeated only then.
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
    """Multi-head attention: (B, Q, C), (B, T, C), (B, T, C) and optionally (B, Q, T) bool -> (B, Q, C)."""
    query, key, value = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    mask = None if seen is None else seen[:, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
