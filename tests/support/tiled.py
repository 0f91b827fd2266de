"""A picture of shapes in colors of their own, and a predictor that finds each of them: tiles are then easy to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.masks import rle
from pipelines.masks.regions import extent
from pipelines.types import Answer, Caption, Image, MaskPrediction, Prompt, Rle

SMALLEST = 8
"""Pixels of the least that ColorPredictor sees."""


class ColorPredictor:
    """For every prompt one mask of each color but black, as far as a view shows it, with a score by its area.

    A map (semantic, panoptic) has every pixel: black ones, too. A region gets the color in its middle. Chat
    is answered with the size of the view.
    """

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []
        self.asked: list[tuple[Prompt, ...]] = []

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        self.shown += [image.size_hw for image in images]
        self.asked += [tuple(asked) for asked in prompts]
        return [_answer(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def describe(self) -> Mapping[str, str]:
        return {"device": "fake", "weights_sha256": "0" * 64}


def _answer(image: Image, prompts: Sequence[Prompt]) -> Answer:
    codes = codes_of(image.pixels)
    masks, captions = [], []
    for prompt in prompts:
        if prompt.task == "chat":
            captions.append(Caption(prompt=prompt, text=f"{image.size_hw}"))
            continue
        wanted = np.unique(codes).tolist()
        if prompt.region is not None:
            left, top, right, bottom = extent(prompt.region)
            x, y = int(left + right) // 2, int(top + bottom) // 2
            wanted = [int(codes[min(y, codes.shape[0] - 1), min(x, codes.shape[1] - 1)])]
        is_map = prompt.task.endswith(("semantic", "panoptic"))
        found = [codes == code for code in wanted if code or is_map]
        if prompt.task.endswith("semantic"):
            found = [codes > 0] if prompt.category_id else [codes == 0]
        masks += [as_found(prompt, rle.encode(one), one.mean()) for one in found if one.sum() >= SMALLEST or is_map]
    return Answer(masks=tuple(mask for mask in masks if mask.area), captions=tuple(captions))


def codes_of(pixels: np.ndarray) -> np.ndarray:
    """Return one number for each color: int64 (H, W), 0 for black. Shrinking mixes a color with black: it fades."""
    red, green = pixels[..., 0].astype(np.float64), pixels[..., 1]
    return np.where(red >= 100, np.round(green / np.maximum(red, 1) * 50) + 1, 0).astype(np.int64)


def as_found(prompt: Prompt, segmentation: Rle, score: float = 0.5) -> MaskPrediction:
    """A mask as a predictor returns it."""
    box, area = rle.bbox_xywh(segmentation), rle.area(segmentation)
    return MaskPrediction(
        prompt=prompt, score=float(score), mask_score=0.5, segmentation=segmentation, bbox_xywh=box, area=area
    )


def paint(size_hw: tuple[int, int], count: int, longest: int, seed: int = 0) -> np.ndarray:
    """Ellipses and boxes of up to 50 different colors, apart from each other: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((*size_hw, 3), np.uint8)
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    for number in range(count):
        height, width = rng.uniform(4, longest, 2) / 2
        y, x = rng.uniform(0, size_hw[0]), rng.uniform(0, size_hw[1])
        around = (np.abs(rows - y) <= height + 8) & (np.abs(columns - x) <= width + 8)
        if not pixels[around].any():
            down, right = np.abs(rows - y) / height, np.abs(columns - x) / width
            is_round = rng.random() < 0.5
            shape = (down**2 + right**2 <= 1) if is_round else (np.maximum(down, right) <= 1)
            pixels[shape] = color(number)
    return pixels


def color(number: int) -> tuple[int, int, int]:
    """One of 50 colors that ColorPredictor tells apart, even where they are mixed with black."""
    return 200, 4 * number, 0
