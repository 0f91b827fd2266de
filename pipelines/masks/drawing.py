"""Draw masks on their images, for people to look at."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont, ImageOps

from pipelines.masks import rle
from pipelines.types import Rle

_OPACITY = 0.45
# Hues this fraction of the color circle apart stay well separated, however many there are.
_GOLDEN_RATIO = 0.618034
_CAPTION_HEIGHT = 22
_GAP = 6
# Of a sheet's cell: text stays legible when a sheet of eight columns is shown on a screen.
_TEXT_SHARE, _MIN_TEXT_PX = 1 / 20, 12
_MOST_NAMES = 4
_SAME_IOU = 0.3  # masks of one name that overlap so much are of one thing
_PADDING = 3
_SHEET, _CHIP, _TEXT = (24, 24, 27), (20, 20, 22), (255, 255, 255)


Rgb = tuple[int, int, int]
Box = tuple[int, int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True)
class LabeledMask:
    """One mask to draw: its RLE at the image's size, name, score and color.

    Attributes:
        color: RGB, 0-255, or a color's number, see ``color_of``.
    """

    segmentation: Rle
    name: str
    score: float
    color: int | Rgb

    @property
    def rgb(self) -> Rgb:
        """The color, RGB, 0-255."""
        return color_of(self.color) if isinstance(self.color, int) else self.color


def color_of(number: int) -> Rgb:
    """Return the RGB color, 0-255, of a number; neighboring numbers have clearly different colors."""
    red, green, blue = colorsys.hsv_to_rgb((number * _GOLDEN_RATIO) % 1.0, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_masks(
    pixels: NDArray[np.uint8], masks: Sequence[LabeledMask], *, line_px: int | None = None
) -> PILImage.Image:
    """Draw masks on an image: tinted and outlined.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        masks: at the image's size; later ones are drawn over earlier ones.
        line_px: width of the outlines, pixels; by default one for each 300 of the image's shorter side.

    Raises:
        ValueError: a mask has another size than the image.
    """
    tinted, line_px = pixels.astype(np.float32), line_px or max(1, min(pixels.shape[:2]) // 300)
    for mask in masks:
        if mask.segmentation.size_hw != pixels.shape[:2]:
            raise ValueError(f"mask of size {mask.segmentation.size_hw} on an image of size {pixels.shape[:2]}")
        inside = rle.decode(mask.segmentation)
        color = np.array(mask.rgb, dtype=np.float32)
        tinted[inside] = (1 - _OPACITY) * tinted[inside] + _OPACITY * color
        tinted[inside & ~_eroded(inside, line_px)] = color
    return PILImage.fromarray(tinted.round().astype(np.uint8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A name to write on a picture.

    Attributes:
        text: the name, cut if it is wider than the picture, and the score.
        box: of its chip: left, top, right and bottom, pixels.
        color: RGB of its mask.
    """

    text: str
    box: Box
    color: Rgb


def place_names(size: tuple[int, int], masks: Sequence[LabeledMask], font: Font) -> list[Label]:
    """Find places for the names of the best masks: on their masks, or above or below where another name is already.

    Args:
        size: width and height of the picture, pixels; masks may have another scale.
        masks: of the whole picture.
        font: that the names are written in.

    Returns:
        At most four labels, best scores first, inside the picture and apart; without those for which no place is free.
        Masks of one name that lie over one another are named once.
    """
    labels: list[Label] = []
    for mask in _distinct(masks)[:_MOST_NAMES]:
        (height, width), (x, y, w, h) = mask.segmentation.size_hw, rle.bbox_xywh(mask.segmentation)
        center = ((x + w / 2) * size[0] / width, (y + h / 2) * size[1] / height)
        text = _cut(mask.name, f" {mask.score:.2f}", font, size[0] - 2 * _PADDING)
        if box := _free_box(center, _chip_size(text, font), size, [label.box for label in labels]):
            labels.append(Label(text=text, box=box, color=mask.rgb))
    return labels


