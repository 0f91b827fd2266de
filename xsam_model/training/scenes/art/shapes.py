"""Draws built-in pictures with Pillow, a few objects in three styles and backgrounds, for scenes without downloads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from xsam_model.training.scenes.art.textures import gradient

SHAPE_STYLES = ("flat", "shaded", "outline")
_SIDE = 128
_FINE = 4  # supersampling: Pillow draws without anti-aliasing
# The parts of each object: shape, corners or box in hundredths of the side, color.
_SHAPES: dict[str, tuple[tuple[str, tuple[int, ...], tuple[int, int, int]], ...]] = {
    "coin": (("ellipse", (4, 4, 96, 96), (226, 180, 40)), ("ellipse", (20, 20, 80, 80), (246, 214, 92))),
    "box": (("rectangle", (6, 14, 94, 92), (188, 136, 80)), ("rectangle", (42, 14, 58, 92), (230, 196, 140))),
    "star": (
        ("polygon", (50, 2, 62, 37, 98, 38, 69, 60, 79, 96, 50, 75, 21, 96, 31, 60, 2, 38, 38, 37), (250, 200, 40)),
    ),
    "tent": (("polygon", (50, 6, 98, 92, 2, 92), (40, 130, 90)), ("polygon", (50, 40, 66, 92, 34, 92), (20, 60, 44))),
    "kite": (("polygon", (50, 2, 88, 38, 50, 98, 12, 38), (214, 50, 60)), ("line", (50, 2, 50, 98), (250, 240, 220))),
    "pizza": (
        ("polygon", (4, 12, 96, 12, 50, 98), (244, 196, 88)),
        ("rectangle", (2, 4, 98, 16), (176, 110, 50)),
        ("ellipse", (26, 24, 44, 42), (200, 50, 36)),
        ("ellipse", (54, 28, 72, 46), (200, 50, 36)),
        ("ellipse", (42, 54, 58, 70), (200, 50, 36)),
    ),
    "doughnut": (("ellipse", (2, 2, 98, 98), (206, 146, 84)), ("ellipse", (8, 8, 92, 92), (240, 140, 180))),
    "apple": (
        ("ellipse", (6, 22, 94, 98), (206, 40, 40)),
        ("rectangle", (46, 6, 54, 30), (92, 60, 30)),
        ("ellipse", (54, 4, 84, 20), (70, 160, 60)),
    ),
    "fish": (("ellipse", (24, 24, 98, 78), (60, 130, 210)), ("polygon", (34, 51, 2, 20, 2, 82), (40, 96, 170))),
    "owl": (
        ("ellipse", (14, 6, 86, 98), (134, 92, 56)),
        ("ellipse", (22, 18, 50, 46), (250, 250, 240)),
        ("ellipse", (50, 18, 78, 46), (250, 250, 240)),
        ("polygon", (44, 46, 56, 46, 50, 58), (240, 170, 40)),
    ),
    "car": (
        ("polygon", (22, 54, 34, 26, 70, 26, 84, 54), (150, 200, 230)),
        ("rectangle", (2, 50, 98, 78), (210, 44, 48)),
        ("ellipse", (14, 66, 38, 90), (40, 40, 44)),
        ("ellipse", (62, 66, 86, 90), (40, 40, 44)),
    ),
    "sailboat": (
        ("polygon", (46, 2, 46, 64, 6, 64), (244, 244, 244)),
        ("polygon", (2, 68, 98, 68, 78, 96, 20, 96), (140, 80, 44)),
    ),
    "book": (("rectangle", (10, 4, 90, 96), (46, 96, 190)), ("rectangle", (10, 4, 22, 96), (28, 60, 130))),
    "drum": (("rectangle", (8, 22, 92, 84), (190, 40, 50)), ("ellipse", (8, 10, 92, 38), (244, 232, 210))),
    "carrot": (("polygon", (20, 24, 80, 24, 50, 98), (240, 130, 36)), ("ellipse", (34, 2, 66, 28), (60, 150, 60))),
    "balloon": (
        ("ellipse", (16, 2, 84, 80), (150, 60, 190)),
        ("polygon", (44, 76, 56, 76, 58, 96, 42, 96), (110, 40, 150)),
    ),
    "crown": (("polygon", (4, 24, 28, 54, 50, 10, 72, 54, 96, 24, 90, 92, 10, 92), (240, 190, 40)),),
    "penguin": (("ellipse", (18, 2, 82, 98), (34, 36, 44)), ("ellipse", (30, 30, 70, 94), (246, 246, 246))),
}
SHAPE_NAMES = tuple(_SHAPES)


def draw_shape(name: str, style: str) -> NDArray[np.uint8]:
    """Draw an object, uint8 (128, 128, 4), RGB multiplied by alpha."""
    picture = Image.new("RGBA", (_SIDE * _FINE, _SIDE * _FINE))
    canvas = ImageDraw.Draw(picture)
    scale = _SIDE * _FINE / 100
    for part, numbers, color in _SHAPES[name]:
        places = [number * scale for number in numbers]
        fill: dict[str, Any] = {"fill": (*color, 255)}
        if style == "outline":
            fill |= {"outline": (30, 30, 30, 255), "width": int(3 * scale)}
        if part == "line":
            canvas.line(places, fill=(*color, 255), width=int(4 * scale))
        else:
            getattr(canvas, part)(places, **fill)
    if name == "doughnut":
        canvas.ellipse([34 * scale, 34 * scale, 66 * scale, 66 * scale], fill=(0, 0, 0, 0))
    pixels = np.asarray(picture.resize((_SIDE, _SIDE), Image.Resampling.BOX)).astype(np.float32)
    if style == "shaded":
        alpha = picture.getchannel("A").filter(ImageFilter.GaussianBlur(6 * scale)).resize((_SIDE, _SIDE))
        pixels[..., :3] *= (0.55 + 0.5 * np.asarray(alpha, dtype=np.float32) / 255)[..., None]
    pixels[..., :3] = np.minimum(pixels[..., :3], 255) * pixels[..., 3:] / 255
    return pixels.round().astype(np.uint8)


def draw_grounds() -> dict[str, NDArray[np.uint8]]:
    """Return background pictures by name, each uint8 (256, 256, 3)."""
    return {f"gradient {number}": gradient(1000 + number) for number in range(8)}
