"""Draws the prompts by which an outlined object is asked for, without a choice of taste: its box, and points in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.visual import draw_box, draw_points
from xsam_model.training.scenes.art.textures import opencv
from xsam_model.training.scenes.asked.prompts import bounding_box

_INNER = 0.25
Mask = NDArray[np.bool_]


def box_prompt(mask: Mask) -> Mask:
    """Return an object's bounding box, filled."""
    return draw_box(bounding_box(mask), mask.shape[:2])


def pole_prompt(mask: Mask) -> Mask:
    """Return a point prompt at the pole of inaccessibility: the pixel farthest from the outline and the borders."""
    distances = _distances(mask)
    row, column = np.unravel_index(distances.argmax(), distances.shape)
    return draw_points([(float(column), float(row))], mask.shape[:2])


def inner_prompt(mask: Mask, random: np.random.Generator) -> Mask:
    """Return a point prompt at a random pixel that lies at least a quarter as deep in the object as its pole does."""
    distances = _distances(mask)
    rows, columns = np.nonzero(distances >= _INNER * distances.max())
    choice = random.integers(len(rows))
    return draw_points([(float(columns[choice]), float(rows[choice]))], mask.shape[:2])


def _distances(mask: Mask) -> NDArray[np.float32]:
    cv2 = opencv()
    padded = np.pad(mask.astype(np.uint8), 1)
    return np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1])
