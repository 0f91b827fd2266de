"""From logits to the masks of conditions: instances, phrases and visual prompts, at the original size of an image.

Instances are for genseg, ovseg and vgdseg, the best mask of each phrase for refseg, reaseg and gcgseg, and the mask of
one visual prompt for intseg; panoptic and semantic maps are in `maps`. Works on one image at a time in bounded memory:
mask logits are upsampled only for queries that can still be part of the result, one by one, and only where the mask can
be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xsam_model.post_processing.calibration import NOT_CALIBRATED, ScoreCalibration
from xsam_model.post_processing.mask_geometry import MaskGeometry, WindowedMask, check_finite, class_probabilities


@dataclass(frozen=True, slots=True, eq=False)
class InstanceSegmentation:
    """Instances of one image.

    Attributes:
        scores: (N,) float32 in [0, 1]: class probability times mask score, calibrated.
        mask_scores: (N,) float32 in [0, 1]: mean mask probability inside the mask, 0 for an empty mask.
        labels: (N,) int64, position of the category or visual prompt among the image's conditions.
        query_indices: (N,) int64, query that predicted the mask; one query may have several labels.
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
    """One mask for each condition of one image, in the order of the conditions.

    Attributes:
        scores: (K,) float32 in [0, 1]: class score times mask score, calibrated.
        class_scores: (K,) float32 in [0, 1]: the query's probability of being the condition.
        mask_scores: (K,) float32 in [0, 1]: mean mask probability inside the mask, 0 for an empty mask.
        query_indices: (K,) int64, query that predicted the mask; one query may belong to several conditions.
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
        """Return the map of the reference implementation: (H, W) int32.

        1 for the first condition's mask, 2 for the second and so on; later masks cover earlier ones; 255 for no mask.
        """
        ids = torch.full(self.masks.shape[1:], 255, dtype=torch.int32, device=self.masks.device)
        for position, mask in enumerate(self.masks):
            ids.masked_fill_(mask, position + 1)
        return ids


@dataclass(frozen=True, slots=True, eq=False)
class QueryInstances:
    """The instances that share the mask of one query.

    Attributes:
        mask: mask of the query.
        scores: (n,) float32 in [0, 1], on the CPU: class probability times mask score, calibrated.
        labels: (n,) int64, on the CPU: position of the category or visual prompt among the image's conditions.
    """

    mask: WindowedMask
    scores: Tensor
    labels: Tensor


def iter_instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.0,
    top_k: int | None = None,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> Iterator[QueryInstances]:
    """Yield the instances of one image query by query, so that each mask can be encoded and dropped before the next.

    Args:
        class_logits: (Q, K + 1), background last; padding columns before it are ignored.
        mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
        geometry: sizes of canvas and image.
        num_conditions: number of conditions of this image; all K by default.
        threshold: in [0, 1]. Instances with a lower score are left out. Above 0 no mask is ever empty; at 0 all
            candidates are returned.
        top_k: number of candidates, the pairs of query and category with the highest class scores; Q by default.
        calibration: of the scores; the threshold is one of calibrated scores.

    Yields:
        Every query that has an instance, once, in no particular order.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the masks meaningless.
    """
    check_finite(class_logits, mask_logits)
    candidates = _candidates(class_logits, num_conditions, calibration.before(threshold), top_k)
    # On the host, where the loop below decides; the masks alone stay on the device.
    class_scores, labels, queries = (part.cpu() for part in candidates)
    # By query, so that each mask is upsampled once for all of its labels.
    queries, order = queries.sort(stable=True)
    asked, counts = (part.tolist() for part in queries.unique_consecutive(return_counts=True))
    by_query = zip(class_scores[order].split(counts), labels[order].split(counts), strict=True)
    for mask, (of_classes, of_labels) in zip(geometry.iter_masks(mask_logits, asked), by_query, strict=True):
        scores = calibration.of(of_classes * mask.score)
        kept = scores >= threshold
        if kept.any():
            yield QueryInstances(mask, scores[kept], of_labels[kept])


def instance_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.0,
    top_k: int | None = None,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> InstanceSegmentation:
    """Return all instances of one image at once, best score first; arguments as for `iter_instances`."""
    found = list(
        iter_instances(
            class_logits,
            mask_logits,
            geometry,
            num_conditions=num_conditions,
            threshold=threshold,
            top_k=top_k,
            calibration=calibration,
        )
    )
    device = class_logits.device
    if not found:
        empty = torch.zeros(0, device=device)
        masks = torch.zeros((0, *geometry.original_size), dtype=torch.bool, device=device)
        return InstanceSegmentation(empty, empty, empty.long(), empty.long(), masks)
    counts = torch.tensor([len(instances.labels) for instances in found])
    scores = torch.cat([instances.scores for instances in found])
    order = scores.argsort(descending=True, stable=True)
    owners = torch.arange(len(found)).repeat_interleave(counts)[order]
    masks = torch.zeros((len(order), *geometry.original_size), dtype=torch.bool, device=device)
    for place, owner in enumerate(owners.tolist()):
        found[owner].mask.paste(masks[place])
    return InstanceSegmentation(
        scores[order].to(device),
        torch.stack([instances.mask.score for instances in found])[owners].to(device),
        torch.cat([instances.labels for instances in found])[order].to(device),
        torch.tensor([instances.mask.query for instances in found])[owners].to(device),
        masks,
    )


def _candidates(
    class_logits: Tensor, num_conditions: int | None, threshold: float, top_k: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return class score, label and query (M,) of the candidates that can pass the threshold, best first."""
    probabilities = class_probabilities(class_logits, num_conditions)
    num_queries, count = probabilities.shape
    scores = probabilities.flatten()
    best, indices = scores.topk(min(num_queries if top_k is None else top_k, len(scores)))
    # The mask score that multiplies it is below 1, so a class score below the threshold cannot pass any more.
    passing = best >= threshold
    best, indices = best[passing], indices[passing]
    return best, indices % max(count, 1), indices // max(count, 1)


