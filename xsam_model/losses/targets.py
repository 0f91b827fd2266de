"""Ground-truth masks of a batch, and the weights of the losses; shared by matching and losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Targets:
    """Ground-truth masks of a batch of decodes.

    Attributes:
        masks: (M, S, S) bool on the canvas of the mask encoder, ordered by decode.
        labels: (M,) int64, column of the class logits that each mask belongs to.
        decodes: (M,) int64, ascending: the decode that each mask belongs to.
        valid: (N, S, S) bool, False for pixels that the losses ignore; None if all pixels count.
    """

    masks: Tensor
    labels: Tensor
    decodes: Tensor
    valid: Tensor | None = None

    def counts(self, num_decodes: int) -> list[int]:
        """Return the number of masks of each decode."""
        return torch.bincount(self.decodes, minlength=num_decodes).tolist()


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """Weights of the losses, also used in matching; defaults as in X-SAM's training.

    Attributes:
        classes, mask, dice: weights of class cross-entropy, binary cross-entropy of masks, and dice loss.
        background: weight of unmatched queries within the class cross-entropy.
        language: weight of the language model's cross-entropy.
        dense: weight of the training-only dense loss, the category of every pixel.
    """

    classes: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    background: float = 0.1
    language: float = 1.0
    dense: float = 0.0
