"""Cuts samples to windows around their visual prompts, as inference does, to train the refiner on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.close_ups import CloseUp, close_ups
from xsam_model.training.samples.samples import TrainingSample

# How much longer or shorter than at inference a box's window is.
_ZOOM_RANGE = (0.85, 1.3)
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
    length = max(1.0, zoom * random.uniform(*_ZOOM_RANGE))
    windows = close_ups(region, length)
    if not windows[0].is_box:
        # Points of training data have a radius of their own: what is as small as a point is drawn as one.
        windows = close_ups(region, length, "point")
    shown = [_part(mask, window) for window in windows]
    large = [place for place, part in enumerate(shown) if part.mean() >= _LEAST_SHARE]
    # Of windows around a prompt that its object covers, the smallest shows the largest share of it.
    chosen = int(random.choice(large)) if large else len(windows) - 1
    window, part = windows[chosen], shown[chosen]
    return PromptWindow(
        pixels=window.cut(sample.image),
        region=window.region,
        is_box=window.is_box,
        mask=part,
        ignored=None if sample.ignore is None else _part(sample.ignore, window),
        share=float(part.sum() / mask.sum()),
    )


def _part(mask: NDArray[np.bool_], window: CloseUp) -> NDArray[np.bool_]:
    height, width = window.region.shape
    return mask[window.top : window.top + height, window.left : window.left + width]
