"""A predictor without a model, for what is measured around one. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.masks import rle
from pipelines.types import Answer, Image, MaskPrediction, Prompt

_BLOCK = 8


class ThresholdPredictor:
    """Costs next to nothing: one mask for each category, the blocks of pixels that are brighter than the mean."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """See pipelines.types.Predictor."""
        return [
            Answer(masks=tuple(_brighter(image, prompt) for prompt in asked))
            for image, asked in zip(images, prompts, strict=True)
        ]

    def describe(self) -> Mapping[str, str]:
        """See pipelines.types.Predictor."""
        return {"device": "none"}


def _brighter(image: Image, prompt: Prompt) -> MaskPrediction:
    height, width = image.size_hw
    blocks = image.pixels[::_BLOCK, ::_BLOCK, prompt.category_id % 3]
    mask = (blocks > blocks.mean()).repeat(_BLOCK, axis=0).repeat(_BLOCK, axis=1)[:height, :width]
    segmentation = rle.encode(mask)
    return MaskPrediction(
        prompt=prompt,
        score=0.5,
        mask_score=None,
        segmentation=segmentation,
        bbox_xywh=rle.bbox_xywh(segmentation),
        area=int(np.count_nonzero(mask)),
    )
