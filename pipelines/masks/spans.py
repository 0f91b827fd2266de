"""A mask as what is set of each of its columns: to cut, move, enlarge, intersect and unite masks without dense pixels.

What this takes grows with the runs and columns of what is set, not with the pixels of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.masks import rle
from pipelines.types import Rle


@dataclass(frozen=True, kw_only=True, eq=False)
class Spans:
    """A mask.

    Attributes:
        size_hw: (height, width) of the mask, pixels.
        column, top, bottom: int64 (N,) each: a column, the first row that is set in it, and the row behind the last.
            Ascending, by column and then row; no two overlap.
    """

    size_hw: tuple[int, int]
    column: NDArray[np.int64]
    top: NDArray[np.int64]
    bottom: NDArray[np.int64]

    @classmethod
    def of(cls, mask: Rle) -> Self:
        """Read an RLE.

        Raises:
            RleError: as ``rle.to_runs``.
        """
        ends, height = np.cumsum(rle.to_runs(mask)), mask.size_hw[0]
        start, end = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
        start, end = start[start < end], end[start < end]
        times = (end - 1) // height - start // height + 1
        column = np.repeat(start // height, times) + _counts_up(times)
        top = np.maximum(np.repeat(start, times) - column * height, 0)
        bottom = np.minimum(np.repeat(end, times) - column * height, height)
        return cls(size_hw=mask.size_hw, column=column, top=top, bottom=bottom)

    def to_rle(self) -> Rle:
        """Return the mask as RLE, the same that ``rle.encode`` makes of its pixels."""
        return rle.from_changes(np.stack((self._start, self._end), axis=1).reshape(-1), self.size_hw)

    @cached_property
    def area(self) -> int:
        """Pixels that are set."""
        return int((self.bottom - self.top).sum())

    @cached_property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom around what is set, the last two beyond it; zeros if nothing is."""
        if not len(self.column):
            return 0, 0, 0, 0
        return int(self.column[0]), int(self.top.min()), int(self.column[-1]) + 1, int(self.bottom.max())

    def window(self, top_left: tuple[int, int], size_hw: tuple[int, int]) -> Spans:
        """Return a window of the mask.

        Args:
            top_left: row and column of its first pixel; the window lies inside the mask.
            size_hw: its height and width.
        """
        column = self.column - top_left[1]
        top, bottom = (np.clip(edge - top_left[0], 0, size_hw[0]) for edge in (self.top, self.bottom))
        inside = (column >= 0) & (column < size_hw[1]) & (top < bottom)
        return Spans(size_hw=size_hw, column=column[inside], top=top[inside], bottom=bottom[inside])

    def placed(self, top_left: tuple[int, int], size_hw: tuple[int, int]) -> Spans:
        """Return a larger mask that has this one as its window; all pixels outside are unset.

        Args:
            top_left: row and column of the window's first pixel in the larger mask.
            size_hw: height and width of the larger mask.
        """
        top, left = top_left
        return Spans(size_hw=size_hw, column=self.column + left, top=self.top + top, bottom=self.bottom + top)

    def enlarged(self, size_hw: tuple[int, int]) -> Spans:
        """Return the mask at a larger size, by nearest neighbor at pixel centers.

        Args:
            size_hw: height and width of the result; neither smaller than that of the mask.
        """
        height, width = self.size_hw
        first, behind = (_first_beyond(edge, width, size_hw[1]) for edge in (self.column, self.column + 1))
        times = behind - first
        top, bottom = (np.repeat(_first_beyond(edge, height, size_hw[0]), times) for edge in (self.top, self.bottom))
        column = np.repeat(first, times) + _counts_up(times)
        order = np.argsort(column * size_hw[0] + top)
        return Spans(size_hw=size_hw, column=column[order], top=top[order], bottom=bottom[order])

    def intersection(self, other: Spans) -> int:
        """Count the pixels that are set in this mask and in another one of the same size."""
        left, top, right, bottom = self.box
        other_left, other_top, other_right, other_bottom = other.box
        if right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top:
            return 0
        return int((self._set_before(other._end) - self._set_before(other._start)).sum())

    def union(self, *others: Spans) -> Spans:
        """Return what is set in this mask or in any of some others of the same size."""
        if not others:
            return self
        start = np.concatenate([mask._start for mask in (self, *others)])
        order = np.argsort(start)
        start, height = start[order], self.size_hw[0]
        end = np.maximum.accumulate(np.concatenate([mask._end for mask in (self, *others)])[order])
        column = start // height
        is_first = np.ones(len(start), np.bool_)
        is_first[1:] = (start[1:] > end[:-1]) | (column[1:] > column[:-1])
        is_last = np.ones(len(start), np.bool_)
        is_last[:-1] = is_first[1:]
        column = column[is_first]
        top, bottom = start[is_first] - column * height, end[is_last] - column * height
        return Spans(size_hw=self.size_hw, column=column, top=top, bottom=bottom)

    @cached_property
    def _start(self) -> NDArray[np.int64]:
        return self.column * self.size_hw[0] + self.top

    @cached_property
    def _end(self) -> NDArray[np.int64]:
        return self.column * self.size_hw[0] + self.bottom

    @cached_property
    def _set_until(self) -> NDArray[np.int64]:
        return np.concatenate(([0], np.cumsum(self.bottom - self.top)))

    def _set_before(self, place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count the pixels that are set before some places, in the order of RLE."""
        number = np.searchsorted(self._start, place)  # spans that begin before it; of these the last may end behind it
        beyond = self._end[np.maximum(number - 1, 0)] - place
        return self._set_until[number] - np.where(number > 0, np.maximum(beyond, 0), 0)


def _first_beyond(edge: NDArray[np.int64], side: int, larger: int) -> NDArray[np.int64]:
    """Return the first pixel of a larger side whose center lies at or beyond an edge of the smaller side."""
    return -((side - 2 * edge * larger) // (2 * side))


def _counts_up(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, ... for each of some numbers, one after the other: 0 1 2 0 1 for 3 and 2."""
    return np.arange(int(times.sum())) - np.repeat(np.cumsum(times) - times, times)
