"""Which masks of an image are which of the same image at another time: by annotation_id, then by their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import numpy as np

from pipelines.masks import rle
from pipelines.types import Rle

MIN_IOU = 0.5
"""Masks whose ids do not tell are one if their shapes agree at least so well."""


class Paired(Protocol):
    """A mask that can be paired; its id is None where it has none."""

    @property
    def annotation_id(self) -> str | None:
        """Its id."""

    @property
    def segmentation(self) -> Rle:
        """Its shape."""


After = TypeVar("After", bound=Paired)
Before = TypeVar("Before", bound=Paired)


def pair(
    after: Sequence[After], before: Sequence[Before], distance: Callable[[After, Before], int | None]
) -> dict[int, int]:
    """Return the place of the mask that each one was before, by the place of the later one.

    An id that several later masks have (in CVAT a copy has the id of what it was copied from) is that of the one whose
    shape agrees best. Masks without a known id are paired by their shapes, at an IoU of MIN_IOU and more.

    Args:
        after, before: masks of one image, all of one size.
        distance: how far two masks are apart by what they are called: of pairs by shape the nearest come first, then
            those that agree best. None if they cannot be one. Pairs by id are not asked for it.

    Raises:
        ValueError: masks of different sizes, or as for ``rle.to_runs``.
    """
    places = {mask.annotation_id: place for place, mask in enumerate(before) if mask.annotation_id is not None}
    claims: dict[int, list[int]] = {}
    for number, mask in enumerate(after):
        if mask.annotation_id in places:
            claims.setdefault(places[mask.annotation_id], []).append(number)
    found = {}
    for place, numbers in claims.items():
        ious = rle.iou([after[number].segmentation for number in numbers], [before[place].segmentation])[:, 0]
        found[numbers[int(np.argmax(ious))]] = place
    free = [number for number in range(len(after)) if number not in found]
    left = sorted(set(range(len(before))) - set(found.values()))
    taken = set[int]()
    for number, place in _by_shape(after, before, free, left, distance):
        if number not in found and place not in taken:
            found[number] = place
            taken.add(place)
    return found


def _by_shape(
    after: Sequence[After],
    before: Sequence[Before],
    free: Sequence[int],
    left: Sequence[int],
    distance: Callable[[After, Before], int | None],
) -> Iterator[tuple[int, int]]:
    """Yield pairs of which both may be one, the likeliest first."""
    ious = rle.iou([after[number].segmentation for number in free], [before[place].segmentation for place in left])
    ranked = sorted(
        (apart, -ious[row, column], row, column)
        for row, column in zip(*np.nonzero(ious >= MIN_IOU), strict=True)
        if (apart := distance(after[free[row]], before[left[column]])) is not None
    )
    return ((free[row], left[column]) for _, _, row, column in ranked)
