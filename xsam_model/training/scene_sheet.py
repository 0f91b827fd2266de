"""A sheet of scenes to look at: each picture beside its masks, and underneath what it shows."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from xsam_model.training.scenes import Scene

_COLUMNS, _TEXT_PIXELS = 4, 62
_HUES = ((230, 60, 60), (60, 170, 60), (70, 110, 240), (240, 180, 40), (180, 80, 200), (60, 190, 200), (250, 130, 180))
_STUFF_HUES = ((110, 130, 110), (130, 110, 90), (100, 110, 140))


def draw_sheet(scenes: Sequence[Scene], notes: Sequence[str] | None = None) -> Image.Image:
    """Draw scenes and their masks.

    Args:
        scenes: all of one size.
        notes: a text for each; by default the names of what it shows.
    """
    side = scenes[0].pixels.shape[0]
    width, height = 2 * side + 6, side + _TEXT_PIXELS
    sheet = Image.new("RGB", (_COLUMNS * width, -(-len(scenes) // _COLUMNS) * height), "white")
    canvas = ImageDraw.Draw(sheet)
    for place, scene in enumerate(scenes):
        left, top = place % _COLUMNS * width, place // _COLUMNS * height
        sheet.paste(Image.fromarray(scene.pixels), (left, top))
        sheet.paste(Image.fromarray(paint_masks(scene)), (left + side, top))
        note = describe(scene) if notes is None else notes[place]
        canvas.text((left + 2, top + side + 2), textwrap.fill(note, 2 * side // 6), fill="black")
    return sheet


def paint_masks(scene: Scene) -> np.ndarray:
    """Colour objects brightly and surfaces darkly: uint8 (H, W, 3)."""
    painted = np.zeros_like(scene.pixels)
    for hue, region in zip(_STUFF_HUES, scene.stuff, strict=False):
        painted[region.mask] = hue
    for place, thing in enumerate(scene.objects):
        painted[thing.mask] = _HUES[place % len(_HUES)]
    return painted


def describe(scene: Scene) -> str:
    """Name everything in a scene, from the back to the front."""
    names = [f"{thing.colour} {thing.name}" if thing.colour else thing.name for thing in scene.objects]
    stuff = "".join(f" | {region.name}" for region in scene.stuff)
    return f"{scene.seed}: {', '.join(names)}{stuff}"


__all__ = ["describe", "draw_sheet", "paint_masks"]
