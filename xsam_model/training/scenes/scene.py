"""Generates scenes: pictures of named objects and surfaces with exact ground truth, each determined by its seed.

Questions about a scene are in `asked`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.scenes.art.assets import PHOTO_STYLE, SPLITS, SceneAssets, ScenePool, Sprite
from xsam_model.training.scenes.art.colors import PAINTS, main_color, paint_shares
from xsam_model.training.scenes.art.vocabulary import lookalikes
from xsam_model.training.scenes.compose import Cutout, DrawnGround, blend_in, cut_out, draw_ground, finish


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig:
    """Settings of scene generation.

    Attributes:
        side_pixels: height and width in pixels.
        min_objects, max_objects: number of objects to place; some may find no room.
        min_length, max_length: longer side of an object, as a share of the picture's side; up to 2 for objects that
            the picture's edge cuts off.
        min_inside: least share of an object that is inside the picture.
        alone_share: share of scenes with one object.
        photo_share: share of objects that are photographic cut-outs, if the assets have any, and not any style.
        min_crop: least side of the part of a background picture that is shown, as a share of its shorter side.
        repeat_share: share of further objects that repeat a category of the scene.
        paint_share: share of objects that are painted in one color; doubled for an object of a repeated category.
        stuff_share: share of scenes with drawn surfaces.
        min_visible: least visible share of an object; a later object that would hide more of it is not placed.
        min_area: least visible area of an object, as a share of the picture.
        unjudged_only: use no photograph of examples/photos as a background.
        effects: whether to add shadows, blur, grain and changes of light.
        core_only: use only the small vocabulary.
    """

    side_pixels: int = 128
    min_objects: int = 1
    max_objects: int = 6
    min_length: float = 0.17
    max_length: float = 0.55
    min_inside: float = 0.6
    alone_share: float = 0.0
    photo_share: float = 0.0
    min_crop: float = 0.45
    repeat_share: float = 0.4
    paint_share: float = 0.2
    stuff_share: float = 0.5
    min_visible: float = 0.45
    min_area: float = 0.003
    unjudged_only: bool = False
    effects: bool = True
    core_only: bool = False

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: if a range is empty or a share is outside [0, 1].
        """
        if not 0 <= self.min_objects <= self.max_objects:
            raise ValueError(f"need 0 <= min_objects <= max_objects, got {self.min_objects} and {self.max_objects}")
        if not 0 < self.min_length <= self.max_length <= 2 or self.side_pixels < 32:
            raise ValueError("need 0 < min_length <= max_length <= 2 and side_pixels of 32 or more")
        shares = ("repeat_share", "paint_share", "stuff_share", "min_visible", "min_area")
        for name in (*shares, "min_inside", "alone_share", "photo_share", "min_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneObject:
    """An object in a scene.

    Attributes:
        name: its category.
        synonyms: other names of the category.
        group: group of the category: "mammal", "land vehicle", ...
        style: art style of the drawing.
        color: one of `art.colors.COLORS`, None if it has no clear color.
        shares: float32 (11,), share of each color in it.
        mask: bool (H, W), its visible pixels. No two objects share a pixel.
        silhouette: bool (H, W), all its pixels in the picture, those hidden by others included.
        z: position from back to front, from 0.
    """

    name: str
    synonyms: tuple[str, ...]
    group: str
    style: str
    color: str | None
    shares: NDArray[np.float32]
    mask: NDArray[np.bool_]
    silhouette: NDArray[np.bool_]
    z: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StuffRegion:
    """A drawn surface in a scene.

    Attributes:
        name: one of `art.vocabulary.STUFF_NAMES`; each occurs at most once in a scene.
        mask: bool (H, W), its visible pixels.
    """

    name: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scene:
    """A picture with its complete ground truth.

    Attributes:
        pixels: uint8 (H, W, 3) RGB.
        objects: objects from back to front.
        stuff: drawn surfaces. Pixels that are neither object nor surface have no name.
        ground: name of the background picture.
        shown_by_ground: names of things in the background picture, which have no mask; scenes neither draw nor ask for
            them.
        seed, split: what the scene was made from.
    """

    pixels: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    stuff: tuple[StuffRegion, ...]
    ground: str
    shown_by_ground: tuple[str, ...]
    seed: int
    split: str


def make_scene(seed: int, assets: SceneAssets, split: str = "train", config: SceneConfig | None = None) -> Scene:
    """Make a scene.

    Args:
        seed: 0 or more. The same seed gives different scenes in different splits.
        assets: pictures and names.
        split: one of `SPLITS`, see `SceneAssets.pool`.
        config: how the scene looks.

    Returns:
        The same scene for the same arguments, with the same versions of NumPy and OpenCV.

    Raises:
        ValueError: if the split is unknown or the assets have nothing for it.
    """
    config = config or SceneConfig()
    pool = assets.pool(split, config.core_only)
    # A generator for each part: settings of one, such as effects, then do not change the others.
    ground_random, object_random, light_random = (
        np.random.default_rng([seed, SPLITS[split], part]) for part in range(3)
    )
    grounds = pool.unjudged if config.unjudged_only else pool.grounds
    ground = draw_ground(grounds, pool.stuff, ground_random, config.side_pixels, config.stuff_share, config.min_crop)
    placed = _place_objects(pool, ground, object_random, config)
    picture = ground.pixels
    for _, _, cutout in placed:
        shadow = None
        if config.effects and light_random.random() < 0.4:
            shadow = (light_random.uniform(0.2, 0.5), light_random.uniform(0.02, 0.06) * math.sqrt(cutout.full_area))
        blend_in(picture, cutout, shadow)
    objects, regions = _truth(placed, ground, assets, config)
    return Scene(
        pixels=finish(picture, light_random) if config.effects else picture,
        objects=objects,
        stuff=regions,
        ground=ground.name,
        shown_by_ground=ground.shows,
        seed=seed,
        split=split,
    )


_Placed = tuple[Sprite, str | None, Cutout]


def _place_objects(
    pool: ScenePool, ground: DrawnGround, random: np.random.Generator, config: SceneConfig
) -> list[_Placed]:
    """Place objects from back to front so that none is hidden too much; those that find no place are left out."""
    side = config.side_pixels
    least = config.min_area * side * side
    count = int(random.integers(config.min_objects, config.max_objects + 1))
    # Nothing is drawn for a setting that is off, so that the scenes of the others stay as they are.
    if config.alone_share and random.random() < config.alone_share:
        count = 1
    # Crowded scenes get smaller objects, so that more of them find a place.
    longest = config.max_length if count < 4 else max(config.min_length, 0.75 * config.max_length)
    owner = np.zeros((side, side), dtype=np.uint8)
    visible = np.zeros(count + 1, dtype=np.int64)
    needed = np.zeros(count + 1)
    placed: list[_Placed] = []
    for sprite, color in _choose_sprites(pool, ground.shows, count, random, config):
        # After five tries the scene has an object less: a crowded one may have no place left.
        for _ in range(5):
            # Even on a logarithmic scale, or small objects would be rare.
            length = side * math.exp(random.uniform(math.log(config.min_length), math.log(longest)))
            place = random.uniform(0.08, 0.92, 2) * side
            cutout = cut_out(sprite, color, random, side, length, (place[0], place[1]), config.min_inside)
            if cutout is None or cutout.solid.sum() < least:
                continue
            part = owner[cutout.window]
            left = visible - np.bincount(part[cutout.solid], minlength=count + 1)
            if (left[1:] < needed[1:]).any():
                continue
            placed.append((sprite, color, cutout))
            part[cutout.solid] = len(placed)
            visible, area = left, int(cutout.solid.sum())
            visible[len(placed)], needed[len(placed)] = area, max(least, config.min_visible * cutout.full_area)
            # An object cut off by the picture's edge cannot need more pixels than it has.
            needed[len(placed)] = min(needed[len(placed)], area)
            break
    return placed


def _choose_sprites(
    pool: ScenePool, shown: tuple[str, ...], count: int, random: np.random.Generator, config: SceneConfig
) -> list[tuple[Sprite, str | None]]:
    """Choose drawings and their colors, without two categories that could be confused with each other."""
    banned = frozenset[str]().union(*(lookalikes(name) for name in shown))
    chosen: list[tuple[Sprite, str | None]] = []
    for _ in range(count):
        present = [sprite.category for sprite, _ in chosen]
        is_photo = bool(pool.photos) and config.photo_share > 0 and random.random() < config.photo_share
        sprites = pool.photos if is_photo else pool.sprites
        names = tuple(sprites)
        if present and random.random() < config.repeat_share:
            name = present[random.integers(len(present))]
        else:
            name = names[random.integers(len(names))]
            if name not in present and name in banned:
                continue
        repeated = [sprite for sprite, _ in chosen if sprite.category == name]
        drawings = repeated if repeated and random.random() < 0.5 else sprites.get(name, pool.sprites[name])
        sprite = drawings[random.integers(len(drawings))]
        painted = random.random() < config.paint_share * (2 if repeated else 1) and sprite.style != PHOTO_STYLE
        colors = tuple(PAINTS)
        chosen.append((sprite, colors[random.integers(len(colors))] if painted else None))
        banned |= lookalikes(name)
    return chosen


def _truth(
    placed: list[_Placed], ground: DrawnGround, assets: SceneAssets, config: SceneConfig
) -> tuple[tuple[SceneObject, ...], tuple[StuffRegion, ...]]:
    """Return every object and surface with its visible pixels."""
    side = config.side_pixels
    owner = np.zeros((side, side), dtype=np.uint8)
    for place, (_, _, cutout) in enumerate(placed):
        owner[cutout.window][cutout.solid] = place + 1
    objects = []
    for place, (sprite, color, cutout) in enumerate(placed):
        silhouette = np.zeros((side, side), dtype=np.bool_)
        silhouette[cutout.window] = cutout.solid
        category = assets.categories[sprite.category]
        shares = sprite.shares if color is None else paint_shares(color)
        objects.append(
            SceneObject(
                name=category.name,
                synonyms=category.synonyms,
                group=category.group,
                style=sprite.style,
                color=main_color(shares),
                shares=shares,
                mask=owner == place + 1,
                silhouette=silhouette,
                z=place,
            )
        )
    free = owner == 0
    masks = [(name, free & (ground.regions == place)) for place, name in enumerate(ground.stuff)]
    return tuple(objects), tuple(StuffRegion(name=name, mask=mask) for name, mask in masks if mask.any())
