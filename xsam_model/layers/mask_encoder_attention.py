"""Attention of the mask encoder: queries see how many rows and columns away a key lies (Li et al. 2022, sec. 4.1).

Two forms with the weights of transformers' modules: one that rounds as the reference implementation does, and one
without a tensor of positions for every pair of query and key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam.modeling_sam import SamVisionAttention, SamVisionSdpaAttention

if TYPE_CHECKING:
    from transformers import SamVisionConfig


# Fused kernels copy queries, keys and values whose channels are no multiple of it.
_CHANNEL_MULTIPLE = 8


class XSamVisionAttention(SamVisionAttention):
    """Eager attention of the mask encoder that rounds as the reference implementation does.

    transformers adds the two relative positions to each other first. The difference, in the last bit, is 1e-4 in the
    mask logits, and the decoder attends where those are positive: one of them close to 0 would change everything.
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
            placed = weights.unflatten(2, size).unflatten(1, size) + rows[..., None] + columns[..., None, :]
            weights = placed.flatten(3, 4).flatten(1, 2)
        weights = weights.softmax(-1, dtype=torch.float32).to(query.dtype)
        attended = (weights @ value).unflatten(0, (batch, heads)).unflatten(2, size)
        return self.proj(attended.permute(0, 2, 3, 1, 4).flatten(3, 4)), weights


class XSamVisionSdpaAttention(SamVisionSdpaAttention):
    """Fused attention that takes relative positions as further channels.

    The position of a pair is the sum of what the query says to the key's row and to its column. Both are inner
    products with one-hot vectors: appended to query and key, they make the whole weight one inner product, which fused
    kernels compute without a mask. transformers writes a mask of H * W by H * W for every head and image, and a mask
    that has a gradient rules fused kernels out in training.
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
            # Fused kernels want as many channels of values as of queries.
            value = F.pad(value, (0, places.shape[-1]))
        query, key, value = (part.flatten(1, 2).transpose(1, 2) for part in (scaled, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        attended = attended[..., :channels].transpose(1, 2).reshape(*hidden_states.shape[:3], -1)
        return self.proj(attended), None

    def _positions(self, size: int, table: Tensor) -> Tensor:
        """Return what `table` holds for every pair of rows, or of columns: (size, size, C)."""
        if len(table) != 2 * size - 1:
            return self.get_rel_pos(size, size, table)
        places = torch.arange(size, device=table.device)
        return table[places[:, None] - places + size - 1]


def _places(height: int, width: int, padding: int, like: Tensor) -> Tensor:
    """Return which row and which column each place is in, one-hot, and zeros behind: (H, W, 1, H + W + padding)."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=like.dtype, device=like.device).expand(height, -1, -1)
    return F.pad(torch.cat((rows, columns), -1), (0, padding))[:, :, None]


def attention_like(layer: SamVisionAttention, config: SamVisionConfig, window_size: int) -> SamVisionAttention:
    """Return our form of transformers' attention layer, with new weights; any other layer as it is.

    Args:
        layer: of transformers.
        config: of the mask encoder.
        window_size: tokens of a window's side, 0 for the whole canvas.
    """
    if type(layer) is SamVisionAttention:
        return XSamVisionAttention(config, window_size)
    if type(layer) is SamVisionSdpaAttention:
        return XSamVisionSdpaAttention(config, window_size)
    return layer


__all__ = ["XSamVisionAttention", "XSamVisionSdpaAttention", "attention_like"]
