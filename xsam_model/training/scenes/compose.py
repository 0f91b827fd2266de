"""Composes the picture of a scene: the ground with its surfaces, and objects in z-order with exact visible masks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.scenes.art.assets import Ground, Sprite
from xsam_model.training.scenes.art.colors import paint
from xsam_model.training.scenes.art.textures import gradient, opencv, textures

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
# Surfaces that stand upright above the horizon; all others lie below it.
_UPRIGHT = frozenset({"sky", "night sky", "brick wall", "stone wall", "foliage"})
_MARGIN = 4  # pixels around a turned drawing, for interpolation and blur


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnGround:
    """The background of a scene.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        stuff: names of the surfaces in it.
        regions: int8 (H, W), position in `stuff` of each pixel's surface, -1 for none.
        name: name of the background picture.
        shows: names of things that the picture itself shows.
    """

    pixels: Pixels
    stuff: tuple[str, ...]
    regions: NDArray[np.int8]
    name: str
    shows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cutout:
    """A transformed drawing at its place in the picture.

    Attributes:
        pixels: uint8 (h, w, 4), RGB multiplied by alpha; entirely inside the picture.
        solid: bool (h, w), pixels that belong to the object, which are at least half opaque.
        top, left: row and column of its first pixel.
        full_area: area of the whole object in pixels, parts outside the picture included.
    """

    pixels: Pixels
    solid: Mask
    top: int
    left: int
    full_area: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns in the picture."""
        height, width = self.solid.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def draw_ground(
    grounds: tuple[Ground, ...],
    surfaces: tuple[str, ...],
    random: np.random.Generator,
    side: int,
    stuff_share: float,
    min_crop: float = 0.45,
) -> DrawnGround:
    """Draw a photograph or a gradient, and with some probability surfaces above or below a horizon, or in a patch.

    Args:
        grounds, surfaces: background pictures and names of surfaces that may be used.
        random: source of all choices.
        side: height and width in pixels.
        stuff_share: share of scenes with surfaces.
        min_crop: least side of the part of a photograph that is shown, as a share of its shorter side.
    """
    if random.random() < 0.12:
        name, shows = "gradient", tuple[str, ...]()
        pixels = _crop(gradient(int(random.integers(64))), random, side)
    else:
        ground = grounds[random.integers(len(grounds))]
        name, shows = ground.name, ground.shows
        pixels = _vary(_crop(ground.pixels, random, side, min_crop), random)
    regions = np.full((side, side), -1, dtype=np.int8)
    stuff: list[str] = []
    if random.random() < stuff_share:
        usable = [name for name in surfaces if name not in shows]
        above = [name for name in usable if name in _UPRIGHT]
        below = [name for name in usable if name not in _UPRIGHT]
        line = _horizon(random, side)
        rows = np.arange(side)[:, None]
        layout = random.random()
        if above and layout < 0.65:
            _cover(pixels, regions, stuff, above[random.integers(len(above))], rows < line, random)
        if below and layout > 0.25:
            _cover(pixels, regions, stuff, below[random.integers(len(below))], rows >= line, random)
        left = [name for name in usable if name not in stuff]
        if left and (random.random() < 0.25 or not stuff):
            _cover(pixels, regions, stuff, left[random.integers(len(left))], _patch(random, side), random)
    return DrawnGround(pixels=pixels, stuff=tuple(stuff), regions=regions, name=name, shows=shows)


def _crop(picture: Pixels, random: np.random.Generator, side: int, least: float = 0.45) -> Pixels:
    cv2 = opencv()
    height, width = picture.shape[:2]
    length = int(min(height, width) * random.uniform(least, 1))
    top, left = random.integers(height - length + 1), random.integers(width - length + 1)
    part = picture[top : top + length, left : left + length]
    if random.random() < 0.5:
        part = np.ascontiguousarray(part[:, ::-1])
    method = cv2.INTER_AREA if length > side else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(part, (side, side), interpolation=method))


