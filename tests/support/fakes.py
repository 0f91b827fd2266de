"""Visible fakes: a predictor whose answer can be worked out by eye, and images to go with it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from pipelines.masks import rle
from pipelines.types import Answer, Caption, CaptionPhrase, Image, ImageRef, MaskPrediction, Prompt, Task

SPOKEN, SPOT = "There is a bright spot.", "bright spot"


class BrightPredictor:
    """For every prompt one mask: the pixels brighter than 128; its score is the image's mean brightness over 255.

    A caption and an explanation say SPOKEN, chat "Nothing."; the caption grounds SPOT.
    """

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        self.calls.append([image.ref.image_id for image in images])
        return [_answer(image, asked) for image, asked in zip(images, prompts, strict=True)]

    def describe(self) -> Mapping[str, str]:
        return {"device": "fake", "weights_sha256": "0" * 64}


def _answer(image: Image, prompts: Sequence[Prompt]) -> Answer:
    masks, captions = [], []
    for prompt in prompts:
        if prompt.task == "gcgseg":
            captions.append(Caption(prompt=prompt, text=SPOKEN, phrases=(CaptionPhrase(text=SPOT, start=11, end=22),)))
            masks.append(_mask(image, dataclasses.replace(prompt, text=SPOT, category_name=SPOT, category_id=0)))
        elif prompt.task == "chat":
            captions.append(Caption(prompt=prompt, text="Nothing."))
        else:
            masks.append(_mask(image, prompt))
            captions += [Caption(prompt=prompt, text=SPOKEN)] if prompt.explain else []
    return Answer(masks=tuple(masks), captions=tuple(captions))


def _mask(image: Image, prompt: Prompt) -> MaskPrediction:
    bright = image.pixels.mean(axis=2) > 128
    segmentation = rle.encode(bright)
    return MaskPrediction(
        prompt=prompt,
        score=float(image.pixels.mean() / 255),
        mask_score=1.0,
        segmentation=segmentation,
        bbox_xywh=rle.bbox_xywh(segmentation),
        area=int(bright.sum()),
    )


def half_bright(width: int = 24, height: int = 16, bright_columns: int = 6) -> np.ndarray:
    """A black picture whose first columns are white: uint8 (H, W, 3)."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, :bright_columns] = 255
    return pixels


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) as PNG."""
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_images(folder: Path, count: int) -> list[ImageRef]:
    """Write ``count`` pictures of different sizes and brightness and return their references."""
    folder.mkdir(parents=True, exist_ok=True)
    refs = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        path.write_bytes(png(half_bright(width=20 + number % 5, height=12 + number % 3, bright_columns=1 + number % 9)))
        refs.append(ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size))
    return refs


def sentence(task: Task, text: str, number: int = 0, **fields: Any) -> Prompt:
    """A sentence asked of an image."""
    return Prompt(prompt_id=f"{task}:{text}", task=task, text=text, category_id=number, category_name=text, **fields)


def text_prompt(name: str, number: int = 0) -> Prompt:
    """A category asked of every image."""
    return Prompt(prompt_id=f"ovseg:{name}", task="ovseg", text=name, category_id=number, category_name=name)
