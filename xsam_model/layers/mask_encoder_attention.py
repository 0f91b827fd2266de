"""Attention of the mask encoder with decomposed relative positions (Li et al. 2022, sec. 4.1).

Two implementations with the weights of transformers' modules: an eager one that rounds as the reference implementation
does, and a fused one that needs no tensor of relative positions for every pair of query and key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention

if TYPE_CHECKING:
    from transformers import SamVisionConfig


# Fused kernels copy queries, keys and values to pad them if their channels are not a multiple of this.
_CHANNEL_MULTIPLE = 8


class XSamVisionAttention(SamVisionAttention):
    """Eager attention of the mask encoder that rounds as the reference implementation does.

    transformers adds the row and column terms to each other before adding them to the scores. The difference is in the
    last bit here but grows to 1e-4 in the mask logits, and the decoder attends where those are positive: a single logit
    near 0 that changes its sign would change all later layers.
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """(B, H, W, C) -> (B, H, W, C) and the attention weights (B * heads, H * W, H * W)."""
        batch, height, width, _ = hidden_states.shape
        size, heads = (height, width), self.num_attention_heads
        qkv = self.qkv(hidden_states).reshape(batch, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.flatten(1, 2).unbind(0)
        weights = (query * self.scale) @ key.transpose(1, 2)
        if self.use_rel_pos:
            grid = query.unflatten(1, size)
            rows = torch.einsum("bhwc,hkc->bhwk", grid, self.get_rel_pos(height, height, self.rel_pos_h))
            columns = torch.einsum("bhwc,wkc->bhwk", grid, self.get_rel_pos(width, width, self.rel_pos_w))
            # One after the other: the order of these additions is what this class is for.
            placed = weights.unflatten(2, size).unflatten(1, size) + rows[..., None] + columns[..., None, :]
            weights = placed.flatten(3, 4).flatten(1, 2)
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        attended = (weights @ value).unflatten(0, (batch, heads)).unflatten(2, size)
        return self.proj(attended.permute(0, 2, 3, 1, 4).flatten(3, 4)), weights


class XSamVisionSdpaAttention(SamVisionSdpaAttention):
    """Fused attention with relative positions as extra channels.

    The bias of a pair is a term of the query for the key's row plus one for its column. Both are inner products with
    one-hot vectors: appended to query and key, they turn score and bias into a single inner product, which fused
    kernels compute without a mask. transformers writes a mask of H * W by H * W for every head and image, and a mask
    with a gradient rules out fused kernels in training.
    """

    def forward(self, hidden_states: Tensor, output_attentions: bool | None = None) -> tuple[Tensor, None]:  # noqa: ARG002
        """(B, H, W, C) -> (B, H, W, C)."""
        height, width = hidden_states.shape[1:3]
        heads = self.num_attention_heads
        query, key, value = self.qkv(hidden_states).unflatten(3, (3, heads, -1)).unbind(3)
        channels = value.shape[-1]
        scaled = query * self.scale
        if self.use_rel_pos:
            to_rows = torch.einsum("bhwnc,hkc->bhwnk", query, self._positions(height, self.rel_pos_h))
            to_columns = torch.einsum("bhwnc,wkc->bhwnk", query, self._positions(width, self.rel_pos_w))
            places = _places(height, width, -(channels + height + width) % _CHANNEL_MULTIPLE, key)
            nothing = query.new_zeros(1).expand(*query.shape[:-1], places.shape[-1] - height - width)
            scaled = torch.cat((scaled, to_rows, to_columns, nothing), -1)
            key = torch.cat((key, places.expand(*key.shape[:-1], -1)), -1)
            # Fused kernels require values to have as many channels as queries.
            value = F.pad(value, (0, places.shape[-1]))
        query, key, value = (part.flatten(1, 2).transpose(1, 2) for part in (scaled, key, value))
        # Scale 1, because only the content channels are to be scaled, and `scaled` has that already.
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended[..., :channels].transpose(1, 2).reshape(*hidden_states.shape[:3], -1)
        return self.proj(attended), None

    def _positions(self, size: int, table: Tensor) -> Tensor:
        """Return the relative position embedding of every pair of rows, or of columns: (size, size, C)."""
        # A table of another size has to be interpolated, which transformers does.
        if len(table) != 2 * size - 1:
            return self.get_rel_pos(size, size, table)
        places = torch.arange(size, device=table.device)
        return table[places[:, None] - places + size - 1]


def _places(height: int, width: int, padding: int, like: Tensor) -> Tensor:
    """Return row and column of each position as one-hot vectors, padded with zeros: (H, W, 1, H + W + padding)."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).expand(height, -1, -1)
    return F.pad(torch.cat((rows, columns), -1), (0, padding))[:, :, None]


def attention_like(layer: SamVisionAttention, config: SamVisionConfig, window_size: int) -> SamVisionAttention:
    """Return the implementation above for a layer of transformers, with new weights; any other layer unchanged.

    Args:
        layer: attention layer of transformers.
        config: configuration of the mask encoder.
        window_size: side of an attention window in tokens, 0 for global attention.
    """
    # Exact types, because the fused class of transformers is a subclass of the eager one.
    if type(layer) is SamVisionAttention:
        return XSamVisionAttention(config, window_size)
    if type(layer) is SamVisionSdpaAttention:
        return XSamVisionSdpaAttention(config, window_size)
    return layer
