"""Turns the mask of a visual prompt into one feature vector: sample points, read features bilinearly, max-pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# Sampling every pixel of a large mask at once would need points x channels floats.
_POINTS_PER_LOOKUP = 4096


def choose_region_points(
    mask: Tensor, max_points: int = 256, how: Literal["seeded", "all"] = "seeded", seed: int = 0
) -> Tensor:
    """Choose the pixels that represent a visual prompt.

    The reference implementation draws them anew at every call. Here the draw depends only on the mask and the seed, so
    that the same prompt always gives the same answer.

    Args:
        mask: (H, W) bool or 0/1, on the canvas of the mask encoder.
        max_points: most points to choose ("seeded" only).
        how: "seeded" for a fixed random subset, "all" for every pixel.
        seed: seed of the subset.

    Returns:
        (P, 2) float32 (row / H, column / W) on the mask's device, at least one point.

    Raises:
        ValueError: if the mask is empty.
    """
    pixels = mask.nonzero()
    if len(pixels) == 0:
        raise ValueError("a visual prompt's mask is empty: it has no pixel to look at")
    if how == "seeded" and len(pixels) > max_points:
        # Drawn on the CPU, because generators of other devices give other numbers for the same seed.
        chosen = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))[:max_points]
        pixels = pixels[chosen.to(pixels.device)]
    # No half pixel is added, as in the reference implementation.
    return pixels.float() / torch.tensor(mask.shape, dtype=torch.float32, device=mask.device)


def pool_region_features(feature_map: Tensor, region_points: Sequence[Tensor]) -> Tensor:
    """Sample a feature map at the points of each region, and max-pool over the points.

    Args:
        feature_map: (C, H, W).
        region_points: for each region (P, 2) (row, column) in [0, 1], where 0 and 1 are the centers of the outer
            pixels.

    Returns:
        (R, C) in the dtype of `feature_map`.
    """
    # Sampled in float32 and rounded back, as the reference implementation does.
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


def together(embeddings: Sequence[Tensor]) -> Tensor:
    """Return the embedding of what several regions show together: the mean, which finds more than their maximum does.

    Args:
        embeddings: (E,) of each region; at least one.

    Returns:
        (E,) in their dtype.
    """
    return torch.stack([one.float() for one in embeddings]).mean(0).to(embeddings[0].dtype)
