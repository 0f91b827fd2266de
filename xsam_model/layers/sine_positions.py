"""Sine positions of Mask2Former's pixel and transformer decoder, computed once for each size of map.

transformers keeps those of a single map, but each pass asks for several, and computes them for every image of a batch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers.models.mask2former.modeling_mask2former import Mask2FormerSinePositionEmbedding


class XSamSinePositions(Mask2FormerSinePositionEmbedding):
    """The module of transformers, whose result serves all images of a batch."""

    def forward(
        self, shape: torch.Size, device: torch.device | str, dtype: torch.dtype, mask: Tensor | None = None
    ) -> Tensor:
        """(B, C, H, W), the shape of a map -> positions (1, channels, H, W), which are not to be written to."""
        assert mask is None
        kind = self.num_position_features, self.normalize, self.scale, self.temperature
        return _positions(torch.Size((1, *shape[1:])), device, dtype, kind)


@lru_cache(maxsize=32)
def _positions(
    shape: torch.Size, device: torch.device | str, dtype: torch.dtype, kind: tuple[int, bool, float, int]
) -> Tensor:
    # A tensor made in inference mode could not be used in training later.
    with torch.inference_mode(False):
        return Mask2FormerSinePositionEmbedding.build_sine_position_embedding(shape, device, dtype, *kind)


def use_sine_positions(model: nn.Module) -> None:
    """Let all parts of a model keep their sine positions."""
    for module in model.modules():
        if type(module) is Mask2FormerSinePositionEmbedding:
            module.__class__ = XSamSinePositions
