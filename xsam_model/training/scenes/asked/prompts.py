"""Draws visual prompts for an object as an annotator would: a point, a scribble, a box or a rough mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.visual import POINT_RADIUS, SCRIBBLE_RADIUS, draw_box, draw_points, draw_scribble
from xsam_model.training.scenes.art.textures import opencv

PROMPT_KINDS = ("point", "scribble", "box", "mask")
# The radii of `prompts.visual` are meant for photographs of about this side; scenes are smaller.
_USUAL_SIDE = 640
# Smaller parts of an object get no point of their own, as in the reference implementation's training data.
_LEAST_PIXELS = 5
Mask = NDArray[np.bool_]


def draw_prompt(kind: str, mask: Mask, random: np.random.Generator) -> Mask:
    """Draw a visual prompt for an object.

    Points lie on the object, one for each of its connected parts. A scribble is a wavy diagonal of a box within the
    object's bounding box, and mostly on the object. A box is up to a tenth smaller or larger than the bounding box. A
    mask is that of the object, smoothed.

    Args:
        kind: one of `PROMPT_KINDS`.
        mask: bool (H, W), visible pixels of the object; at least one.
        random: source of all choices.

    Returns:
        bool (H, W), never empty.

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind not in PROMPT_KINDS:
        raise ValueError(f"unknown kind of visual prompt {kind!r}; known: {', '.join(PROMPT_KINDS)}")
    drawn = {"point": _points, "scribble": _scribble, "box": _box, "mask": _smoothed}
    return drawn[kind](mask, random)


def _radius(usual: float, mask: Mask, random: np.random.Generator) -> float:
    """Scale a radius to the picture, times 1 to 2: photographs vary in size, but prompts on them have one radius."""
    return max(1.0, usual * max(mask.shape) / _USUAL_SIDE * random.uniform(1, 2))


def _points(mask: Mask, random: np.random.Generator) -> Mask:
    _, parts, statistics, _ = opencv().connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = [part for part in range(1, len(statistics)) if statistics[part, 4] > _LEAST_PIXELS]
    points = []
    for pixels in [parts == part for part in large] or [mask]:
        rows, columns = np.nonzero(pixels)
        choice = random.integers(len(rows))
        points.append((float(columns[choice]), float(rows[choice])))
    return draw_points(points, mask.shape[:2], _radius(POINT_RADIUS, mask, random))


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """Return the COCO box of a non-empty mask: x, y, width, height."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def _scribble(mask: Mask, random: np.random.Generator) -> Mask:
    """Draw scribbles until one is mostly on the object; fall back to a point."""
    x, y, width, height = bounding_box(mask)
    side = max(mask.shape)
    radius = max(1.0, 0.6 * _radius(SCRIBBLE_RADIUS, mask, random))
    for _ in range(8):
        wide, high = width * random.uniform(0.5, 1), height * random.uniform(0.5, 1)
        left, top = x + (width - wide) * random.random(), y + (height - high) * random.random()
        along = np.linspace(0, 1, 12)
        rows = top + high * (along if random.random() < 0.5 else 1 - along)
        amplitude = min(random.uniform(10, 20) / _USUAL_SIDE * side, height / 4)
        rows = rows + amplitude * np.sin(2 * np.pi * (along * random.uniform(0.2, 1) + random.random()))
        rows = np.clip(rows, y, y + height - 1)
        columns = np.clip(left + wide * along, x, x + width - 1)
        vertices = [(float(column), float(row)) for column, row in zip(columns, rows, strict=True)]
        stroke = draw_scribble(vertices, mask.shape[:2], radius)
        if (stroke & mask).sum() >= 0.6 * stroke.sum():
            return stroke
    return _points(mask, random)


def _box(mask: Mask, random: np.random.Generator) -> Mask:
    x, y, width, height = bounding_box(mask)
    scale = random.uniform(0.9, 1.1)
    left, top = x + width * (1 - scale) / 2, y + height * (1 - scale) / 2
    return draw_box((left, top, width * scale, height * scale), mask.shape[:2])


def _smoothed(mask: Mask, _random: np.random.Generator) -> Mask:
    sigma = max(0.6, 2 * max(mask.shape) / _USUAL_SIDE)
    soft = opencv().GaussianBlur(mask.astype(np.float32), (0, 0), sigma)
    smoothed = np.asarray(soft > soft.mean())
    # Of an object that fills the picture nothing is above the mean.
    return smoothed if smoothed.any() else mask
