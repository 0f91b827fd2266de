"""From logits to instance masks at the original size of an image, in bounded memory.

Works on one image at a time. Only queries whose class score can still pass the threshold are ever enlarged, in chunks,
so that neither an image of 4K nor a hundred categories needs all masks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

# Float pixels enlarged together: 2**25 are 128 MiB of logits, and about three times that at the peak.
MAX_CHUNK_PIXELS = 2**25


@dataclass(frozen=True, slots=True, eq=False)
class InstanceSegmentation:
    """Instances of one image, or a part of them.

    Attributes:
        scores: (N,) float32 in [0, 1]: class probability times mask score.
        mask_scores: (N,) float32 in [0, 1]: mean mask probability inside the mask, 0 for an empty mask.
        labels: (N,) int64, position of the category or visual prompt among the image's conditions.
        query_indices: (N,) int64, query that made the mask; one query may answer to several labels.
        masks: (N, H, W) bool at the original size of the image.
    """

    scores: Tensor
    mask_scores: Tensor
    labels: Tensor
    query_indices: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskGeometry:
    """Where an image lies on the mask encoder's canvas: sizes are (height, width) in pixels."""

    canvas_size: int
    scaled_size: tuple[int, int]
    original_size: tuple[int, int]

    def enlarge(self, mask_logits: Tensor) -> Tensor:
        """(N, h, w) logits on the reduced canvas -> (N, H, W) float32 logits on the original image.

        The two resizes, to the canvas and from its used part to the image, are those that the network was trained
        with; one resize would move the outline.
        """
        side = (self.canvas_size, self.canvas_size)
        canvas = F.interpolate(mask_logits[None].float(), side, mode="bilinear", align_corners=False)
        used = canvas[..., : self.scaled_size[0], : self.scaled_size[1]]
        return F.interpolate(used, self.original_size, mode="bilinear", align_corners=False)[0]


def iter_instance_masks(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.0,
    top_k: int | None = None,
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> Iterator[InstanceSegmentation]:
    """Yield the instances of one image chunk by chunk, so that each chunk can be encoded and dropped.

    Args:
        class_logits: (Q, K + 1), background last; columns of padding before it are ignored.
        mask_logits: (Q, h, w) on the reduced canvas.
        geometry: sizes of canvas and image.
        num_conditions: conditions of this image; all K by default.
        threshold: in [0, 1]. Instances with a smaller score are left out. Above 0 no empty mask is ever returned; at
            0 all candidates are.
        top_k: how many pairs of query and category with the highest class score are candidates; Q by default.
        max_chunk_pixels: pixels of mask logits to hold at once; at least one mask is.

    Yields:
        Instances in no particular order across chunks. A query's instances are in one chunk.

    Raises:
        FloatingPointError: if a logit is not finite: the masks would mean nothing.
    """
    if not (torch.isfinite(class_logits).all() and torch.isfinite(mask_logits).all()):
        raise FloatingPointError("class or mask logits are not finite")
    class_scores, labels, queries = _candidates(class_logits, num_conditions, threshold, top_k)
    distinct = list(dict.fromkeys(queries.tolist()))
    pixels = max(geometry.original_size[0] * geometry.original_size[1], geometry.canvas_size**2)
    step = max(1, max_chunk_pixels // pixels)
    for first in range(0, len(distinct), step):
        chunk = torch.tensor(distinct[first : first + step], device=queries.device)
        logits = geometry.enlarge(mask_logits[chunk])
        masks = logits > 0
        areas = masks.sum((1, 2))
        mask_scores = (logits.sigmoid_() * masks).sum((1, 2)) / (areas + 1e-6)
        pair, place = (queries[:, None] == chunk).nonzero(as_tuple=True)
        scores = class_scores[pair] * mask_scores[place]
        kept = scores >= threshold
        pair, place = pair[kept], place[kept]
        yield InstanceSegmentation(scores[kept], mask_scores[place], labels[pair], queries[pair], masks[place])


def instance_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.0,
    top_k: int | None = None,
) -> InstanceSegmentation:
    """Return all instances of one image at once, best score first; arguments as for `iter_instance_masks`."""
    chunks = list(
        iter_instance_masks(
            class_logits, mask_logits, geometry, num_conditions=num_conditions, threshold=threshold, top_k=top_k
        )
    )
    if not chunks:
        empty = class_logits.new_zeros(0, dtype=torch.float32)
        masks = torch.zeros((0, *geometry.original_size), dtype=torch.bool, device=class_logits.device)
        return InstanceSegmentation(empty, empty, empty.long(), empty.long(), masks)
    scores = torch.cat([chunk.scores for chunk in chunks])
    order = scores.argsort(descending=True, stable=True)
    return InstanceSegmentation(
        scores[order],
        torch.cat([chunk.mask_scores for chunk in chunks])[order],
        torch.cat([chunk.labels for chunk in chunks])[order],
        torch.cat([chunk.query_indices for chunk in chunks])[order],
        torch.cat([chunk.masks for chunk in chunks])[order],
    )


def _candidates(
    class_logits: Tensor, num_conditions: int | None, threshold: float, top_k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return class score, label and query (M,) of the best pairs, best first, that can still pass the threshold."""
    num_queries, num_columns = class_logits.shape
    count = num_columns - 1 if num_conditions is None else num_conditions
    scores = class_logits.float().softmax(-1)[:, :count].flatten()
    best, indices = scores.topk(min(num_queries if top_k is None else top_k, len(scores)))
    # A mask score is below 1, so a pair whose class score is too small cannot recover.
    passing = best >= threshold
    best, indices = best[passing], indices[passing]
    return best, indices % count, indices // count


__all__ = ["InstanceSegmentation", "MaskGeometry", "instance_segmentation", "iter_instance_masks"]
