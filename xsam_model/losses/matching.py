"""Hungarian matching of queries to ground-truth masks, for all decodes and decoder levels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xsam_model.losses.targets import LossWeights


def pair_costs(
    class_logits: Tensor, point_logits: Tensor, labels: Tensor, point_targets: Tensor, point_weights: Tensor,
    weights: LossWeights,
) -> Tensor:  # fmt: skip
    """Return the matching cost of every query and ground-truth mask (Mask2Former, sec. 3; X-SAM, sec. 3.4).

    Args:
        class_logits: (N, Q, K + 1).
        point_logits: (N, Q, P) mask logits at points.
        labels: (N, T) column of the class logits of each ground-truth mask.
        point_targets: (N, T, P) ground-truth masks at the same points, 0 to 1.
        point_weights: (N, P), 0 for points that do not count.
        weights: weights of class probability, binary cross-entropy and dice.

    Returns:
        (N, Q, T) float32.
    """
    probability = class_logits.float().softmax(-1)
    queries = probability.shape[1]
    named = probability.gather(2, labels[:, None].expand(-1, queries, -1))
    logits, targets = point_logits.float(), (point_targets.float() * point_weights[:, None]).transpose(1, 2)
    # At least 1: all points of a decode may lie on ignored pixels.
    number = point_weights.sum(1).clamp(min=1)[:, None, None]
    # BCE(x, t) = softplus(x) - x t: summed over points, all pairs of query and mask are one matrix product.
    outside = (F.softplus(logits) * point_weights[:, None]).sum(2, keepdim=True)
    cross_entropy = (outside - logits @ targets) / number
    inside = logits.sigmoid() * point_weights[:, None]
    # The ones keep the ratio defined for a query and a mask that are both empty at these points.
    dice = 1 - (2 * inside @ targets + 1) / (inside.sum(2, keepdim=True) + targets.sum(1)[:, None] + 1)
    return weights.mask * cross_entropy + weights.dice * dice - weights.classes * named


@torch.no_grad()
def match(costs: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Assign queries to ground-truth masks at the lowest total cost, for every level and decode.

    Args:
        costs: (L, N, Q, T); columns from a decode's count on are padding.
        counts: number of ground-truth masks of each decode.

    Returns:
        Level, decode, query and ground-truth mask (position in `Targets`) of each pair: (P,) int64 each, on the device
        of `costs`, ordered by level, then decode. A decode with more masks than queries leaves some out.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("a loss needs SciPy, which labels are matched with: pip install scipy") from error
    # The solver raises an error for NaN. It runs on the CPU, so the costs of all levels are copied at once.
    matrices = costs.nan_to_num(1e6, 1e6, -1e6).cpu().numpy()
    starts = [sum(counts[:index]) for index in range(len(counts))]
    pairs: list[tuple[int, int, int, int]] = []
    for level, rows in enumerate(matrices):
        for decode, (matrix, count, start) in enumerate(zip(rows, counts, starts, strict=True)):
            if count:
                queries, masks = linear_sum_assignment(matrix[:, :count])
                pairs += [
                    (level, decode, int(query), start + int(mask)) for query, mask in zip(queries, masks, strict=True)
                ]
    table = torch.tensor(pairs, dtype=torch.long, device=costs.device).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]
