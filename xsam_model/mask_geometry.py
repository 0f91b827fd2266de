"""Where an image lies on the mask encoder's canvas, and the way back: logits to masks of the image's size.

Owns the two resizes, and that few masks are enlarged at once. What masks mean is in the `post_processing` modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Float pixels enlarged together: 2**25 are 128 MiB of logits, and about three times that at the peak.
MAX_CHUNK_PIXELS = 2**25


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
        return self.enlarge_to_image(self.enlarge_to_canvas(mask_logits))

    def enlarge_to_canvas(self, values: Tensor) -> Tensor:
        """(N, h, w) values on the reduced canvas -> (N, *scaled_size) float32, the canvas without its padding."""
        side = (self.canvas_size, self.canvas_size)
        canvas = F.interpolate(values[None].float(), side, mode="bilinear", align_corners=False)[0]
        return canvas[:, : self.scaled_size[0], : self.scaled_size[1]]

    def enlarge_to_image(self, values: Tensor) -> Tensor:
        """(N, *scaled_size) values on the used part of the canvas -> (N, *original_size)."""
        return F.interpolate(values[None], self.original_size, mode="bilinear", align_corners=False)[0]

    def restore_mask(self, mask: Tensor) -> Tensor:
        """(S, S) mask on the whole canvas, as the model reads visual prompts -> (H, W) bool on the image, nearest."""
        used = mask[None, None, : self.scaled_size[0], : self.scaled_size[1]].float()
        return F.interpolate(used, self.original_size, mode="nearest")[0, 0] > 0

    def iter_enlarged(
        self, mask_logits: Tensor, queries: Tensor | Sequence[int], max_chunk_pixels: int = MAX_CHUNK_PIXELS
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield chunks of queries (n,) in the given order with their enlarged logits (n, H, W) float32.

        Args:
            mask_logits: (Q, h, w) on the reduced canvas.
            queries: which to enlarge.
            max_chunk_pixels: pixels to hold at once; at least one mask is.
        """
        pixels = max(self.original_size[0] * self.original_size[1], self.canvas_size**2)
        chosen = torch.as_tensor(queries, dtype=torch.long, device=mask_logits.device)
        # Splitting nothing would still yield one chunk, of nothing.
        for chunk in chosen.split(max(1, max_chunk_pixels // pixels)) if len(chosen) else ():
            yield chunk, self.enlarge(mask_logits[chunk])


def check_finite(class_logits: Tensor, mask_logits: Tensor) -> None:
    """Raise FloatingPointError if a logit is not finite: the masks would mean nothing."""
    if not (torch.isfinite(class_logits).all() and torch.isfinite(mask_logits).all()):
        raise FloatingPointError("class or mask logits are not finite")


def class_probabilities(class_logits: Tensor, num_conditions: int | None = None) -> Tensor:
    """(Q, K + 1) logits, background last -> (Q, num_conditions) float32 probabilities of the real conditions."""
    count = class_logits.shape[1] - 1 if num_conditions is None else num_conditions
    return class_logits.float().softmax(-1)[:, :count]


def binarize(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return masks (N, H, W) bool and their scores (N,): the mean probability inside a mask, 0 if it is empty.

    Overwrites the logits (N, H, W).
    """
    masks = logits > 0
    scores = logits.sigmoid_().mul_(masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    return masks, scores


__all__ = ["MAX_CHUNK_PIXELS", "MaskGeometry", "binarize", "check_finite", "class_probabilities"]
