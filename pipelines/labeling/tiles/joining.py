"""Joins what the views of a picture have shown of a prompt, on RLE: tiles at their seams, then tiles and the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipelines.labeling.tiles.views import View
from pipelines.masks.spans import Spans
from pipelines.types import MaskPrediction

# From this intersection over union on, in what two views both show, their masks are of one object.
_SAME_IOU = 0.5
# A mask of which so much lies in another one is a part of it.
_PART_SHARE = 0.7
# Parts that cover so much of a mask are what it is made of: it has taken several objects for one.
_COVERED_SHARE = 0.5
# A mask with a score so much lower than another's does not replace it.
_MUCH_LOWER = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """A mask that one view shows.

    Attributes:
        view: the view.
        mask: as the predictor has found it, in pixels of the view.
        shape: its pixels on the picture.
    """

    view: View
    mask: MaskPrediction
    shape: Spans

    @classmethod
    def of(cls, view: View, mask: MaskPrediction) -> Self:
        """Return a mask that a view shows as a piece."""
        return cls(view=view, mask=mask, shape=view.on_picture(Spans.of(mask.segmentation)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Object:
    """What is found, on the picture; `is_cut` if it ends where a tile does, so that more of it may be there."""

    mask: MaskPrediction
    shape: Spans
    is_cut: bool = False

    def encoded(self) -> MaskPrediction:
        """Return the mask with this shape."""
        left, top, right, bottom = self.shape.box
        box = (float(left), float(top), float(right - left), float(bottom - top))
        return replace(self.mask, segmentation=self.shape.to_rle(), bbox_xywh=box, area=self.shape.area)


def join_instances(pieces: Sequence[Piece], overlap: int) -> list[MaskPrediction]:
    """Return the objects that one prompt has found, each once, at the size of the picture.

    Pieces of tiles whose masks agree where both tiles show the picture are one object: the union of their pixels, with
    the best score. Of an object that the whole shows too, the outline of the tiles is kept if they show all of it,
    and that of the whole if they cut it. What the whole takes for one object and tiles for several are several.

    Args:
        pieces: of tiles and of the whole.
        overlap: pixels that neighboring tiles share: what is no larger some tile has shown whole.
    """
    tiles = [_joined(group) for group in _grouped([piece for piece in pieces if not piece.view.is_whole])]
    seen = [_Object(mask=piece.mask, shape=piece.shape) for piece in pieces if piece.view.is_whole]
    seen.sort(key=lambda one: (-one.mask.score, one.mask.segmentation.counts))
    found = _without_doubles(tiles, seen, overlap) if tiles and seen else [*tiles, *seen]
    return [one.encoded() for one in found]


def choose_one(pieces: Sequence[Piece]) -> list[MaskPrediction]:
    """Return the one object that a region marks: of its tile, unless this cuts it and the whole has found it too."""
    tiles, whole = ([piece for piece in pieces if piece.view.is_whole is is_whole] for is_whole in (False, True))
    chosen = [piece for piece in tiles if not _is_cut([piece], piece.shape)] or whole or tiles
    return [_Object(mask=piece.mask, shape=piece.shape).encoded() for piece in chosen]


def join_map(pieces: Sequence[Piece], *, is_countable: bool) -> list[MaskPrediction]:
    """Return the segments of one category of a map, each cropped to the cores of its tiles, so that none overlap.

    Args:
        pieces: of tiles.
        is_countable: whether its segments are objects, of which those that agree at the seams are one; otherwise all
            are one segment. Scores are means over the areas.
    """
    found = []
    for group in _grouped(pieces) if is_countable else [pieces]:
        cropped = [replace(piece, shape=_in_core(piece)) for piece in group]
        if kept := [piece for piece in cropped if piece.shape.area]:
            joined = _joined(kept)
            mean = float(np.average([one.mask.score for one in kept], weights=[one.shape.area for one in kept]))
            found.append(replace(joined.encoded(), score=mean))
    return found


def _grouped(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Return which pieces are of one object.

    Pairs that agree best are joined first. Two masks of one tile that overlap are rivals: they come into one group
    only if they are apart.
    """
    groups = {number: [piece] for number, piece in enumerate(pieces)}
    group_of = list(range(len(pieces)))
    for _, one, other in sorted(_agreements(pieces)):
        first, second = group_of[one], group_of[other]
        if first != second and not _are_rivals(groups[first], groups[second]):
            groups[first] += groups.pop(second)
            group_of = [first if group == second else group for group in group_of]
    return list(groups.values())


def _are_rivals(group: Sequence[Piece], others: Sequence[Piece]) -> bool:
    return any(one.view is other.view and one.shape.intersection(other.shape) for one in group for other in others)


