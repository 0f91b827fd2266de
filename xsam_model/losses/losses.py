"""Losses of X-SAM (sec. 3.4): class, mask and dice losses at every decoder level, and the language loss of answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from xsam_model.losses.matching import match, pair_costs
from xsam_model.losses.point_sampling import PointSampling, RandomPoints, read_at, uncertain_points
from xsam_model.losses.targets import LossWeights, Targets

IGNORED_TOKEN = -100  # the label that transformers and torch's cross-entropy leave out


def _no_other_process(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentationLoss:
    """Set prediction loss (as in DETR and Mask2Former) of a batch of decodes.

    Attributes:
        weights: weights of its parts.
        sampling: sampling of the points at which masks are compared.
        average: mean of a tensor over all processes. Every sum is divided by such a mean, so that the gradient, which
            is averaged over processes too, equals that of the whole batch in one process.
    """

    weights: LossWeights = field(default_factory=LossWeights)
    sampling: PointSampling = field(default_factory=PointSampling)
    average: Callable[[Tensor], Tensor] = _no_other_process

    def __call__(
        self, class_logits: Tensor, mask_logits: Tensor, targets: Targets, points: RandomPoints
    ) -> dict[str, Tensor]:
        """Return the losses `classes`, `mask` and `dice`, weighted and summed over levels, float32 scalars.

        Args:
            class_logits: (L, N, Q, K + 1) of every decoder level, the background in the last column.
            mask_logits: (L, N, Q, H, W).
            targets: ground-truth masks; there may be none.
            points: random points of each decode.
        """
        counts = targets.counts(class_logits.shape[1])
        levels, decodes, queries, masks = self._match(class_logits, mask_logits, targets, counts, points)
        losses = {"classes": self._class_loss(class_logits, targets.labels[masks], (levels, decodes, queries))}
        number = self.average(torch.tensor(float(sum(counts)), device=class_logits.device)).clamp(min=1)
        matched = mask_logits[levels, decodes, queries].float()
        losses |= self._mask_losses(matched, targets, masks, self._uniform(points, counts, masks, len(class_logits)))
        for name in ("mask", "dice"):
            losses[name] = losses[name] / number
        return losses

    @torch.no_grad()
    def _match(
        self, class_logits: Tensor, mask_logits: Tensor, targets: Targets, counts: list[int], points: RandomPoints
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        levels, decodes, queries, _ = class_logits.shape
        most = max(counts, default=0)
        if not most:
            return match(class_logits.new_zeros(levels, decodes, queries, 0), counts)
        where = points.for_matching(self.sampling.num_points)
        # All levels are read at the same points, in one call: levels and queries are channels of one map.
        merged = mask_logits.transpose(0, 1).flatten(1, 2).float()
        point_logits = read_at(merged, where).unflatten(1, (levels, queries)).transpose(0, 1)
        slots = torch.cat([torch.arange(count, device=where.device) for count in counts])
        padded = class_logits.new_zeros(decodes, most, *targets.masks.shape[1:], dtype=torch.float32)
        padded[targets.decodes, slots] = targets.masks.float()
        labels = targets.labels.new_zeros(decodes, most)
        labels[targets.decodes, slots] = targets.labels
        weights = torch.ones_like(where[..., 0])
        if targets.valid is not None:
            # Read between pixels, so a point counts if more of what it is interpolated from is valid than not.
            weights = (read_at(targets.valid[:, None].float(), where)[:, 0] > 0.5).float()
        fixed = labels, read_at(padded, where), weights, self.weights
        costs = [pair_costs(c, p, *fixed) for c, p in zip(class_logits, point_logits, strict=True)]
        return match(torch.stack(costs), counts)

    def _class_loss(self, logits: Tensor, labels: Tensor, places: tuple[Tensor, ...]) -> Tensor:
        background = logits.shape[-1] - 1
        truth = torch.full(logits.shape[:-1], background, dtype=torch.long, device=logits.device)
        truth[places] = labels
        # Most queries match nothing, and would outweigh those that do.
        weights = torch.where(truth == background, self.weights.background, 1.0)
        entropy = F.cross_entropy(logits.float().flatten(0, 2), truth.flatten(), reduction="none").view_as(truth)
        number = self.average(weights.sum((1, 2))).clamp(min=1e-6)
        return self.weights.classes * ((entropy * weights).sum((1, 2)) / number).sum()

    def _uniform(self, points: RandomPoints, counts: list[int], masks: Tensor, num_levels: int) -> Tensor:
        """Return the random numbers of each matched pair, (pairs, numbers, 2)."""
        sampling = self.sampling
        amount = sampling.num_candidates + sampling.num_points - sampling.num_uncertain
        if not len(masks):
            return torch.zeros(0, amount, 2, device=masks.device)
        uniform = points.for_losses(counts, num_levels, amount)
        per_level = len(masks) // num_levels
        level = torch.arange(num_levels, device=masks.device).repeat_interleave(per_level)
        # By level and mask: a mask's points do not depend on the query that it is matched to.
        return uniform[level * sum(counts) + masks]

    def _mask_losses(self, logits: Tensor, targets: Targets, masks: Tensor, uniform: Tensor) -> dict[str, Tensor]:
        """Return mask and dice loss of (P, H, W) logits against their ground-truth masks, summed over all pairs."""
        if not len(masks):
            # Keeps the graph connected: data-parallel training expects a gradient for every parameter.
            nothing = logits.sum() * 0.0
            return {"mask": nothing, "dice": nothing}
        where = uncertain_points(logits.detach(), uniform, self.sampling)
        read = read_at(logits[:, None], where)[:, 0]
        with torch.no_grad():
            truth = read_at(targets.masks[masks][:, None].float(), where)[:, 0]
            weights = torch.ones_like(truth)
            if targets.valid is not None:
                valid = targets.valid[targets.decodes[masks]][:, None].float()
                weights = (read_at(valid, where)[:, 0] > 0.5).float()
        return {
            "mask": self.weights.mask * cross_entropy_at_points(read, truth, weights).sum(),
            "dice": self.weights.dice * dice_at_points(read, truth, weights).sum(),
        }


def cross_entropy_at_points(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of each mask.

    Args:
        logits, truth, weights: (M, P); truth in [0, 1]; weights 0 for points that do not count.

    Returns:
        (M,).
    """
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (entropy * weights).sum(1) / weights.sum(1).clamp(min=1)


