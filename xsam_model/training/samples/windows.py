"""Cuts samples to windows around their visual prompts, as inference does, to train the refiner on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.close_ups import CloseUp, close_ups
from xsam_model.prompts.visual import POINT_RADIUS, draw_points
from xsam_model.training.samples.samples import TrainingSample

# How much longer or shorter than at inference a box's window is.
_ZOOM_RANGE = (0.85, 1.3)
# How much a box differs from its object's bounding box at each side, as a share of its length.
_BOX_SLACK = 0.015
# How far inside its object a point is at least, as a share of the deepest place; one of these by lot.
_DEPTHS = (0.25, 0.5, 1.0)
_DEPTH_CELLS = 64
_MIRRORED_SHARE = 0.5
# A region of up to so many radii of a point, which fills so much of its bounding box, is a point: sources draw some
# twice as large as people do.
_MOST_RADII, _LEAST_FILL, _USUAL_SIDE = 4, 0.55, 640
# A window of which the object has a smaller share teaches little, if there are others.
_LEAST_SHARE = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PromptWindow:
    """A window of an image, and the mask of one visual prompt in it.

    Attributes:
        pixels: uint8 (h, w, 3).
        region: bool (h, w), the visual prompt.
        is_box: whether it is a box.
        mask: bool (h, w), the object's pixels in the window.
        ignored: bool (h, w), pixels that the losses ignore; None for none.
        share: share of the object that the window shows, in (0, 1].
    """

    pixels: NDArray[np.uint8]
    region: NDArray[np.bool_]
    is_box: bool
    mask: NDArray[np.bool_]
    ignored: NDArray[np.bool_] | None
    share: float


def prompt_windows(sample: TrainingSample, zoom: float, random: np.random.Generator) -> list[PromptWindow]:
    """Return a window for each visual prompt of a sample that has a mask; of several sizes one by lot.

    Boxes and single points are drawn anew, as people draw them: tight, and well inside the object.

    Args:
        sample: of intseg or vgdseg; one of vgdseg gives windows only to prompts with a single mask.
        zoom: `XSamConfig.interactive_zoom`.
        random: source of all choices.
    """
    found = []
    for number, region in enumerate(sample.visual_prompts):
        places = np.flatnonzero(sample.labels == number)
        if len(places) == 1 and (sample.masks[places[0]] & region).any():
            found.append(_window(sample, region, sample.masks[places[0]], zoom, random))
    return found


def _window(
    sample: TrainingSample,
    region: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    zoom: float,
    random: np.random.Generator,
) -> PromptWindow:
    length, kind = max(1.0, zoom * random.uniform(*_ZOOM_RANGE)), "scribble"
    if close_ups(region, length)[0].is_box:
        region, kind = _box(mask, random), "box"
    elif _is_point(region):
        region, kind = _point(mask, random), "point"
    windows = close_ups(region, length, kind)
    shown = [_part(mask, window) for window in windows]
    large = [place for place, part in enumerate(shown) if part.mean() >= _LEAST_SHARE]
    # Of windows around a prompt that its object covers, the smallest shows the largest share of it.
    chosen = int(random.choice(large)) if large else len(windows) - 1
    window, part = windows[chosen], shown[chosen]
    ignored = None if sample.ignore is None else _part(sample.ignore, window)
    # In a mirror, or not: inference looks both ways.
    way = -1 if random.random() < _MIRRORED_SHARE else 1
    return PromptWindow(
        pixels=window.cut(sample.image)[:, ::way],
        region=window.region[:, ::way],
        is_box=window.is_box,
        mask=part[:, ::way],
        ignored=None if ignored is None else ignored[:, ::way],
        share=float(part.sum() / mask.sum()),
    )


def _is_point(region: NDArray[np.bool_]) -> bool:
    """Return whether a region is a disc of a point's size, as a picture of this size has them."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    sides = (rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    most = _MOST_RADII * POINT_RADIUS * max(1.0, max(region.shape) / _USUAL_SIDE) + 1
    return bool(max(sides) <= most and region.sum() >= _LEAST_FILL * sides[0] * sides[1])


def _box(mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    places = np.argwhere(mask)
    ends = np.array([places.min(axis=0), places.max(axis=0) + 1])
    moved = np.rint(ends + random.normal(0, _BOX_SLACK, (2, 2)) * (ends[1] - ends[0])).astype(int)
    (top, left), (bottom, right) = moved.clip(0, mask.shape)
    drawn = np.zeros_like(mask)
    drawn[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    return drawn if drawn.any() else mask


def _point(mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    step = max(1, max(mask.shape) // _DEPTH_CELLS)
    depths = _depths(mask[::step, ::step])
    if not depths.any():
        step, depths = 1, mask.astype(np.int64)
    deep = np.argwhere(depths >= max(1, random.choice(_DEPTHS) * depths.max()))
    row, column = deep[random.integers(len(deep))] * step
    return draw_points([(float(column), float(row))], (mask.shape[0], mask.shape[1]))


def _depths(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many steps up, down, left or right it takes to leave the mask, 0 outside."""
    depths, inner = np.zeros(mask.shape, dtype=np.int64), np.pad(mask, 1)
    while inner.any():
        depths += inner[1:-1, 1:-1]
        inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return depths


def _part(mask: NDArray[np.bool_], window: CloseUp) -> NDArray[np.bool_]:
    height, width = window.region.shape
    return mask[window.top : window.top + height, window.left : window.left + width]
