"""Draw masks on their images, for people to look at."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from pipelines.masks import rle
from pipelines.types import Rle

_OPACITY = 0.45
# Hues this fraction of the colour circle apart stay well separated, however many there are.
_GOLDEN_RATIO = 0.618034
_CAPTION_HEIGHT = 22
_GAP = 6


Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledMask:
    """One mask to draw: its RLE at the image's size, name, score and colour.

    Attributes:
        color: RGB, 0-255, or a colour's number, see ``color_of``.
    """

    segmentation: Rle
    name: str
    score: float
    color: int | Rgb

    @property
    def rgb(self) -> Rgb:
        """The colour, RGB, 0-255."""
        return color_of(self.color) if isinstance(self.color, int) else self.color


def color_of(number: int) -> Rgb:
    """Return the RGB colour, 0-255, of a number; neighbouring numbers have clearly different colours."""
    red, green, blue = colorsys.hsv_to_rgb((number * _GOLDEN_RATIO) % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_masks(pixels: NDArray[np.uint8], masks: Sequence[LabeledMask], *, with_names: bool = True) -> PILImage.Image:
    """Draw masks on an image: tinted, outlined and labelled with their names.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        masks: at the image's size; later ones are drawn over earlier ones.
        with_names: whether to write names and scores.

    Raises:
        ValueError: a mask has another size than the image.
    """
    tinted = pixels.astype(np.float32)
    for mask in masks:
        if mask.segmentation.size_hw != pixels.shape[:2]:
            raise ValueError(f"mask of size {mask.segmentation.size_hw} on an image of size {pixels.shape[:2]}")
        inside = rle.decode(mask.segmentation)
        color = np.array(mask.rgb, dtype=np.float32)
        tinted[inside] = (1 - _OPACITY) * tinted[inside] + _OPACITY * color
        tinted[inside & ~_eroded(inside, max(1, min(pixels.shape[:2]) // 300))] = color
    picture = PILImage.fromarray(tinted.round().astype(np.uint8))
    if with_names:
        _write_names(picture, masks)
    return picture


def _write_names(picture: PILImage.Image, masks: Sequence[LabeledMask]) -> None:
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(11, min(picture.size) // 30))
    for mask in masks:
        x, y, width, height = rle.bbox_xywh(mask.segmentation)
        place, text = (x + width / 2, y + height / 2), f"{mask.name} {mask.score:.2f}"
        draw.rectangle(draw.textbbox(place, text, font, anchor="mm"), fill=(0, 0, 0))
        draw.text(place, text, mask.rgb, font, anchor="mm")


def contact_sheet(
    pictures: Sequence[tuple[str, PILImage.Image]], *, columns: int = 4, cell: int = 320
) -> PILImage.Image:
    """Arrange captioned pictures in a grid, each scaled to fit a square cell of ``cell`` pixels.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step = cell + _GAP
    sheet = PILImage.new("RGB", (columns * step + _GAP, rows * (step + _CAPTION_HEIGHT) + _GAP), (24, 24, 27))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (caption, picture) in enumerate(pictures):
        left, top = _GAP + number % columns * step, _GAP + number // columns * (step + _CAPTION_HEIGHT)
        small = picture.copy()
        small.thumbnail((cell, cell), PILImage.Resampling.LANCZOS)
        sheet.paste(small, (left + (cell - small.width) // 2, top + (cell - small.height) // 2))
        draw.text((left + 2, top + cell + 3), caption, (228, 228, 231), font)
    return sheet


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Erode a mask by some pixels; the image's own edge does not count as the mask's border."""
    inner = mask.copy()
    for shift in range(1, pixels + 1):
        inner[shift:] &= mask[:-shift]
        inner[:-shift] &= mask[shift:]
        inner[:, shift:] &= mask[:, :-shift]
        inner[:, :-shift] &= mask[:, shift:]
    return inner