def dice_at_points(logits: Tensor, truth: Tensor, weights: Tensor) -> Tensor:
    """Return the dice loss of each mask, 1 - (2 |A B| + 1) / (|A| + |B| + 1): (M, P) -> (M,)."""
    inside, truth = logits.sigmoid() * weights, truth * weights
    return 1 - (2 * (inside * truth).sum(1) + 1) / (inside.sum(1) + truth.sum(1) + 1)


def language_loss(
    hidden: Tensor, labels: Tensor, head: torch.nn.Module, average: Callable[[Tensor], Tensor] = _no_other_process
) -> Tensor:
    """Return the next-token cross-entropy over the tokens of answers.

    Args:
        hidden: (B, T, E) after the language model's final norm.
        labels: (B, T) id of the token at each position, `IGNORED_TOKEN` where nothing is learned.
        head: output head from E to the vocabulary; applied only to the positions that predict an answer token.
        average: mean of a tensor over all processes.

    Returns:
        Mean over the labeled tokens of all processes, float32.
    """
    asked = labels[:, 1:] != IGNORED_TOKEN
    number = average(asked.sum().float()).clamp(min=1)
    # A position predicts the token after it. Logits of all positions, over the whole vocabulary, would be the largest
    # tensor of the step.
    logits = head(hidden[:, :-1][asked]).float()
    return F.cross_entropy(logits, labels[:, 1:][asked], reduction="sum") / number