def _vary(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Vary brightness, contrast and color balance."""
    levels = np.arange(256, dtype=np.float32)
    gains = random.uniform(0.7, 1.15) * random.uniform(0.9, 1.1, 3)
    middle = random.uniform(90, 150)
    table = (levels[:, None] - middle) * random.uniform(0.7, 1.1) + middle
    return opencv().LUT(pixels, np.clip(table * gains, 0, 255).astype(np.uint8)[None])


def _horizon(random: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Return the row of the horizon in each column, (side,) float32."""
    columns = np.linspace(0, 1, side, dtype=np.float32)
    level = random.uniform(0.3, 0.7) + random.uniform(-0.1, 0.1) * columns
    waves = random.uniform(0, 0.05, 2)[:, None] * np.sin(
        columns * random.uniform(4, 18, (2, 1)) + random.uniform(0, 7, (2, 1))
    )
    return ((level + waves.sum(axis=0)) * side).astype(np.float32)


def _patch(random: np.random.Generator, side: int) -> Mask:
    """Return the mask of a round patch with a wavy edge."""
    rows, columns = np.ogrid[:side, :side]
    y, x = random.uniform(0.25, 0.85, 2) * side
    height, width = random.uniform(0.16, 0.36, 2) * side
    down, right = ((rows - y) / height).astype(np.float32), ((columns - x) / width).astype(np.float32)
    angle = np.arctan2(down, right)
    edge = 1 + 0.14 * np.sin(3 * angle + random.uniform(0, 7)) + 0.08 * np.sin(5 * angle + random.uniform(0, 7))
    return np.asarray(down**2 + right**2 < edge**2)


def _cover(
    pixels: Pixels,
    regions: NDArray[np.int8],
    stuff: list[str],
    name: str,
    region: Mask,
    random: np.random.Generator,
) -> None:
    """Lay a surface over a region: changes `pixels`, `regions` and `stuff`."""
    variants = textures(name)
    surface = _crop(variants[random.integers(len(variants))], random, pixels.shape[0])
    surface = _vary(surface, random)
    np.copyto(pixels, surface, where=region[..., None])
    regions[region] = len(stuff)
    stuff.append(name)


def cut_out(  # noqa: PLR0917
    sprite: Sprite,
    color: str | None,
    random: np.random.Generator,
    side: int,
    length: float,
    place: tuple[float, float],
    min_inside: float = 0.6,
) -> Cutout | None:
    """Rotate, flip, shear, scale and light a drawing, and sometimes blur it.

    Args:
        sprite: the drawing.
        color: color to paint it in, None to keep its own.
        random: source of all choices.
        side: height and width of the picture in pixels.
        length: longer side of the object in pixels.
        place: row and column of its center.
        min_inside: least share of it that is inside the picture.

    Returns:
        The cutout; None if too little of it is inside the picture.
    """
    cv2 = opencv()
    drawing = next((level for level in reversed(sprite.levels) if level.shape[0] >= length), sprite.levels[0])
    angle = random.uniform(-0.45, 0.45) if random.random() < 0.8 else random.uniform(-math.pi, math.pi)
    scale = length / drawing.shape[0] * np.exp(random.uniform(-0.12, 0.12, 2))
    turn = np.array(((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))))
    slant = np.array(((1.0, random.uniform(-0.15, 0.15)), (0.0, 1.0)))
    matrix = turn @ slant @ np.diag(scale * (1 if random.random() < 0.5 else -1, 1))
    half = np.abs(matrix).sum(axis=1) * drawing.shape[0] / 2 + _MARGIN
    width, height = (int(2 * math.ceil(extent)) for extent in half)
    middle = (drawing.shape[0] - 1) / 2
    offset = np.array(((width - 1) / 2, (height - 1) / 2)) - matrix @ (middle, middle)
    pixels = cv2.warpAffine(drawing, np.column_stack((matrix, offset)), (width, height), flags=cv2.INTER_LINEAR)
    if color is not None:
        pixels = paint(pixels, color)
    # Colors are multiplied by alpha, so brightening must not exceed it.
    pixels[..., :3] = np.minimum(pixels[..., :3] * np.float32(random.uniform(0.75, 1.1)), pixels[..., 3:])
    if random.random() < 0.2:
        pixels = cv2.GaussianBlur(pixels, (0, 0), random.uniform(0.3, 0.9) * side / 128)
    top, left = round(place[0] - height / 2), round(place[1] - width / 2)
    full_area = int((pixels[..., 3] > 127).sum())
    rows, columns = slice(max(0, -top), max(0, side - top)), slice(max(0, -left), max(0, side - left))
    inside = pixels[rows, columns]
    solid = inside[..., 3] > 127
    # What is cut off too far by the picture's edge could often not be recognized.
    if not full_area or solid.sum() < min_inside * full_area:
        return None
    return Cutout(pixels=inside, solid=solid, top=max(0, top), left=max(0, left), full_area=full_area)


def blend_in(picture: Pixels, cutout: Cutout, shadow: tuple[float, float] | None) -> None:
    """Draw an object into the picture, in place.

    Args:
        picture: uint8 (H, W, 3) RGB, changed.
        cutout: the object.
        shadow: darkness of its shadow, in [0, 1], and how far down it falls, in pixels; None for no shadow.
    """
    rows, columns = cutout.window
    if shadow is not None:
        _cast_shadow(picture, cutout, *shadow)
    behind = picture[rows, columns].astype(np.uint16)
    see_through = 255 - cutout.pixels[..., 3:].astype(np.uint16)
    # Colors are multiplied by alpha already, so they are added as they are; 127 rounds the division to the nearest.
    picture[rows, columns] = np.minimum((behind * see_through + 127) // 255 + cutout.pixels[..., :3], 255)


def _cast_shadow(picture: Pixels, cutout: Cutout, darkness: float, drop: float) -> None:
    cv2 = opencv()
    rows, columns = cutout.window
    pad = math.ceil(drop) * 2
    soft = np.pad(cutout.pixels[..., 3], ((0, pad), (0, 0)))
    soft = cv2.GaussianBlur(np.roll(soft, round(drop), axis=0), (0, 0), drop / 2 + 0.5)
    part = picture[rows.start : rows.stop + pad, columns]
    light = 255 - soft[: part.shape[0], :, None] * np.float32(darkness)
    part[:] = part * (light / np.float32(255))


def finish(picture: Pixels, random: np.random.Generator) -> Pixels:
    """Vary the light of the whole picture, and sometimes blur it or add grain."""
    cv2 = opencv()
    levels = np.arange(256, dtype=np.float32)
    table = (levels - 128) * random.uniform(0.85, 1.1) + 128 + random.uniform(-16, 16)
    picture = cv2.LUT(picture, np.clip(table, 0, 255).astype(np.uint8))
    if random.random() < 0.1:
        picture = cv2.GaussianBlur(picture, (0, 0), random.uniform(0.3, 0.8) * picture.shape[0] / 128)
    if random.random() < 0.3:
        strength = int(random.integers(2, 12))
        # Added and subtracted with OpenCV, which saturates where uint8 arithmetic of NumPy wraps around.
        grain = random.integers(0, 2 * strength + 1, picture.shape, dtype=np.uint8)
        picture = cv2.subtract(cv2.add(picture, grain), np.full_like(picture, strength))
    return picture
