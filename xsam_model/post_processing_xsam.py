"""From logits to masks of conditions at the original size of an image, in bounded memory.

Instances (genseg, ovseg, vgdseg), the best mask of each phrase (refseg, reaseg, gcgseg), the mask of one visual prompt
(intseg); maps that give every pixel one label are in `post_processing_panoptic`. Works on one image at a time, and
only queries that can still be part of the result are ever enlarged, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xsam_model.mask_geometry import MAX_CHUNK_PIXELS, MaskGeometry, binarize, check_finite, class_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@dataclass(frozen=True, slots=True, eq=False)
class PhraseSegmentation:
    """One mask for each condition of one image, in their order.

    Attributes:
        scores: (K,) float32 in [0, 1]: class score times mask score.
        class_scores: (K,) float32 in [0, 1]: the query's probability of being the condition.
        mask_scores: (K,) float32 in [0, 1]: mean mask probability inside the mask, 0 for an empty mask.
        query_indices: (K,) int64, query that made the mask; one query may answer to several conditions.
        masks: (K, H, W) bool at the original size of the image; they may overlap.
    """

    scores: Tensor
    class_scores: Tensor
    mask_scores: Tensor
    query_indices: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def id_map(self) -> Tensor:
        """(H, W) int32: 1 for the first condition's mask and so on, later ones over earlier ones; 255 for none.

        The map that the reference implementation returns.
        """
        ids = torch.full(self.masks.shape[1:], 255, dtype=torch.int32, device=self.masks.device)
        for position, mask in enumerate(self.masks):
            ids.masked_fill_(mask, position + 1)
        return ids


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
    check_finite(class_logits, mask_logits)
    class_scores, labels, queries = _candidates(class_logits, num_conditions, threshold, top_k)
    distinct = list(dict.fromkeys(queries.tolist()))
    for chunk, logits in geometry.iter_enlarged(mask_logits, distinct, max_chunk_pixels):
        masks, mask_scores = binarize(logits)
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
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> InstanceSegmentation:
    """Return all instances of one image at once, best score first; arguments as for `iter_instance_masks`."""
    chunks = list(
        iter_instance_masks(
            class_logits,
            mask_logits,
            geometry,
            num_conditions=num_conditions,
            threshold=threshold,
            top_k=top_k,
            max_chunk_pixels=max_chunk_pixels,
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
    probabilities = class_probabilities(class_logits, num_conditions)
    num_queries, count = probabilities.shape
    scores = probabilities.flatten()
    best, indices = scores.topk(min(num_queries if top_k is None else top_k, len(scores)))
    # A mask score is below 1, so a pair whose class score is too small cannot recover.
    passing = best >= threshold
    best, indices = best[passing], indices[passing]
    return best, indices % max(count, 1), indices // max(count, 1)


def phrase_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> PhraseSegmentation:
    """Return the mask of the query that most probably is each condition: for phrases that name one thing.

    As the reference implementation does, every phrase gets a mask, whether it is in the image or not: the scores
    tell. The masks of all K conditions are returned, only the logits behind them are bounded.

    Args:
        class_logits: (Q, K + 1), background last; columns of padding before it are ignored.
        mask_logits: (Q, h, w) on the reduced canvas.
        geometry: sizes of canvas and image.
        num_conditions: conditions of this image; all K by default. 0 gives an empty result.
        max_chunk_pixels: pixels of mask logits to hold at once; at least one mask is.

    Raises:
        FloatingPointError: if a logit is not finite: the masks would mean nothing.
    """
    check_finite(class_logits, mask_logits)
    class_scores, queries = class_probabilities(class_logits, num_conditions).max(0)
    masks = torch.empty((len(queries), *geometry.original_size), dtype=torch.bool, device=mask_logits.device)
    mask_scores = torch.empty_like(class_scores)
    for chunk, logits in geometry.iter_enlarged(mask_logits, queries.unique(), max_chunk_pixels):
        found, found_scores = binarize(logits)
        condition, place = (queries[:, None] == chunk).nonzero(as_tuple=True)
        masks[condition], mask_scores[condition] = found[place], found_scores[place]
    return PhraseSegmentation(class_scores * mask_scores, class_scores, mask_scores, queries, masks)


def interactive_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    prompt_mask: Tensor,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.5,
    max_chunk_pixels: int = MAX_CHUNK_PIXELS,
) -> PhraseSegmentation:
    """Return the one mask that a visual prompt asks for.

    As the reference implementation does: of the masks with at least `threshold` as score, or of the best one where
    there is none, the one whose bounding box overlaps most with the prompt's.

    Args:
        class_logits: (Q, 2) of the one prompt, background last; columns of padding before it are ignored.
        mask_logits: (Q, h, w) on the reduced canvas.
        geometry: sizes of canvas and image.
        prompt_mask: (H, W) bool at the original size of the image. The reference implementation compares with what is
            left of the prompt on the canvas, `geometry.restore_mask(vprompt_mask)`, whose box may be a little smaller
            or larger; give that for its very choice.
        num_conditions: 1, needed where columns were padded.
        threshold: least score, in [0, 1].
        max_chunk_pixels: pixels of mask logits to hold at once; at least one mask is.

    Returns:
        One mask (K = 1). Where several boxes overlap equally, that of the reference implementation's choice.

    Raises:
        FloatingPointError: if a logit is not finite: the masks would mean nothing.
        ValueError: if there is not exactly one condition, or the prompt has another size than the image.
    """
    check_finite(class_logits, mask_logits)
    probabilities = class_probabilities(class_logits, num_conditions)
    if probabilities.shape[1] != 1:
        raise ValueError(f"one visual prompt is asked for at a time, got {probabilities.shape[1]} conditions")
    if tuple(prompt_mask.shape) != geometry.original_size:
        raise ValueError(f"prompt mask of {tuple(prompt_mask.shape)}, but the image has {geometry.original_size}")
    class_scores, queries = probabilities[:, 0].sort(descending=True, stable=True)
    # Score, mask score and box of each query; -1 where it could not win.
    ratings = class_scores.new_full((len(queries), 6), -1.0)
    best, done = 0.0, 0
    for chunk, logits in geometry.iter_enlarged(mask_logits, queries, max_chunk_pixels):
        masks, mask_scores = binarize(logits)
        scores = class_scores[done : done + len(chunk)] * mask_scores
        ratings[chunk] = torch.cat([scores[:, None], mask_scores[:, None], mask_boxes(masks)], dim=1)
        best, done = max(best, scores.max().item()), done + len(chunk)
        # A score is at most the class score, so that none that follows can pass or be the best.
        if done < len(queries) and class_scores[done] < min(threshold, best):
            break
    overlaps = box_ious(ratings[:, 2:], mask_boxes(prompt_mask.to(ratings.device)[None] > 0))
    overlaps = overlaps.masked_fill(ratings[:, 0] < min(threshold, best), -1.0)
    # The reference implementation takes the first of equal boxes in this order, which is none but always the same.
    order = probabilities[:, 0].cpu().topk(len(queries), sorted=False).indices.to(overlaps.device)
    winner = order[overlaps[order].argmax()][None]
    mask = geometry.enlarge(mask_logits[winner]) > 0
    return PhraseSegmentation(ratings[winner, 0], probabilities[winner, 0], ratings[winner, 1], winner, mask)


def mask_boxes(masks: Tensor) -> Tensor:
    """(N, H, W) bool -> (N, 4) float32 boxes x0, y0, x1, y1 in pixels, the ends exclusive; zeros for an empty mask."""
    spans = []
    for inside in (masks.any(1), masks.any(2)):
        size = inside.shape[1]
        first = inside.int().argmax(1)
        last = size - inside.flip(1).int().argmax(1)
        spans.append(torch.stack([first, last], dim=1) * inside.any(1)[:, None])
    return torch.stack(spans, dim=2).flatten(1).float()


def box_ious(boxes: Tensor, other: Tensor) -> Tensor:
    """(N, 4) boxes and one (1, 4) box -> (N,) intersection over union, 0 where they do not meet."""
    low, high = torch.maximum(boxes[:, :2], other[:, :2]), torch.minimum(boxes[:, 2:], other[:, 2:])
    intersection = (high - low).clamp(min=0).prod(1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1) - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(union))


__all__ = [
    "InstanceSegmentation",
    "MaskGeometry",
    "PhraseSegmentation",
    "instance_segmentation",
    "interactive_segmentation",
    "iter_instance_masks",
    "phrase_segmentation",
]
