"""Cuts a large picture into views, each with its prompts: tiles at full resolution, and the whole, shrunk."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from pipelines.labeling.tiles.config import TileConfig
from pipelines.masks import rle
from pipelines.masks.regions import extent
from pipelines.masks.spans import Spans
from pipelines.types import CATEGORY_TASKS, MAP_TASKS, Prompt, Region

# Pixels of the picture that are shrunk at once.
_BAND_PIXELS = 2**21


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One axis of a tile.

    Attributes:
        start, stop: its first pixel, and the one behind its last.
        core: the pixels nearest to it of all tiles: where maps count that give every pixel one label. The cores of
            neighbors adjoin.
    """

    start: int
    stop: int
    core: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class View:
    """What the model is shown of a picture, and asked about it.

    Attributes:
        picture_hw: height and width of the picture, pixels.
        rows, columns: which of its pixels are shown.
        size_hw: height and width at which they are shown; smaller than the picture for the whole of it.
        prompts: regions are in pixels of the view.
    """

    picture_hw: tuple[int, int]
    rows: Part
    columns: Part
    size_hw: tuple[int, int]
    prompts: list[Prompt] = field(default_factory=list)

    def __str__(self) -> str:
        if self.is_whole:
            return "the whole picture, shrunk"
        return f"the tile at x {self.columns.start}, y {self.rows.start}"

    @property
    def is_whole(self) -> bool:
        """Whether it shows all of the picture."""
        return (self.rows.stop - self.rows.start, self.columns.stop - self.columns.start) == self.picture_hw

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of it in the picture, the last two beyond it."""
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop

    @property
    def top_left(self) -> tuple[int, int]:
        """Row and column of its first pixel in the picture."""
        return self.rows.start, self.columns.start

    def pixels(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what it shows, uint8 (h, w, 3), C-contiguous, of the picture's uint8 (H, W, 3)."""
        if self.is_whole:
            return _shrunk(picture, self.size_hw)
        return np.ascontiguousarray(picture[self.rows.start : self.rows.stop, self.columns.start : self.columns.stop])

    def on_picture(self, mask: Spans) -> Spans:
        """Return a mask of the view at the size of the picture."""
        return mask.enlarged(self.picture_hw) if self.is_whole else mask.placed(self.top_left, self.picture_hw)

    def shared(self, other: View) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom, in pixels of the picture, of what two views that overlap both show."""
        (left, top, right, bottom), (x0, y0, x1, y1) = self.box, other.box
        return max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)


def views_of(size_hw: tuple[int, int], prompts: Sequence[Prompt], tiles: TileConfig) -> list[View]:
    """Return how a picture is asked.

    Categories and exemplars are asked in every tile. What is asked of the picture as a whole (a phrase, a question, a
    caption, chat) is asked of the whole, which also has all others but maps (semantic, panoptic): these get every pixel
    from the tile in whose core it lies. A region is asked in the tile that shows it with most room around it, or
    in one of its own, and in the whole.

    Args:
        size_hw: height and width of the picture, pixels; one of them is longer than a tile.
        prompts: those of the picture.
        tiles: size and overlap.

    Returns:
        The views that are asked something, the whole last.
    """
    rows_of, columns_of = (_parts(length, tiles) for length in size_hw)
    grid = [
        View(picture_hw=size_hw, rows=rows, columns=columns, size_hw=_size(rows, columns))
        for rows in rows_of
        for columns in columns_of
    ]
    everywhere = [p for p in prompts if p.region is None and (p.task in CATEGORY_TASKS or p.exemplars)]
    for view in grid:
        view.prompts.extend(everywhere)
    tile_at = {view.top_left: view for view in grid}
    regional = [(prompt, prompt.region) for prompt in prompts if prompt.region is not None]
    for prompt, region in regional:
        left, top, right, bottom = extent(region)
        rows, columns = _around(rows_of, top, bottom, tiles), _around(columns_of, left, right, tiles)
        if rows is not None and columns is not None:
            own = View(picture_hw=size_hw, rows=rows, columns=columns, size_hw=_size(rows, columns))
            home = tile_at.setdefault(own.top_left, own)
            home.prompts.append(replace(prompt, region=_moved(region, home)))
    shrunk = tiles.size / max(size_hw)
    whole = View(
        picture_hw=size_hw,
        rows=Part(start=0, stop=size_hw[0], core=(0, size_hw[0])),
        columns=Part(start=0, stop=size_hw[1], core=(0, size_hw[1])),
        size_hw=(max(1, round(size_hw[0] * shrunk)), max(1, round(size_hw[1] * shrunk))),
        prompts=[p for p in prompts if p.region is None and p.task not in MAP_TASKS],
    )
    whole.prompts.extend(replace(prompt, region=_scaled(region, whole)) for prompt, region in regional)
    return [view for view in (*tile_at.values(), whole) if view.prompts]


def is_tiled(size_hw: tuple[int, int], tiles: TileConfig) -> bool:
    """Return whether a picture of this size is asked in tiles."""
    return max(size_hw) > tiles.size


def _parts(length: int, tiles: TileConfig) -> list[Part]:
    """Return the tiles along one side of a picture, of one size, evenly spread from end to end."""
    size = min(tiles.size, length)
    count = 1 if length == size else -(-(length - tiles.overlap) // (size - tiles.overlap))
    starts = [round(number * (length - size) / max(1, count - 1)) for number in range(count)]
    cuts = [0, *((start + before + size) // 2 for before, start in itertools.pairwise(starts)), length]
    return [
        Part(start=start, stop=start + size, core=(cuts[number], cuts[number + 1]))
        for number, start in enumerate(starts)
    ]


def _size(rows: Part, columns: Part) -> tuple[int, int]:
    return rows.stop - rows.start, columns.stop - columns.start


def _around(parts: Sequence[Part], first: float, last: float, tiles: TileConfig) -> Part | None:
    """Return the tile of an axis that shows a region with room around it, or one of its own; None if it fits in none.

    Args:
        parts: the tiles along the axis.
        first, last: from where to where the region reaches, in pixels of the picture.
        tiles: size and overlap.
    """
    length = parts[-1].stop
    first, last = max(0, first), min(length, last)

    def room(part: Part) -> float:
        # Nothing is cut off at the picture's own edges.
        before = first - part.start if part.start else length
        return min(before, part.stop - last if part.stop < length else length)

    best = max(parts, key=room)
    if room(best) >= tiles.overlap // 2:
        return best
    size = best.stop - best.start
    start = min(max(0, round((first + last - size) / 2)), length - size)
    own = Part(start=start, stop=start + size, core=(start, start + size))
    return own if room(own) >= 0 else None


def _moved(region: Region, view: View) -> Region:
    """Return a region of the picture in pixels of a tile."""
    top, left = view.top_left
    if region.mask is not None:
        return replace(region, mask=Spans.of(region.mask).window(view.top_left, view.size_hw).to_rle())
    x, y, *others = region.coordinates
    if region.kind == "box":
        return replace(region, coordinates=(x - left, y - top, *others))
    moved = [number - (top if place % 2 else left) for place, number in enumerate(region.coordinates)]
    return replace(region, coordinates=tuple(moved))


def _scaled(region: Region, whole: View) -> Region:
    """Return a region of the picture in pixels of the shrunk whole."""
    if region.mask is not None:
        return replace(region, mask=rle.scaled(region.mask, whole.size_hw))
    (height, width), (full_height, full_width) = whole.size_hw, whole.picture_hw
    # Multiplied first: the picture's far edge then comes to that of the view, and not to a hair beyond.
    scaled = [
        number * height / full_height if place % 2 else number * width / full_width
        for place, number in enumerate(region.coordinates)
    ]
    return replace(region, coordinates=tuple(scaled))


def _shrunk(picture: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Shrink a picture, uint8 (H, W, 3), without a second of its size: averaged in bands to about twice `size_hw`."""
    height, width = picture.shape[:2]
    factor = max(1, max(height, width) // (2 * max(size_hw)))
    rows = max(1, _BAND_PIXELS // (width * factor)) * factor
    bands = [np.asarray(PilImage.fromarray(picture[top : top + rows]).reduce(factor)) for top in range(0, height, rows)]
    averaged = PilImage.fromarray(np.concatenate(bands))
    # A last block that is cut off by the edge counts as a part of one.
    box = (0.0, 0.0, width / factor, height / factor)
    return np.asarray(averaged.resize((size_hw[1], size_hw[0]), PilImage.Resampling.BICUBIC, box=box)).copy()
