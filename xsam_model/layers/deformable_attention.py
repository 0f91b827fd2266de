"""Deformable attention (Zhu et al. 2021, sec. 4.1) of the pixel decoder, in less time and memory.

transformers samples all levels, keeps all samples, and weights a copy of them. Here each level is summed as soon as it
is sampled, and sampled again in the backward pass, so that no tensor of all samples ever exists. On a CPU without
gradients bilinear sampling becomes a weighted sum of table rows: each sample weights the four pixels around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention,
)

# Codes of interpolation and padding mode in aten.grid_sampler_2d_backward.
_BILINEAR, _ZEROS = 0, 0
# Zeros around a map: cells are clamped to -2 .. size, and a sample reads the pixels of its cell and of the next.
_BORDER = 2


class _WeightedSamples(torch.autograd.Function):
    """Sum of weighted bilinear samples over levels and points; takes the arguments of `weighted_samples` by level."""

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
        """Return the gradients of grids, weights and maps, sampling the maps again instead of keeping the samples."""
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
    """Sample feature maps bilinearly at points of every level, and return the weighted sums.

    Args:
        values: (B, S, heads, D) floating point: the pixels of the maps row by row, level after level.
        shapes: (height, width) of each level; their areas add up to S.
        locations: (B, Q, heads, L, P, 2), (x, y) in [0, 1] from edge to edge; outside of a map samples are 0.
        weights: (B, Q, heads, L, P).

    Returns:
        (B, Q, heads * D) in the dtype of `values`; computed in float32 or better.
    """
    batch, _, heads, channels = values.shape
    # Positions are fractions of a pixel: half precision would move the samples.
    dtype = torch.promote_types(values.dtype, torch.float32)
    if values.device.type == "cpu" and not (
        torch.is_grad_enabled() and any(part.requires_grad for part in (values, locations, weights))
    ):
        table = _pixel_table(tuple(shapes), heads, weights.shape[-1])
        # One image at a time: what one step writes is then still in the CPU's cache for the next.
        images = zip(values.to(dtype), locations.to(dtype), weights.to(dtype), strict=True)
        return torch.stack([table.sum_samples(*image) for image in images]).to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):
        # Queries last, so that memory is read along the longest axis.
        grids = (2 * locations.to(dtype) - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        by_level = weights.to(dtype).permute(3, 0, 2, 4, 1).flatten(1, 2)
        parts = values.to(dtype).split([height * width for height, width in shapes], dim=1)
        maps = [
            part.permute(0, 2, 3, 1).reshape(batch * heads, channels, *shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]
        summed = _WeightedSamples.apply(grids, by_level, *maps)
    return summed.view(batch, heads * channels, -1).transpose(1, 2).to(values.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class _PixelTable:
    """Layout of all levels' pixels as rows of one table, and indices for the N = heads * L * P samples of a query.

    A border of zeros around every map makes samples outside it need no special case.

    Attributes:
        shapes: (height, width) of each level.
        heads: number of consecutive rows of one pixel, one for each head.
        sizes: float (2, N), width and height of the map of each sample.
        ends: the same as int32.
        first, down: int32 (N,), table row of pixel (0, 0) of the sample's map, and rows from there to pixel (1, 0).
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    sizes: Tensor
    ends: Tensor
    first: Tensor
    down: Tensor

    def sum_samples(self, values: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """Do the work of `weighted_samples` for one image.

        Args:
            values: (S, heads, D).
            locations: (Q, heads, L, P, 2).
            weights: (Q, heads, L, P).

        Returns:
            (Q, heads * D).
        """
        cells, shares = [], []
        for place, size, end in zip(locations.flatten(1, 3).unbind(-1), self.sizes, self.ends, strict=True):
            at = (place * size).sub_(0.5)
            low = at.floor()
            # A NaN location becomes the smallest integer, which is clamped; its weight still makes the sum NaN.
            cells.append(torch.minimum(low.to(torch.int32).clamp_(min=-_BORDER), end))
            shares.append(at.sub_(low))
        row = cells[1].mul_(self.down).add_(cells[0].mul_(self.heads)).add_(self.first)
        right, below = shares
        weights = weights.flatten(1)
        # Bilinear weights of the four pixels, as differences where that saves products.
        lower = weights * below
        upper = weights - lower
        lower_right, upper_right = lower * right, upper * right
        rows = self._rows(values)
        # One bag for each query and head. embedding_bag sums weighted rows without writing the samples to memory.
        starts = torch.arange(0, row.numel(), row.shape[1] // self.heads, dtype=torch.int32)

        def pixels(weights: Tensor) -> Tensor:
            found, *_ = torch.embedding_bag(rows, row.view(-1), starts, False, 0, False, weights.view(-1))
            return found

        summed = pixels(upper.sub_(upper_right))
        row += self.heads
        summed += pixels(upper_right)
        row += self.down
        summed += pixels(lower_right)
        row -= self.heads
        summed += pixels(lower.sub_(lower_right))
        return summed.view(len(weights), -1)

    def _rows(self, values: Tensor) -> Tensor:
        """Copy the maps into a table with their borders: (S, heads, D) -> (rows, D)."""
        around = [_with_border(shape) for shape in self.shapes]
        areas = [height * width for height, width in around]
        table = values.new_zeros(sum(areas), *values.shape[1:])
        parts = values.split([height * width for height, width in self.shapes])
        inside = slice(_BORDER, -_BORDER)
        for room, size, part, shape in zip(table.split(areas), around, parts, self.shapes, strict=True):
            room.unflatten(0, size)[inside, inside] = part.unflatten(0, shape)
        return table.flatten(0, 1)


def _with_border(shape: tuple[int, int]) -> tuple[int, int]:
    return shape[0] + 2 * _BORDER, shape[1] + 2 * _BORDER


@lru_cache(maxsize=16)
def _pixel_table(shapes: tuple[tuple[int, int], ...], heads: int, points: int) -> _PixelTable:
    """Build the table layout for levels of these shapes."""
    around = [_with_border(shape) for shape in shapes]
    areas = torch.tensor([0, *(height * width for height, width in around[:-1])])
    widths = torch.tensor([width for _, width in around])
    pixel = areas.cumsum(0) + _BORDER * (widths + 1)

    def per_sample(of_levels: Tensor) -> Tensor:
        return of_levels[:, None].expand(heads, len(shapes), points).flatten()

    of_head = torch.arange(heads)[:, None, None].expand(heads, len(shapes), points).flatten()
    ends = torch.stack([per_sample(torch.tensor(sizes)) for sizes in zip(*shapes, strict=True)][::-1])
    return _PixelTable(
        shapes=shapes,
        heads=heads,
        sizes=ends.float(),
        ends=ends.int(),
        first=(per_sample(pixel) * heads + of_head).int(),
        down=per_sample(widths * heads).int(),
    )


class XSamDeformableAttention(Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
    """The module of transformers with the same weights, sampling by `weighted_samples`."""

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
            hidden_states: (B, Q, C), from which sampling offsets and weights are computed.
            attention_mask: not used.
            encoder_hidden_states: (B, S, C), the features to sample.
            position_embeddings: (B, Q, C), added to `hidden_states`.
            reference_points: (B, Q, L, 2), (x, y) in [0, 1].
            spatial_shapes_list: (height, width) of each level.

        Returns:
            (B, Q, C), and the attention weights (B, Q, heads, L, P).
        """
        assert encoder_hidden_states is not None
        assert reference_points is not None
        queries = self.with_pos_embed(hidden_states, position_embeddings)
        heads, levels, points = self.n_heads, self.n_levels, self.n_points
        values = self.value_proj(encoder_hidden_states).unflatten(2, (heads, -1))
        offsets = self.sampling_offsets(queries).unflatten(2, (heads, levels, points, 2))
        weights = self.attention_weights(queries).unflatten(2, (heads, levels * points)).softmax(-1)
        weights = weights.unflatten(3, (levels, points))
        # Sizes and reference points are expanded to every sample, because broadcasting over short axes is slow.
        sizes = reference_points.new_tensor([[width, height] for height, width in spatial_shapes_list])
        around = reference_points[:, :, None, :, None].expand_as(offsets).flatten(2)
        locations = (offsets.flatten(2) / sizes[:, None].expand(offsets.shape[2:]).flatten()).add_(around)
        locations = locations.view_as(offsets)
        return self.output_proj(weighted_samples(values, spatial_shapes_list, locations, weights)), weights
