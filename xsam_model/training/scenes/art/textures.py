"""Draws textures of surfaces (grass, water, bricks, ...) for stuff, and soft gradients for backgrounds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTURE_SIDE = 256
VARIANTS = 4
Pixels = NDArray[np.uint8]
_Shades = NDArray[np.float32]


@cache
def opencv() -> Any:
    """Import OpenCV, which only training needs, and turn off its threads, since scenes are made in many processes.

    Raises:
        ImportError: if it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError("scenes need OpenCV: pip install 'xsam-label[train]'") from error
    cv2.setNumThreads(0)
    return cv2


def noise(random: np.random.Generator, cells: tuple[int, int], octaves: int = 3, side: int = TEXTURE_SIDE) -> _Shades:
    """Return smooth value noise, float32 (side, side) in [0, 1].

    Args:
        random: source of the noise.
        cells: number of bumps along height and width; fewer are broader, different numbers make streaks.
        octaves: number of octaves, each with twice the frequency and half the amplitude of the previous one.
        side: height and width in pixels.
    """
    cv2 = opencv()
    total = np.zeros((side, side), dtype=np.float32)
    for octave in range(octaves):
        grid = random.random([min(side, count << octave) + 1 for count in cells], dtype=np.float32)
        total += cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC) * np.float32(0.5**octave)
    low, high = np.percentile(total, (1, 99))
    return np.clip((total - low) / (high - low), 0, 1)


def blend(shades: _Shades, *colors: tuple[int, int, int]) -> _Shades:
    """Map shades in [0, 1] to a ramp of colors, float32 (side, side, 3)."""
    stops = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(shades, stops, channel) for channel in zip(*colors, strict=True)], axis=-1).astype(
        np.float32
    )


def _rows_and_columns() -> tuple[_Shades, _Shades]:
    rows, columns = np.mgrid[:TEXTURE_SIDE, :TEXTURE_SIDE].astype(np.float32)
    return rows, columns