def _distinct(masks: Sequence[LabeledMask]) -> list[LabeledMask]:
    """Return masks by falling score, without those that lie over a better one of the same name."""
    kept: list[LabeledMask] = []
    for mask in sorted(masks, key=lambda mask: -mask.score):
        better = [other.segmentation for other in kept if other.name == mask.name]
        if not better or rle.iou([mask.segmentation], better).max() < _SAME_IOU:
            kept.append(mask)
    return kept


def _chip_size(text: str, font: Font) -> tuple[int, int]:
    # All chips have the height of letters that reach far up and down, so that names stand in line.
    _, top, _, bottom = font.getbbox("Ágjp")
    return math.ceil(font.getlength(text)) + 2 * _PADDING, math.ceil(bottom - top) + 2 * _PADDING


def _free_box(
    center: tuple[float, float],
    chip: tuple[int, int],
    size: tuple[int, int],
    taken: Sequence[Box],
) -> Box | None:
    """Return the free place for a chip that is nearest to its mask, straight up or down; None if there is none."""
    most_left, most_top = size[0] - chip[0], size[1] - chip[1]
    if min(most_left, most_top) < 0:
        return None
    left = min(max(round(center[0] - chip[0] / 2), 0), most_left)
    wanted = min(max(round(center[1] - chip[1] / 2), 0), most_top)
    for top in sorted(range(most_top + 1), key=lambda top: abs(top - wanted)):
        box = (left, top, left + chip[0], top + chip[1])
        if all(box[2] <= t[0] or t[2] <= box[0] or box[3] <= t[1] or t[3] <= box[1] for t in taken):
            return box
    return None


def _cut(text: str, end: str, font: Font, width: float) -> str:
    """Return a text and its end, the text cut so that both fit a width in pixels."""
    kept = text
    while kept and font.getlength((kept if kept == text else f"{kept.rstrip()}...") + end) > width:
        kept = kept[:-1]
    return (kept if kept == text else f"{kept.rstrip()}...") + end


def _write_names(picture: PILImage.Image, masks: Sequence[LabeledMask], font: Font) -> None:
    draw = ImageDraw.Draw(picture)
    for label in place_names(picture.size, masks, font):
        left, top, right, bottom = label.box
        draw.rectangle((left, top, right - 1, bottom - 1), fill=_CHIP, outline=label.color)
        draw.text(((left + right) / 2, (top + bottom) / 2), label.text, _TEXT, font, anchor="mm")


def contact_sheet(
    pictures: Sequence[tuple[str, PILImage.Image, Sequence[LabeledMask]]], *, columns: int = 4, cell: int = 320
) -> PILImage.Image:
    """Arrange captioned pictures in a grid, each scaled to fit a square cell of ``cell`` pixels.

    Args:
        pictures: captions, pictures, and the masks whose names are written on them, see ``place_names``. They are
            written after scaling: on all pictures they are as large.
        columns: number of pictures in a row.
        cell: side of a cell, pixels.

    Raises:
        ValueError: there are no pictures.
    """
    if not pictures:
        raise ValueError("a contact sheet needs at least one picture")
    columns = min(columns, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    step = cell + _GAP
    sheet = PILImage.new("RGB", (columns * step + _GAP, rows * (step + _CAPTION_HEIGHT) + _GAP), _SHEET)
    font = ImageFont.load_default(max(_MIN_TEXT_PX, round(cell * _TEXT_SHARE)))
    draw = ImageDraw.Draw(sheet)
    for number, (caption, picture, masks) in enumerate(pictures):
        left, top = _GAP + number % columns * step, _GAP + number // columns * (step + _CAPTION_HEIGHT)
        fitted = ImageOps.contain(picture, (cell, cell), PILImage.Resampling.LANCZOS)
        _write_names(fitted, masks, font)
        sheet.paste(fitted, (left + (cell - fitted.width) // 2, top + (cell - fitted.height) // 2))
        draw.text((left + 2, top + cell + 2), _cut(caption, "", font, cell - 2), (228, 228, 231), font)
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
