"""Color names: determines the colors of a drawing, and paints drawings in one color."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# The order is that of the counts of `color_shares`, and so of `Sprite.shares`.
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray", "white")
# Colors that objects are painted in; the other names are too close to one of these.
PAINTS = {
    "red": (214, 32, 36),
    "yellow": (246, 208, 30),
    "green": (44, 160, 58),
    "blue": (38, 92, 214),
    "purple": (136, 52, 178),
    "pink": (244, 128, 190),
    "black": (40, 40, 44),
    "white": (238, 238, 240),
}
# A drawing has a color from the first share on, and lacks it below the second; in between nothing is said of it.
HAS_SHARE, LACKS_SHARE = 0.6, 0.15


def color_shares(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the share of each of `COLORS` in a drawing.

    Args:
        pixels: uint8 (H, W, 4), RGB multiplied by alpha.

    Returns:
        float32 (11,), sum 1; zeros for an empty drawing.
    """
    # Only nearly opaque pixels: the colors of others are darkened by the multiplication with alpha.
    opaque = pixels[pixels[..., 3] > 200].astype(np.float32) / 255
    if not len(opaque):
        return np.zeros(len(COLORS), dtype=np.float32)
    rgb = opaque[:, :3]
    value, low = rgb.max(axis=1), rgb.min(axis=1)
    chroma = value - low
    saturation = chroma / np.maximum(value, 1e-6)
    red, green, blue = rgb.T
    safe = np.maximum(chroma, 1e-6)
    hue = np.where(value == red, (green - blue) / safe % 6, np.where(value == green, (blue - red) / safe + 2, 0))
    hue = 60 * np.where((value == blue) & (value != red) & (value != green), (red - green) / safe + 4, hue)
    # Hue in degrees; the bin above 340 wraps around to red.
    names = np.digitize(hue, (14, 38, 68, 165, 255, 290, 340))
    index = np.array([COLORS.index(name) for name in ("red", "orange", "yellow", "green", "blue", "purple", "pink")])
    named = index[names % 7]
    named[(named == 1) & (value < 0.8)] = COLORS.index("brown")
    named[(named == 0) & (saturation < 0.5) & (value > 0.8)] = COLORS.index("pink")
    gray = saturation < 0.2
    named[gray] = COLORS.index("gray")
    named[gray & (value > 0.82)] = COLORS.index("white")
    named[value < 0.25] = COLORS.index("black")
    return (np.bincount(named, minlength=len(COLORS)) / len(named)).astype(np.float32)


def paint_shares(name: str) -> NDArray[np.float32]:
    """Return the `color_shares` of a drawing painted in a color."""
    shares = np.zeros(len(COLORS), dtype=np.float32)
    shares[COLORS.index(name)] = 1
    return shares


def main_color(shares: NDArray[np.float32]) -> str | None:
    """Return the color that a drawing clearly has, or None."""
    best = int(shares.argmax())
    return COLORS[best] if shares[best] >= HAS_SHARE else None


def lacks_color(shares: NDArray[np.float32], name: str) -> bool:
    """Return whether nobody would describe a drawing by this color or one close to it."""
    near = {
        "red": ("red", "orange", "pink", "brown"),
        "yellow": ("yellow", "orange"),
        "pink": ("pink", "red", "purple"),
    }
    near |= {"orange": ("orange", "yellow", "red", "brown"), "brown": ("brown", "orange", "red")}
    near |= {"purple": ("purple", "pink", "blue"), "blue": ("blue", "purple"), "gray": ("gray", "white", "black")}
    near |= {"white": ("white", "gray"), "black": ("black", "gray")}
    places = [COLORS.index(color) for color in near.get(name, (name,))]
    return float(shares[places].sum()) < LACKS_SHARE


def paint(pixels: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Paint a drawing in one color and keep its shading.

    Args:
        pixels: uint8 (h, w, 4), RGB multiplied by alpha.
        name: one of `PAINTS`.

    Returns:
        The same shape and meaning.
    """
    # Brightness and opacity, float32 (h, w) each, 0 to 255.
    alpha = pixels[..., 3].astype(np.float32)
    light = pixels[..., :3] @ np.array((0.3, 0.55, 0.15), dtype=np.float32)
    shade = 0.5 * alpha + 0.62 * light
    gloss = 1.4 * np.maximum(light - 0.85 * alpha, 0)
    painted = np.empty_like(pixels)
    painted[..., 3] = pixels[..., 3]
    for channel, level in enumerate(PAINTS[name]):
        painted[..., channel] = np.minimum(shade * np.float32(level / 255) + gloss, alpha)
    return painted