def _agreements(pieces: Sequence[Piece]) -> Iterator[tuple[float, int, int]]:
    """Yield the pairs of pieces that are of one object where both tiles show it, with minus their IoU there."""
    of_view: dict[View, list[int]] = {}
    for number, piece in enumerate(pieces):
        of_view.setdefault(piece.view, []).append(number)
    views = list(of_view)
    for place, neighbor in _overlapping(np.array([view.box for view in views])):
        left, top, right, bottom = views[place].shared(views[neighbor])
        ones, others = (
            [
                (number, area)
                for number in of_view[view]
                if (area := pieces[number].shape.window((top, left), (bottom - top, right - left)).area)
            ]
            for view in (views[place], views[neighbor])
        )
        for one, area in ones:
            for other, other_area in others:
                both = pieces[one].shape.intersection(pieces[other].shape)
                if both >= _SAME_IOU * (area + other_area - both):
                    yield -both / (area + other_area - both), one, other


def _overlapping(boxes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of boxes, int64 (N, 4), left, top, right, bottom, that overlap, by their places in order."""
    for place, (left, top, right, bottom) in enumerate(boxes.tolist()):
        later = boxes[place + 1 :]
        near = (later[:, 0] < right) & (left < later[:, 2]) & (later[:, 1] < bottom) & (top < later[:, 3])
        for neighbor in np.flatnonzero(near).tolist():
            yield place, place + 1 + neighbor


def _joined(group: Sequence[Piece]) -> _Object:
    """Return pieces as one object: the union, the best score, and the mean over the areas of their mask scores."""
    shape = group[0].shape.union(*(piece.shape for piece in group[1:]))
    best = max((piece.mask for piece in group), key=lambda mask: mask.score)
    inside = best.mask_score
    if inside is not None:
        weights = [piece.shape.area for piece in group]
        inside = float(np.average([piece.mask.mask_score or 0.0 for piece in group], weights=weights))
    return _Object(mask=replace(best, mask_score=inside), shape=shape, is_cut=_is_cut(group, shape))


def _is_cut(group: Sequence[Piece], shape: Spans) -> bool:
    """Return whether a mask ends where its views do, but not the picture, so that more of it may follow."""
    left, top, right, bottom = zip(*(piece.view.box for piece in group), strict=True)
    shown = (min(left), min(top), max(right), max(bottom))
    height, width = shape.size_hw
    return any(at == edge != end for at, edge, end in zip(shape.box, shown, (0, 0, width, height), strict=True))


def _without_doubles(tiles: Sequence[_Object], seen: Sequence[_Object], overlap: int) -> list[_Object]:
    """Return the objects of the tiles and those of the whole, each once.

    Args:
        tiles: what tiles have shown.
        seen: what the whole has shown, best score first.
        overlap: pixels that neighboring tiles share.
    """
    kept, whole = list(tiles), list[_Object]()
    shared = np.zeros((len(tiles), len(seen)), np.int64)
    boxes = np.array([one.shape.box for one in (*tiles, *seen)])
    for row, column in _overlapping(boxes):
        if row < len(tiles) <= column:
            shared[row, column - len(tiles)] = tiles[row].shape.intersection(seen[column - len(tiles)].shape)
    areas, is_cut = np.array([one.shape.area for one in tiles]), np.array([one.is_cut for one in tiles])
    scores = np.array([one.mask.score for one in tiles])
    is_gone = np.zeros(len(tiles), np.bool_)
    for column, one in enumerate(seen):
        both, area, score = shared[:, column], one.shape.area, one.mask.score
        ious = both / (areas + area - both)
        is_same, is_part = ious >= _SAME_IOU, both >= _PART_SHARE * areas
        if is_same.any() and not (is_cut[best := int(ious.argmax())] and score >= _MUCH_LOWER * scores[best]):
            mask = kept[best].mask
            kept[best] = replace(kept[best], mask=replace(mask, score=max(mask.score, score)))
            continue
        left, top, right, bottom = one.shape.box
        is_small = max(right - left, bottom - top) <= overlap
        is_inside = (both >= _PART_SHARE * area) & ~is_cut
        parts = areas[is_part & ~is_cut & (scores >= _MUCH_LOWER * score)].sum()
        if is_inside.any() or (is_small and both.any()) or parts >= _COVERED_SHARE * area:
            continue
        whole.append(one)
        is_gone |= is_cut & (is_part | is_same) & (score >= _MUCH_LOWER * scores)
    return [*(one for one, gone in zip(kept, is_gone, strict=True) if not gone), *whole]


def _in_core(piece: Piece) -> Spans:
    (top, bottom), (left, right) = piece.view.rows.core, piece.view.columns.core
    return piece.shape.window((top, left), (bottom - top, right - left)).placed((top, left), piece.shape.size_hw)