def iter_phrases(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> Iterator[QueryInstances]:
    """Yield the results of `phrase_segmentation` query by query, so that each mask can be encoded and dropped.

    Arguments as for `phrase_segmentation`. Every condition is yielded once.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the masks meaningless.
    """
    check_finite(class_logits, mask_logits)
    class_scores, queries = (part.cpu() for part in class_probabilities(class_logits, num_conditions).max(0))
    for mask, conditions in _masks_of(queries, mask_logits, geometry):
        yield QueryInstances(mask, calibration.of(class_scores[conditions] * mask.score), conditions)


def _masks_of(queries: Tensor, mask_logits: Tensor, geometry: MaskGeometry) -> Iterator[tuple[WindowedMask, Tensor]]:
    """Yield the mask of each distinct query in `queries`, (K,) by condition, with the conditions (n,) that share it."""
    for mask in geometry.iter_masks(mask_logits, list(dict.fromkeys(queries.tolist()))):
        yield mask, (queries == mask.query).nonzero()[:, 0]


def phrase_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    *,
    num_conditions: int | None = None,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> PhraseSegmentation:
    """Return for each condition the mask of its most probable query: for phrases that name one thing.

    As in the reference implementation every phrase gets a mask, even one for something that the image does not show;
    only the scores tell them apart.

    Args:
        class_logits: (Q, K + 1), background last; padding columns before it are ignored.
        mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
        geometry: sizes of canvas and image.
        num_conditions: number of conditions of this image; all K by default. 0 gives an empty result.
        calibration: of the scores.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the masks meaningless.
    """
    check_finite(class_logits, mask_logits)
    device = mask_logits.device
    class_scores, queries = (part.cpu() for part in class_probabilities(class_logits, num_conditions).max(0))
    masks = torch.zeros((len(queries), *geometry.original_size), dtype=torch.bool, device=device)
    mask_scores = torch.zeros_like(class_scores)
    for mask, conditions in _masks_of(queries, mask_logits, geometry):
        mask_scores[conditions] = mask.score
        for condition in conditions.tolist():
            mask.paste(masks[condition])
    scores = calibration.of(class_scores * mask_scores).to(device)
    return PhraseSegmentation(scores, class_scores.to(device), mask_scores.to(device), queries.to(device), masks)


def interactive_segmentation(
    class_logits: Tensor,
    mask_logits: Tensor,
    geometry: MaskGeometry,
    prompt_mask: Tensor,
    *,
    num_conditions: int | None = None,
    threshold: float = 0.5,
    calibration: ScoreCalibration = NOT_CALIBRATED,
) -> PhraseSegmentation:
    """Return the one mask that a visual prompt stands for (interactive segmentation).

    As in the reference implementation, the candidates are the masks with a score of at least `threshold`, or else the
    one with the best score; of these the mask is returned whose bounding box has the highest IoU with the prompt's.

    Args:
        class_logits: (Q, 2) of the one prompt, background last; padding columns before it are ignored.
        mask_logits: (Q, h, w) at the resolution of the decoder, for the whole canvas.
        geometry: sizes of canvas and image.
        prompt_mask: (H, W) bool at the original size of the image. The reference implementation uses the prompt as it
            was scaled to the canvas and back, `geometry.restore_mask(vprompt_mask)`, whose box may be slightly smaller
            or larger; pass that to reproduce its choice exactly.
        num_conditions: 1; needed if class_logits have padding columns.
        threshold: lowest score of a candidate, in [0, 1], before calibration, which chooses no other mask.
        calibration: of the score.

    Returns:
        One mask (K = 1). Ties between boxes are broken as in the reference implementation.

    Raises:
        FloatingPointError: if a logit is not finite, which would make the masks meaningless.
        ValueError: if there is not exactly one condition, or the prompt differs in size from the image.
    """
    check_finite(class_logits, mask_logits)
    device, probabilities = mask_logits.device, class_probabilities(class_logits, num_conditions).cpu()
    if probabilities.shape[1] != 1:
        raise ValueError(f"one visual prompt is asked for at a time, got {probabilities.shape[1]} conditions")
    if tuple(prompt_mask.shape) != geometry.original_size:
        raise ValueError(f"prompt mask of {tuple(prompt_mask.shape)}, but the image has {geometry.original_size}")
    ratings, best = _rate_queries(probabilities[:, 0], mask_logits, geometry, threshold)
    overlaps = box_ious(ratings[:, 2:], mask_boxes(prompt_mask[None] > 0).cpu())
    overlaps = overlaps.masked_fill(ratings[:, 0] < min(threshold, best), -1.0)
    # The reference implementation takes the first of equal boxes in the order of an unsorted topk, which is arbitrary
    # but reproducible. With tiny models all boxes may be the whole image, so that this order alone decides.
    order = probabilities[:, 0].topk(len(probabilities), sorted=False).indices
    winner = order[overlaps[order].argmax()][None]
    masks = torch.zeros((1, *geometry.original_size), dtype=torch.bool, device=device)
    for mask in geometry.iter_masks(mask_logits, winner.tolist()):
        mask.paste(masks[0])
    scores, mask_scores = ratings[winner, :2].to(device).unbind(1)
    return PhraseSegmentation(
        calibration.of(scores), probabilities[winner, 0].to(device), mask_scores, winner.to(device), masks
    )


def _rate_queries(
    class_scores: Tensor, mask_logits: Tensor, geometry: MaskGeometry, threshold: float
) -> tuple[Tensor, float]:
    """Return score, mask score and box of each query, (Q, 6), -1 where it could not win; and the best score."""
    class_scores, queries = class_scores.sort(descending=True, stable=True)
    ratings = class_scores.new_full((len(queries), 6), -1.0)
    best = 0.0
    masks_in_turn = geometry.iter_masks(mask_logits, queries.tolist())
    for class_score in class_scores:
        # Class scores fall, and a score is at most its class score: no later query can pass or be the best.
        if class_score < min(threshold, best):
            break
        mask = next(masks_in_turn)
        score, box = class_score * mask.score, ratings.new_zeros(4)
        if mask.inside.any():
            corner = box.new_tensor((mask.left, mask.top, mask.left, mask.top))
            box = mask_boxes(mask.inside[None])[0].cpu() + corner
        ratings[mask.query] = torch.cat([score[None], mask.score[None], box])
        best = max(best, score.item())
    return ratings, best


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
