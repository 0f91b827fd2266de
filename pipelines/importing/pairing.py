"""Which masks of an edited image are which of the output: by annotation_id, then by how well their shapes agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipelines.importing.edited import EditedMask
from pipelines.importing.held import HeldMask
from pipelines.masks import rle

MIN_IOU = 0.5
"""Masks whose ids do not tell are one if their shapes agree at least so well."""


def pair(edited: Sequence[EditedMask], held: Sequence[HeldMask]) -> dict[int, int]:
    """Return the place of the held mask that each edited one was, by the place of the edited one.

    An id that several masks have (in CVAT a copy has the id of what it was copied from) is that of the one whose shape
    agrees best. Of masks without a known id those of one name are paired first.
    """
    places = {mask.annotation_id: place for place, mask in enumerate(held)}
    claims: dict[int, list[int]] = {}
    for number, mask in enumerate(edited):
        if mask.annotation_id in places:
            claims.setdefault(places[mask.annotation_id], []).append(number)
    found = {}
    for place, numbers in claims.items():
        ious = rle.iou([edited[number].segmentation for number in numbers], [held[place].segmentation])[:, 0]
        found[numbers[int(np.argmax(ious))]] = place
    free = [number for number in range(len(edited)) if number not in found]
    left = sorted(set(range(len(held))) - set(found.values()))
    taken = set[int]()
    for number, place in _by_shape(edited, held, free, left):
        if number not in found and place not in taken:
            found[number] = place
            taken.add(place)
    return found


def _by_shape(
    edited: Sequence[EditedMask], held: Sequence[HeldMask], free: Sequence[int], left: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of which both may be one, the likeliest first."""
    ious = rle.iou([edited[number].segmentation for number in free], [held[place].segmentation for place in left])
    likely: Iterable[tuple[int, int]] = zip(*np.nonzero(ious >= MIN_IOU), strict=True)
    ranked = sorted(
        (edited[free[row]].name != held[left[column]].prompt.category_name, -ious[row, column], row, column)
        for row, column in likely
    )
    return ((free[row], left[column]) for _, _, row, column in ranked)
