"""Samples masks at points instead of all pixels (Mask2Former, sec. 3.3), mostly where predictions are uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PointSampling:
    """Settings of point sampling; defaults as in X-SAM's training (Mask2Former, sec. 4.1).

    Attributes:
        num_points: points of each mask; the default is 112 x 112.
        oversample: candidates for each point, of which the most uncertain are kept.
        importance: share of the points chosen by uncertainty, 0 to 1; the rest are uniform.
    """

    num_points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75

    def __post_init__(self) -> None:
        """Refuse invalid numbers.

        Raises:
            ValueError: if a number is out of range.
        """
        if self.num_points < 1 or self.oversample < 1 or not 0 <= self.importance <= 1:
            raise ValueError(f"need num_points >= 1, oversample >= 1 and importance in [0, 1], got {self}")

    @property
    def num_candidates(self) -> int:
        """Number of candidates from which the uncertain points are chosen."""
        return int(self.num_points * self.oversample)

    @property
    def num_uncertain(self) -> int:
        """Number of points chosen by uncertainty."""
        return int(self.num_points * self.importance)


def read_at(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps at points bilinearly; beyond the centers of the outer pixels their values continue.

    Mask2Former's code reads zeros there, which on small maps makes every outer edge look undecided.

    Args:
        maps: (N, C, H, W) floating point.
        points: (N, P, 2), (x, y) in [0, 1], where 0 and 1 are the outer edges of the outer pixels.

    Returns:
        (N, C, P) in the dtype of `maps`.
    """
    grid = 2 * points[:, None].to(maps.dtype) - 1
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[:, :, 0]


@torch.no_grad()
def uncertain_points(logits: Tensor, uniform: Tensor, sampling: PointSampling) -> Tensor:
    """Choose points for the mask losses: most where the prediction is uncertain, the rest anywhere.

    Args:
        logits: (M, H, W) mask logits.
        uniform: (M, num_candidates + num_points - num_uncertain, 2) random numbers in [0, 1).
        sampling: how many points of each kind.

    Returns:
        (M, num_points, 2), (x, y) in [0, 1].
    """
    candidates, anywhere = uniform.split([sampling.num_candidates, sampling.num_points - sampling.num_uncertain], dim=1)
    doubt = -read_at(logits[:, None].float(), candidates)[:, 0].abs()
    chosen = doubt.topk(sampling.num_uncertain, dim=1, sorted=False).indices
    return torch.cat([candidates.gather(1, chosen[..., None].expand(-1, -1, 2)), anywhere], dim=1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RandomPoints:
    """Random points that depend only on the key of each decode, not on its batch or process.

    Attributes:
        keys: one integer for each decode.
        device: device of the points.
    """

    keys: Sequence[int]
    device: torch.device

    def for_matching(self, num_points: int) -> Tensor:
        """Return the points of every decode, (N, num_points, 2) in [0, 1)."""
        return torch.stack([self._draw(key, 0, (num_points, 2)) for key in self.keys])

    def for_losses(self, counts: Sequence[int], num_levels: int, num_points: int) -> Tensor:
        """Return the points of every mask, (num_levels * sum(counts), num_points, 2) in [0, 1), by level and decode."""
        parts = [
            self._draw(key, 1, (num_levels, count, num_points, 2))
            for key, count in zip(self.keys, counts, strict=True)
            if count
        ]
        return torch.cat(parts, dim=1).flatten(0, 1)

    def _draw(self, key: int, purpose: int, shape: tuple[int, ...]) -> Tensor:
        # Two streams for each key, so that matching and losses draw different points.
        generator = torch.Generator(self.device).manual_seed(2 * key + purpose)
        return torch.rand(shape, generator=generator, device=self.device)
