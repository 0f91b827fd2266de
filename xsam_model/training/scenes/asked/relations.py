"""Referring phrases that are true of exactly one object: by color, position, size, neighbors and occlusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.scenes.art.colors import lacks_color
from xsam_model.training.scenes.art.textures import opencv
from xsam_model.training.scenes.art.vocabulary import group_of, in_group
from xsam_model.training.scenes.scene import Scene, SceneObject

# Shares of the picture's side. At gaps between NEAR and APART nothing is said, because people would disagree.
SIDE_MARGIN = 0.12
NEAR, APART = 0.04, 0.14
# An object counts as larger from this ratio of areas on.
SIZE_RATIO = 1.5
# An object counts as behind another that hides at least this share of the smaller silhouette of the two.
OVERLAP_SHARE = 0.04
# Groups whose name is a noun that nothing outside the group is called by.
GROUP_NOUNS = ("animal", "bird", "vehicle", "boat", "aircraft", "ball", "musical instrument")


@dataclass(frozen=True, slots=True)
class ReferringPhrase:
    """A phrase that refers to one object.

    Attributes:
        text: "the red car", "the dog on the left", ...
        target: position of the object in the scene.
        kind: "name", "color", "side", "size", "near", "behind", "in front" or "group".
    """

    text: str
    target: int
    kind: str


class SceneLayout:
    """Spatial layout of the objects of a scene, measured on their visible masks.

    Attributes:
        areas: int64 (N,), numbers of visible pixels.
        centers: float64 (N, 2), row and column of the centroids, as shares of the side.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.objects = scene.objects
        self.side = scene.pixels.shape[0]
        self.areas = np.array([thing.mask.sum() for thing in self.objects], dtype=np.int64)
        self.centers = np.array([_center(thing.mask) for thing in self.objects]).reshape(-1, 2) / self.side
        self._distances: dict[int, NDArray[np.float32]] = {}

    def gap(self, first: int, second: int) -> float:
        """Return the smallest distance between visible pixels of two objects, as a share of the side."""
        if first not in self._distances:
            apart = (~self.objects[first].mask).astype(np.uint8)
            cv2 = opencv()
            # Kept: one map answers for all others. The approximation by a 5 x 5 mask is closer than NEAR is to APART.
            self._distances[first] = cv2.distanceTransform(apart, cv2.DIST_L2, 5)
        return float(self._distances[first][self.objects[second].mask].min()) / self.side

    def is_behind(self, first: int, second: int) -> bool:
        """Return whether the second object clearly hides a part of the first."""
        a, b = self.objects[first], self.objects[second]
        if a.z > b.z:
            return False
        hidden = (a.silhouette & b.mask).sum()
        return bool(hidden >= OVERLAP_SHARE * min(a.silhouette.sum(), b.silhouette.sum()))

    def touches(self, first: int, second: int) -> bool:
        """Return whether the silhouettes of two objects share a pixel."""
        return bool((self.objects[first].silhouette & self.objects[second].silhouette).any())


def _center(mask: NDArray[np.bool_]) -> tuple[float, float]:
    rows, columns = np.nonzero(mask)
    # Pixel 0 reaches from 0 to 1, so its center is at one half.
    return float(rows.mean()) + 0.5, float(columns.mean()) + 0.5


def referring_phrases(layout: SceneLayout, names: Sequence[str]) -> list[ReferringPhrase]:
    """Return every phrase that is true of one object and of no other.

    Args:
        layout: layout of the scene.
        names: name to use for each object; the same for all of one category.
    """
    phrases: list[ReferringPhrase] = []
    for category in dict.fromkeys(thing.name for thing in layout.objects):
        members = [place for place, thing in enumerate(layout.objects) if thing.name == category]
        name = names[members[0]]
        if len(members) == 1:
            phrases.append(ReferringPhrase(f"the {name}", members[0], "name"))
        phrases += _by_color(layout.objects, members, name)
        phrases += _by_side(layout, members, name)
        phrases += _by_size(layout, members, name, "size")
        phrases += _by_neighbor(layout, members, names)
    phrases += _by_group(layout)
    return phrases


