"""What the masks of a batch should be, and how much each part of the loss weighs: what matching and losses share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """True masks of a batch of decodes.

    Attributes:
        masks: (M, S, S) bool on the canvas of the mask encoder, decode by decode.
        labels: (M,) int64, column of the class logits that each mask belongs to.
        decodes: (M,) int64, rising: the decode that each mask belongs to.
        valid: (N, S, S) bool, False where a pixel is neither inside nor outside; None if all are valid.
    """

    masks: Tensor
    labels: Tensor
    decodes: Tensor
    valid: Tensor | None = None

    def counts(self, num_decodes: int) -> list[int]:
        """Return how many masks each decode has."""
        return torch.bincount(self.decodes, minlength=num_decodes).tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """How much each loss counts, in matching too; defaults as X-SAM was trained.

    Attributes:
        classes, mask, dice: of class cross-entropy, binary cross-entropy of masks, and dice.
        background: weight of queries that no true mask is matched to, within the class cross-entropy.
        language: of the language model's cross-entropy.
        dense: of the training-only category of every pixel.
    """

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    background: float = 0.1
    language: float = 1.0
    dense: float = 0.0


__all__ = ["LossWeights", "Targets"]
