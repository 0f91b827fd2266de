"""Deformable attention (Zhu et al. 2021, sec. 4.1) of the pixel decoder, in less time and memory.

transformers looks the samples of all levels up, keeps them all, and weights their copy. Here each level is summed as
soon as it is looked up, and looked up again for its gradient: no tensor of all samples ever exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

_BILINEAR, _ZEROS = 0, 0


class _WeightedSamples(torch.autograd.Function):
    """Sum over levels and points of weight times bilinear sample; the arguments of `weighted_samples` by level."""

    @staticmethod
    def forward(ctx: Any, grids: Tensor, weights: Tensor, *maps: Tensor) -> Tensor:
        """(L, G, P, Q, 2) grids, (L, G, P, Q) weights and for each level a (G, D, H, W) map -> (G, D, Q)."""
        ctx.save_for_backward(grids, weights, *maps)
        return sum(  # type: ignore[return-value]
            _sample(level_map, grid).mul_(weight[:, None]).sum(-2)
            for level_map, grid, weight in zip(maps, grids, weights, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of grids, weights and maps."""
        grids, weights, *maps = ctx.saved_tensors
        above = gradients[0][..., None, :]
        grid_gradients, weight_gradients = torch.empty_like(grids), torch.empty_like(weights)
        map_gradients = []
        for level, (level_map, grid, weight) in enumerate(zip(maps, grids, weights, strict=True)):
            torch.sum(_sample(level_map, grid).mul_(above), dim=1, out=weight_gradients[level])
            of_map, grid_gradients[level] = torch.ops.aten.grid_sampler_2d_backward(
                above * weight[:, None], level_map, grid, _BILINEAR, _ZEROS, False, [True, True]
            )
            map_gradients.append(of_map)
        return grid_gradients, weight_gradients, *map_gradients


def _sample(level_map: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(level_map, grid, align_corners=False)


def weighted_samples(values: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Look several maps up at points and sum what is found there, weighted.

    Args:
        values: (B, S, heads, D) floating point: the maps' pixels row by row, level after level.
        shapes: (height, width) of each level; their areas add up to S.
        locations: (B, Q, heads, L, P, 2), (x, y) in [0, 1] from edge to edge; what lies outside a map is 0.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D) in the dtype of `values`; arithmetic is float32 at least.
    """
    batch, _, heads, channels = values.shape
    dtype = torch.promote_types(values.dtype, torch.float32)
    with torch.autocast(values.device.type, enabled=False):
        # Queries last: the long axis is the one that is read in a row.
        grids = (2 * locations.to(dtype) - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        by_level = weights.to(dtype).permute(3, 0, 2, 4, 1).flatten(1, 2)
        parts = values.to(dtype).split([height * width for height, width in shapes], dim=1)
        maps = [
            part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        summed = _WeightedSamples.apply(grids, by_level, *maps)
    return summed.view(batch, heads * channels, -1).transpose(1, 2).to(values.dtype)


class XSamDeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """transformers' module with its weights, and `weighted_samples` instead of its sampling."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  (the pixel decoder hides no pixel)
        encoder_hidden_states: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes_list: Sequence[tuple[int, int]] = (),
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """Attend to a few points around each pixel, at every level.

        Args:
            hidden_states: (B, Q, C), from which points and weights follow.
            attention_mask: not used.
            encoder_hidden_states: (B, S, C), what is looked up.
            position_embeddings: (B, Q, C), added to `hidden_states`.
            reference_points: (B, Q, L, 2), (x, y) in [0, 1].
            spatial_shapes_list: (height, width) of each level.

        Returns:
            (B, Q, C), and the weights (B, Q, heads, L, P).
        """
        assert encoder_hidden_states is not None
        assert reference_points is not None
        queries = self.with_pos_embed(hidden_states, position_embeddings)
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        values = self.value_proj(encoder_hidden_states).unflatten(2, (heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(2, (heads, levels, points, 2))
        weights = self.attention_weights(queries).unflatten(2, (heads, levels * points)).softmax(-1)
        weights = weights.unflatten(3, (levels, points))
        sizes = reference_points.new_tensor([[width, height] for height, width in spatial_shapes_list])
        locations = reference_points[:, :, None, :, None] + offsets / sizes[:, None]
        return self.output_proj(weighted_samples(values, spatial_shapes_list, locations, weights)), weights


__all__ = ["XSamDeformableAttention", "weighted_samples"]