def has_color_alone(objects: Sequence[SceneObject], members: Sequence[int], target: int) -> bool:
    """Return whether one of several objects has a clear color that all others lack."""
    color = objects[target].color
    others = [objects[place].shares for place in members if place != target]
    return color is not None and all(lacks_color(shares, color) for shares in others)


def _by_color(objects: Sequence[SceneObject], members: Sequence[int], name: str) -> Iterator[ReferringPhrase]:
    for place in members:
        if has_color_alone(objects, members, place):
            yield ReferringPhrase(f"the {objects[place].color} {name}", place, "color")


def _by_side(layout: SceneLayout, members: Sequence[int], name: str) -> Iterator[ReferringPhrase]:
    """Yield phrases for the outermost of several objects, or for a single one if it is in the outer third."""
    for axis, sides in ((1, ("on the left", "on the right")), (0, ("at the top", "at the bottom"))):
        places = layout.centers[list(members), axis]
        order = np.argsort(places)
        for side, sign, words in ((0, 1, sides[0]), (-1, -1, sides[1])):
            first = float(places[order[side]])
            if len(members) > 1:
                is_true = sign * (float(places[order[side + sign]]) - first) >= SIDE_MARGIN
            else:
                is_true = first < 1 / 3 if sign > 0 else first > 2 / 3
            if is_true:
                yield ReferringPhrase(f"the {name} {words}", members[order[side]], "side")


def _by_size(layout: SceneLayout, members: Sequence[int], name: str, kind: str) -> Iterator[ReferringPhrase]:
    if len(members) < 2:
        return
    areas = layout.areas[list(members)]
    order = np.argsort(areas)
    if areas[order[-1]] >= SIZE_RATIO * areas[order[-2]]:
        yield ReferringPhrase(f"the largest {name}", members[order[-1]], kind)
    if areas[order[1]] >= SIZE_RATIO * areas[order[0]]:
        yield ReferringPhrase(f"the smallest {name}", members[order[0]], kind)


def _by_neighbor(layout: SceneLayout, members: Sequence[int], names: Sequence[str]) -> Iterator[ReferringPhrase]:
    """Yield phrases for one object of a category next to, behind or in front of the only one of another category."""
    categories = [thing.name for thing in layout.objects]
    name = names[members[0]]
    for anchor, category in enumerate(categories):
        if anchor in members or categories.count(category) > 1:
            continue
        gaps = [layout.gap(anchor, place) for place in members]
        near = [place for place, gap in zip(members, gaps, strict=True) if gap <= NEAR]
        if len(near) == 1 and sum(gap < APART for gap in gaps) == 1:
            yield ReferringPhrase(f"the {name} next to the {names[anchor]}", near[0], "near")
        for words, kind, holds in (
            ("behind", "behind", [layout.is_behind(place, anchor) for place in members]),
            ("in front of", "in front", [layout.is_behind(anchor, place) for place in members]),
        ):
            # No other member may touch the anchor at all, or which one is behind it would be in doubt.
            touching = [place for place in members if layout.touches(place, anchor)]
            if sum(holds) == 1 and touching == [members[holds.index(True)]]:
                yield ReferringPhrase(f"the {name} {words} the {names[anchor]}", touching[0], kind)


def _by_group(layout: SceneLayout) -> Iterator[ReferringPhrase]:
    """Yield phrases such as "the animal", "the largest vehicle" and "the smallest object"."""
    shown = layout.scene.shown_by_ground
    for noun in GROUP_NOUNS:
        # The background photograph may show another one.
        if any(in_group(group_of(name), noun) for name in shown):
            continue
        members = [place for place, thing in enumerate(layout.objects) if in_group(thing.group, noun)]
        if len(members) == 1:
            yield ReferringPhrase(f"the {noun}", members[0], "group")
        yield from _by_size(layout, members, noun, "group")
    if not shown:
        yield from _by_size(layout, range(len(layout.objects)), "object", "group")
