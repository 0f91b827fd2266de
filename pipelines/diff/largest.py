"""Keep the largest changes of each kind, at most one of an image and kind: what a page shows of millions."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.diff.changes import Difference, MaskChange
from pipelines.diff.sides import SideImage
from pipelines.diff.tally import UNCHANGED

SHOWN = tuple(one for one in Difference if one not in UNCHANGED)
"""The kinds of changes that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LargeChange:
    """A change, with the image that it is in, as the side after has it.

    Attributes:
        image: the image.
        change: what has changed.
        share: of the image's pixels that are in another mask, or in one of another name.
    """

    image: SideImage
    change: MaskChange
    share: float


class Largest:
    """The largest changes of each kind.

    Args:
        number: how many are kept of each.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._heaps: dict[Difference, list[tuple[float, int, LargeChange]]] = {one: [] for one in SHOWN}
        # Of two that are equal the earlier one is kept: the same rows give the same page.
        self._places = itertools.count(0, -1)

    def add(self, image: SideImage, changes: Iterable[MaskChange]) -> None:
        """Look at what has changed in an image."""
        if image.size_hw is None or not self._number:
            return
        best: dict[Difference, LargeChange] = {}
        for change in changes:
            if change.difference in self._heaps:
                share = change.changed_pixels() / (image.size_hw[0] * image.size_hw[1])
                if change.difference not in best or share > best[change.difference].share:
                    best[change.difference] = LargeChange(image=image, change=change, share=share)
        for difference, large in best.items():
            heap = self._heaps[difference]
            heapq.heappush(heap, (large.share, next(self._places), large))
            if len(heap) > self._number:
                heapq.heappop(heap)

    def found(self) -> dict[Difference, tuple[LargeChange, ...]]:
        """Return the changes that are kept, the largest first; without kinds of which there are none."""
        ranked = {one: sorted(heap, reverse=True) for one, heap in self._heaps.items() if heap}
        return {one: tuple(large for _, _, large in heap) for one, heap in ranked.items()}
