"""From the mask of a visual prompt to one feature vector: choice of points, bilinear look-up, maximum."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

# Looking up every pixel of a large mask at once would need points x channels floats.
_POINTS_PER_LOOKUP = 4096


def choose_region_points(
    mask: Tensor, max_points: int = 256, how: Literal["seeded", "all"] = "seeded", seed: int = 0
) -> Tensor:
    """Choose the pixels that stand for a visual prompt.

    The reference implementation draws them at random at every call. Here the draw depends on the mask and the seed
    alone, so that the same prompt always gives the same answer.

    Args:
        mask: (H, W) bool or 0/1, on the canvas of the mask encoder.
        max_points: at most this many points ("seeded" only).
        how: "seeded" for a fixed random subset, "all" for every pixel.
        seed: of the subset.

    Returns:
        (P, 2) float32 (row / H, column / W) on the mask's device, at least one point.

    Raises:
        ValueError: if the mask is empty.
    """
    pixels = mask.nonzero()
    if len(pixels) == 0:
        raise ValueError("a visual prompt's mask is empty: it has no pixel to look at")
    if how == "seeded" and len(pixels) > max_points:
        chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:max_points]
        pixels = pixels[chosen.to(pixels.device)]
    return pixels.float() / torch.tensor(mask.shape, dtype=torch.float32, device=mask.device)


def pool_region_features(feature_map: Tensor, region_points: Sequence[Tensor]) -> Tensor:
    """Look the points of each region up in a feature map and keep each channel's maximum.

    Args:
        feature_map: (C, H, W).
        region_points: for each region (P, 2) (row, column) in [0, 1], corners of the map at its outer samples.

    Returns:
        (R, C) in the dtype of `feature_map`.
    """
    image = feature_map[None].float()
    pooled = []
    for points in region_points:
        grid = 2 * points.to(image).flip(-1) - 1
        maxima = [
            F.grid_sample(image, part[None, None], align_corners=True).amax(dim=(0, 2, 3))
            for part in grid.split(_POINTS_PER_LOOKUP)
        ]
        pooled.append(torch.stack(maxima).amax(0))
    return torch.stack(pooled).to(feature_map.dtype)


__all__ = ["choose_region_points", "pool_region_features"]
