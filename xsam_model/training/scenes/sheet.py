"""Draws sheets of scenes to look at: each picture beside its masks, with its contents as text underneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.scene import Scene

_COLUMNS, _TEXT_PIXELS = 4, 62
_HUES = ((230, 60, 60), (60, 170, 60), (70, 110, 240), (240, 180, 40), (180, 80, 200), (60, 190, 200), (250, 130, 180))
_STUFF_HUES = ((110, 130, 110), (130, 110, 90), (100, 110, 140))


def draw_sheet(scenes: Sequence[Scene]) -> Image.Image:
    """Draw scenes of one size with their masks and the names of their objects and surfaces."""
    return _sheet([(scene.pixels, paint_masks(scene)) for scene in scenes], [describe(scene) for scene in scenes])


def _sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], notes: Sequence[str]) -> Image.Image:
    side = pairs[0][0].shape[0]
    width, height = 2 * side + 6, side + _TEXT_PIXELS
    sheet = Image.new("RGB", (_COLUMNS * width, -(-len(pairs) // _COLUMNS) * height), "white")
    canvas = ImageDraw.Draw(sheet)
    for place, (pair, note) in enumerate(zip(pairs, notes, strict=True)):
        left, top = place % _COLUMNS * width, place // _COLUMNS * height
        for offset, picture in zip((0, side), pair, strict=True):
            sheet.paste(Image.fromarray(picture), (left + offset, top))
        canvas.text((left + 2, top + side + 2), textwrap.fill(note, 2 * side // 6), fill="black")
    return sheet


def draw_samples(samples: Sequence[TrainingSample]) -> Image.Image:
    """Draw training samples, with visual prompts highlighted and masks colored by condition.

    Args:
        samples: samples of one size.
    """
    pairs, notes = [], []
    for sample in samples:
        picture, painted = sample.image.copy(), np.zeros_like(sample.image)
        for place, prompt in enumerate(sample.visual_prompts):
            picture[prompt] = picture[prompt] // 2 + np.array(_HUES[place % len(_HUES)], dtype=np.uint8) // 2
        for mask, label in zip(sample.masks, sample.labels, strict=True):
            painted[mask] = _HUES[int(label) % len(_HUES)]
        pairs.append((picture, painted))
        absent = set(range(len(sample.conditions))) - set(sample.labels.tolist())
        asked = [f"({text})" if place in absent else text for place, text in enumerate(sample.conditions)]
        notes.append(f"{sample.task}: {', '.join(asked[:12])} {sample.answer or ''}")
    return _sheet(pairs, notes)


def paint_masks(scene: Scene) -> np.ndarray:
    """Draw the masks of objects in bright and those of surfaces in dark colors, uint8 (H, W, 3)."""
    painted = np.zeros_like(scene.pixels)
    for hue, region in zip(_STUFF_HUES, scene.stuff, strict=False):
        painted[region.mask] = hue
    for place, thing in enumerate(scene.objects):
        painted[thing.mask] = _HUES[place % len(_HUES)]
    return painted


def describe(scene: Scene) -> str:
    """List everything in a scene, from back to front."""
    names = [f"{thing.color} {thing.name}" if thing.color else thing.name for thing in scene.objects]
    stuff = "".join(f" | {region.name}" for region in scene.stuff)
    return f"{scene.seed}: {', '.join(names)}{stuff}"
