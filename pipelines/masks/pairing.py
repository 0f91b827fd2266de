"""Which masks of an image are which of the same image at another time: by annotation_id, then by their shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

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


class Match(NamedTuple):
    """What a mask was before: the place of that mask, and the IoU of the two, in [0, 1]."""

    place: int
    iou: float


def pair(
    after: Sequence[After], before: Sequence[Before], distance: Callable[[After, Before], int | None]
) -> dict[int, Match]:
    """Return what each mask was before, by the place of the later one.

    An id that several later masks have (in CVAT a copy has the id of what it was copied from) is that of the one whose
    shape agrees best. Masks without a known id are paired by their shapes, at an IoU of MIN_IOU and more.

    Args:
        after, before: masks of one image, all of one size.
        distance: how far two masks are apart by what they are called, from 0: of pairs by shape the nearest come first,
            then those that agree best. None if they cannot be one. Pairs by id are not asked for it.

    Raises:
        ValueError: masks of different sizes, or as for ``rle.to_runs``.
    """
    found = _by_id(after, before)
    free = [number for number in range(len(after)) if number not in found]
    left = sorted(set(range(len(before))) - {match.place for match in found.values()})
    found |= _alike(after, before, free, left, distance)
    taken = {match.place for match in found.values()}
    free, left = [number for number in free if number not in found], [place for place in left if place not in taken]
    for number, match in _by_shape(after, before, free, left, distance):
        if number not in found and match.place not in taken:
            found[number] = match
            taken.add(match.place)
    return found


def _by_id(after: Sequence[Paired], before: Sequence[Paired]) -> dict[int, Match]:
    places = {mask.annotation_id: place for place, mask in enumerate(before) if mask.annotation_id is not None}
    claims: dict[int, list[int]] = {}
    for number, mask in enumerate(after):
        if mask.annotation_id in places:
            claims.setdefault(places[mask.annotation_id], []).append(number)
    found = {}
    for place, numbers in claims.items():
        ious = rle.iou([after[number].segmentation for number in numbers], [before[place].segmentation])[:, 0]
        best = int(np.argmax(ious))
        found[numbers[best]] = Match(place, float(ious[best]))
    return found


def _alike(
    after: Sequence[After],
    before: Sequence[Before],
    free: Sequence[int],
    left: Sequence[int],
    distance: Callable[[After, Before], int | None],
) -> dict[int, Match]:
    """Pair masks of one shape and name, as most are where a model is asked again: no shape need be decoded."""
    shapes: dict[Rle, list[int]] = {}
    for place in left:
        shapes.setdefault(before[place].segmentation, []).append(place)
    found = {}
    for number in free:
        places = shapes.get(after[number].segmentation, [])
        same = next((one for one in places if distance(after[number], before[one]) == 0), None)
        if same is not None:
            places.remove(same)
            found[number] = Match(same, 1.0)
    return found


def _by_shape(
    after: Sequence[After],
    before: Sequence[Before],
    free: Sequence[int],
    left: Sequence[int],
    distance: Callable[[After, Before], int | None],
) -> Iterator[tuple[int, Match]]:
    """Yield pairs of which both may be one, the likeliest first."""
    if not free or not left:
        return
    ious = rle.iou([after[number].segmentation for number in free], [before[place].segmentation for place in left])
    ranked = sorted(
        (apart, -float(ious[row, column]), row, column)
        for row, column in zip(*np.nonzero(ious >= MIN_IOU), strict=True)
        if (apart := distance(after[free[row]], before[left[column]])) is not None
    )
    yield from ((free[row], Match(left[column], -negated)) for _, negated, row, column in ranked)