def _blocks(random: np.random.Generator, height: int, width: int, shift: float, joint: int) -> tuple[_Shades, _Shades]:
    """Lay out bricks, planks or tiles; return a random shade for each, and a mask that is 0 in the joints."""
    rows, columns = _rows_and_columns()
    row = rows // height
    columns = columns + row * shift * width
    shade = random.random((TEXTURE_SIDE // height + 2, 2 * TEXTURE_SIDE // width + 40), dtype=np.float32)
    inside = (rows % height >= joint) & (columns % width >= joint)
    return shade[row.astype(int), (columns // width).astype(int) % shade.shape[1]], inside.astype(np.float32)


def _cells(random: np.random.Generator, count: int) -> tuple[_Shades, _Shades]:
    """Divide the plane into stones (Voronoi cells); return a random shade for each, and the distance from its edge.

    Both are float32 (side, side) in [0, 1].
    """
    rows, columns = _rows_and_columns()
    step = TEXTURE_SIDE / count
    best, second = np.full((2, TEXTURE_SIDE, TEXTURE_SIDE), 1e9, dtype=np.float32)
    shades, shade = random.random((count + 2, count + 2), dtype=np.float32), np.zeros_like(best)
    jitter = random.random((count + 2, count + 2, 2), dtype=np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            y, x = (rows // step).astype(int) + down, (columns // step).astype(int) + right
            place = jitter[y, x]
            distance = np.hypot(rows - (y + place[..., 0]) * step, columns - (x + place[..., 1]) * step)
            closer = distance < best
            second = np.where(closer, best, np.minimum(second, distance))
            best, shade = np.where(closer, distance, best), np.where(closer, shades[y, x], shade)
    return shade, np.clip((second - best) / step * 2, 0, 1)


def _sky(random: np.random.Generator) -> _Shades:
    clouds = np.clip(noise(random, (3, 2), 4) * 1.6 - 0.6, 0, 1)
    fall = blend(np.linspace(0, 1, TEXTURE_SIDE, dtype=np.float32)[:, None], (70, 140, 225), (165, 205, 245))
    return fall + (245 - fall) * clouds[..., None] * random.uniform(0.3, 0.9)


def _night(random: np.random.Generator) -> _Shades:
    picture = blend(noise(random, (2, 2)), (6, 8, 26), (24, 22, 62))
    stars = random.integers(0, TEXTURE_SIDE, (2, 160))
    picture[stars[0], stars[1]] = random.uniform(120, 255, (160, 1))
    return picture


def _grass(random: np.random.Generator) -> _Shades:
    blades = 0.6 * noise(random, (24, 90), 2) + 0.4 * noise(random, (3, 3))
    return blend(blades, (28, 74, 18), (74, 138, 38), (140, 186, 72))


def _water(random: np.random.Generator) -> _Shades:
    return blend(noise(random, (26, 5), 3), (12, 62, 116), (38, 120, 172), (150, 208, 228))


def _sand(random: np.random.Generator) -> _Shades:
    ripples = 0.5 * noise(random, (20, 3), 2) + 0.5 * random.random((TEXTURE_SIDE, TEXTURE_SIDE), dtype=np.float32)
    return blend(ripples, (186, 150, 98), (236, 208, 152))


def _snow(random: np.random.Generator) -> _Shades:
    return blend(noise(random, (4, 3), 4), (196, 210, 232), (236, 242, 250), (254, 254, 255))


def _road(random: np.random.Generator) -> _Shades:
    picture = blend(random.random((TEXTURE_SIDE, TEXTURE_SIDE), dtype=np.float32), (56, 56, 60), (98, 98, 102))
    rows, columns = _rows_and_columns()
    picture[(abs(rows - TEXTURE_SIDE / 2) < 6) & (columns % 80 < 44)] = (226, 220, 196)
    return picture


def _bricks(random: np.random.Generator) -> _Shades:
    shade, inside = _blocks(random, 20, 48, 0.5, 3)
    shade = 0.7 * shade + 0.3 * noise(random, (60, 60), 1)
    return np.where(inside[..., None] > 0, blend(shade, (120, 46, 34), (190, 92, 66)), (196, 190, 180))


def _planks(random: np.random.Generator) -> _Shades:
    shade, inside = _blocks(random, 30, 170, 0.37, 2)
    grain = 0.5 * shade + 0.5 * noise(random, (70, 5), 2)
    return np.where(inside[..., None] > 0, blend(grain, (110, 66, 30), (196, 142, 88)), (52, 30, 14))


def _soil(random: np.random.Generator) -> _Shades:
    return blend(noise(random, (18, 18), 4), (44, 28, 16), (92, 62, 38), (140, 102, 68))


def _stones(random: np.random.Generator) -> _Shades:
    shade, edge = _cells(random, 8)
    return np.where(
        edge[..., None] > 0.16, blend(0.7 * shade + 0.3 * edge, (96, 92, 88), (186, 180, 170)), (54, 50, 46)
    )


def _tiles(random: np.random.Generator) -> _Shades:
    rows, columns = _rows_and_columns()
    _, inside = _blocks(random, 40, 40, 0.0, 2)
    dark = (rows // 40 + columns // 40) % 2
    shade = 0.75 * dark + 0.25 * noise(random, (6, 6))
    tint = random.integers(-30, 30, 3)
    light, deep = tuple(np.array((226, 222, 214)) + tint // 3), tuple(np.array((96, 112, 130)) + tint)
    return np.where(inside[..., None] > 0, blend(shade, light, deep), (160, 158, 154))


def _foliage(random: np.random.Generator) -> _Shades:
    shade, edge = _cells(random, 20)
    return blend(0.55 * shade + 0.45 * edge, (10, 34, 10), (34, 92, 28), (112, 168, 64))


def _carpet(random: np.random.Generator) -> _Shades:
    rows, columns = _rows_and_columns()
    pattern = (np.abs((rows + columns) % 64 - 32) + np.abs((rows - columns) % 64 - 32)) / 64
    weave = 0.8 * pattern + 0.2 * random.random((TEXTURE_SIDE, TEXTURE_SIDE), dtype=np.float32)
    return blend(weave, (96, 18, 34), (150, 40, 56), (214, 166, 96))


def _gravel(random: np.random.Generator) -> _Shades:
    shade, edge = _cells(random, 30)
    return blend(np.sqrt(edge) * (0.4 + 0.6 * shade), (48, 46, 44), (140, 136, 130), (216, 212, 204))


def _lava(random: np.random.Generator) -> _Shades:
    veins = 1 - np.abs(noise(random, (5, 5), 3) * 2 - 1)
    return blend(veins**3, (34, 14, 12), (96, 24, 10), (250, 110, 16), (255, 214, 84))


_TEXTURES: dict[str, Callable[[np.random.Generator], _Shades]] = {
    "sky": _sky,
    "night sky": _night,
    "grass": _grass,
    "water": _water,
    "sand": _sand,
    "snow": _snow,
    "road": _road,
    "brick wall": _bricks,
    "wooden floor": _planks,
    "soil": _soil,
    "stone wall": _stones,
    "tiled floor": _tiles,
    "foliage": _foliage,
    "carpet": _carpet,
    "gravel": _gravel,
    "lava": _lava,
}


@cache
def textures(name: str) -> tuple[Pixels, ...]:
    """Return the variants of a surface, each uint8 (256, 256, 3) RGB, the same every time."""
    seeds = [int.from_bytes(name.encode()[:8], "big"), len(name)]
    drawn = (_TEXTURES[name](np.random.default_rng([*seeds, variant])) for variant in range(VARIANTS))
    return tuple(np.clip(picture, 0, 255).astype(np.uint8) for picture in drawn)


@cache
def gradient(number: int) -> Pixels:
    """Return a soft gradient of two or three random colors, uint8 (256, 256, 3) RGB, fixed for each number."""
    random = np.random.default_rng([7, number])
    colors = [tuple(int(value) for value in random.integers(20, 236, 3)) for _ in range(int(random.integers(2, 4)))]
    shades = noise(random, (2, 2), int(random.integers(1, 4)))
    return np.clip(blend(shades, *colors), 0, 255).astype(np.uint8)  # type: ignore[arg-type]
