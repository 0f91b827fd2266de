"""The colors of categories and phrases, used alike in pictures, legends and charts."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.masks.drawing import Rgb
from pipelines.report.facts import Category

# All of the same lightness, with a contrast of at least 3 on white and on the dark page; neighbors differ in hue.
_PALETTE: tuple[Rgb, ...] = (
    (0x3F, 0x93, 0xF7),
    (0xE3, 0x69, 0x27),
    (0x03, 0xA1, 0x4A),
    (0xD8, 0x61, 0xAA),
    (0x06, 0x99, 0x9A),
    (0xA3, 0x76, 0xE9),
    (0xB8, 0x8A, 0x01),
    (0xE7, 0x5F, 0x66),
    (0x71, 0x95, 0x03),
    (0x0E, 0x94, 0xBA),
    (0xBF, 0x6B, 0xD2),
    (0x76, 0x85, 0xF8),
)


def color(number: int) -> Rgb:
    """Return the color of a number, RGB, 0-255; after twelve they repeat."""
    return _PALETTE[number % len(_PALETTE)]


def css(rgb: Rgb) -> str:
    """Return a color in CSS notation."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


class CategoryColors:
    """Assigns one color to each category name, in whatever task; those with the most masks get the first twelve."""

    def __init__(self, categories: Sequence[Category]) -> None:
        self._numbers: dict[str, int] = {}
        for category in categories:
            self._numbers.setdefault(category.name, len(self._numbers))

    def of(self, name: str) -> Rgb:
        """Return a category's color."""
        return color(self._numbers.get(name, len(self._numbers)))
