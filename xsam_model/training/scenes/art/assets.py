"""Loads the pictures that scenes are composed of, and decides which of them each split may use.

`python -m xsam_model.training.scenes.art.prepare --output DIR` fetches and prepares them; `docs/scenes.md` lists their
origins and licenses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.scenes.art.colors import color_shares
from xsam_model.training.scenes.art.shapes import SHAPE_NAMES, SHAPE_STYLES, draw_grounds, draw_shape
from xsam_model.training.scenes.art.textures import opencv
from xsam_model.training.scenes.art.vocabulary import STUFF_NAMES, Category, curated_categories, is_core, is_held_out
from xsam_model.training.upright import upright

# The numbers are part of every seed, so that no two splits share a scene.
SPLITS = {"train": 0, "test": 1, "unseen_categories": 2, "unseen_style": 3}
HELD_OUT_STYLES = ("noto", "outline")
PARTS = ("train", "test")
# Prefix of the parts with photographic cut-outs, which are loaded only if they are named.
CUTOUTS, PHOTO_STYLE = "cutouts-", "photo"
DEFAULT_FOLDER = Path.home() / ".cache" / "xsam-label" / "scenes"
# Photographs of examples/photos, by which models are judged, and others that show the same.
SHOWN_IN_EXAMPLES = frozenset(
    f"{name}_by_{author}"
    for author, names in {
        "Aitzol_Berasategi": ("aitzgorri", "friends", "life", "picosdeeuropa"),
        "freespace": ("Picture_0B", "Picture_1A"),
        "Jakkub_Mede": ("Wine",),
        "Clements_Engelhardt": ("seeding",),
    }.items()
    for name in names
) | {"astronaut", "camera", "chelsea", "china", "coffee", "rocket"}
# Drawings are kept at several sizes: scaling a large one far down in one step would make small objects jagged.
_LEAST_LEVEL = 32
_GROUND_SIDE = 512
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sprite:
    """A drawing of one object on a transparent background.

    Attributes:
        category: what it shows.
        style: its art style: "fluent-3d", "noto", ...
        levels: the drawing at its full side, half of it, and so on down to 32 pixels, uint8 (side, side, 4), RGB
            multiplied by alpha.
        shares: float32 (11,), share of each color in it, see `color_shares`.
    """

    category: str
    style: str
    levels: tuple[NDArray[np.uint8], ...]
    shares: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ground:
    """A background picture.

    Attributes:
        name: name of its file.
        pixels: uint8 (H, W, 3) RGB.
        shows: categories and stuff that it shows itself; scenes on it neither draw nor ask for them.
    """

    name: str
    pixels: NDArray[np.uint8]
    shows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScenePool:
    """The material of the scenes of one split.

    Attributes:
        sprites: the drawings of each category that is drawn, photographic cut-outs included.
        photos: the photographic cut-outs alone, of each category that has any.
        grounds: background pictures.
        unjudged: those of them that are not among the examples by which models are judged.
        stuff: names of drawn surfaces.
        asked: names of objects that may be asked for: those drawn; in "unseen_categories" all others too, as
            distractors.
        asked_stuff: the same for surfaces.
    """

    sprites: dict[str, tuple[Sprite, ...]]
    photos: dict[str, tuple[Sprite, ...]]
    grounds: tuple[Ground, ...]
    unjudged: tuple[Ground, ...]
    stuff: tuple[str, ...]
    asked: tuple[str, ...]
    asked_stuff: tuple[str, ...]


class SceneAssets:
    """All drawings, background pictures and names.

    Args:
        categories: every category with its synonyms.
        sprites: drawings of these categories.
        grounds: background pictures.
        folder, parts, backgrounds: what they were loaded from, if anything; pickled assets consist of this alone and
            load again.
    """

    def __init__(
        self,
        categories: Iterable[Category],
        sprites: Sequence[Sprite],
        grounds: Sequence[Ground],
        folder: Path | None = None,
        parts: Sequence[str] = PARTS,
        backgrounds: Path | None = None,
    ) -> None:
        self.categories = {category.name: category for category in categories}
        self.sprites, self.grounds = tuple(sprites), tuple(grounds)
        self._source = None if folder is None else (str(folder), tuple(parts), backgrounds and str(backgrounds))
        self._pools: dict[tuple[str, bool], ScenePool] = {}

    def __reduce__(self) -> Any:
        """Pickle only the folder's name if there is one, so that every process loads the pictures once."""
        if self._source is not None:
            return _load, self._source
        return SceneAssets, (tuple(self.categories.values()), self.sprites, self.grounds)

    @classmethod
    def load(
        cls, folder: str | Path = DEFAULT_FOLDER, parts: Sequence[str] = PARTS, backgrounds: str | Path | None = None
    ) -> SceneAssets:
        """Load prepared assets, once in each process.

        Args:
            folder: folder that `art.prepare` wrote.
            parts: "train" contains everything that training may see, "test" the rest; "cutouts-train" and
                "cutouts-test" are the same of photographic cut-outs.
            backgrounds: folder of more photographs to lay objects on, of which nobody says what they show.

        Raises:
            FileNotFoundError: if they are missing.
        """
        return _load(str(folder), tuple(parts), None if backgrounds is None else str(backgrounds))

    @classmethod
    def builtin(cls) -> SceneAssets:
        """Return a few shapes on gradients, drawn once in each process, without any download: for tests."""
        return _draw_builtin()

    def pool(self, split: str, core_only: bool = False) -> ScenePool:
        """Return the material of a split.

        Args:
            split: one of `SPLITS`. "train": categories, styles, surfaces and grounds that are not held out. "test": the
                same on held-out grounds. "unseen_categories": held-out categories and surfaces on held-out grounds.
                "unseen_style": trained categories in held-out styles on held-out grounds.
            core_only: use only the small vocabulary.

        Raises:
            ValueError: if the split is unknown, or the assets have nothing for it.
        """
        if (split, core_only) not in self._pools:
            self._pools[split, core_only] = self._make_pool(split, core_only)
        return self._pools[split, core_only]

    def _make_pool(self, split: str, core_only: bool) -> ScenePool:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        unseen, new_style = split == "unseen_categories", split == "unseen_style"
        listed = [name for name in self.categories if not core_only or is_core(name)]
        sprites: dict[str, tuple[Sprite, ...]] = {name: () for name in listed if is_held_out(name) == unseen}
        for sprite in self.sprites:
            if sprite.category in sprites and (sprite.style in HELD_OUT_STYLES) == new_style:
                sprites[sprite.category] += (sprite,)
        sprites = {name: drawings for name, drawings in sprites.items() if drawings}
        grounds = tuple(ground for ground in self.grounds if is_held_out(ground.name) == (split != "train"))
        if not sprites or not grounds:
            raise ValueError(
                f"the assets hold {len(sprites)} categories and {len(grounds)} grounds for the split {split}: both are "
                'needed; test splits need the part "test"'
            )
        photos = {
            name: tuple(one for one in drawings if one.style == PHOTO_STYLE) for name, drawings in sprites.items()
        }
        return ScenePool(
            sprites=sprites,
            photos={name: photos for name, photos in photos.items() if photos},
            grounds=grounds,
            unjudged=tuple(ground for ground in grounds if ground.name not in SHOWN_IN_EXAMPLES),
            stuff=tuple(name for name in STUFF_NAMES if is_held_out(name) == unseen),
            asked=tuple(listed if unseen else sprites),
            asked_stuff=tuple(name for name in STUFF_NAMES if unseen or not is_held_out(name)),
        )


@lru_cache(maxsize=2)
def _load(place: str, parts: tuple[str, ...], backgrounds: str | None = None) -> SceneAssets:
    folder = Path(place)
    if missing := [part for part in parts if not (folder / f"{part}.npz").is_file()]:
        raise FileNotFoundError(
            f"{folder} holds no scene assets {missing}: run python -m xsam_model.training.scenes.art.prepare "
            f"--output {folder}"
        )
    # Only drawings may lack a prefix, and those of the vocabulary come first.
    prefixes = dict.fromkeys(["", *(CUTOUTS for part in parts if part.startswith(CUTOUTS))])
    names = [one for prefix in prefixes for one in json.loads((folder / f"{prefix}categories.json").read_text())]
    categories = [Category(**{**fields, "synonyms": tuple(fields["synonyms"])}) for fields in names]
    sprites: list[Sprite] = []
    grounds: list[Ground] = []
    for part in parts:
        with np.load(folder / f"{part}.npz") as arrays:
            index = json.loads(str(arrays["index"]))
            sprites += [
                make_sprite(category, style, pixels)
                for (category, style), pixels in zip(index["sprites"], arrays["sprites"], strict=True)
            ]
            grounds += [
                Ground(name=name, pixels=arrays[f"ground_{place}"], shows=tuple(shows))
                for place, (name, shows) in enumerate(index["grounds"])
            ]
    more = None if backgrounds is None else Path(backgrounds).expanduser()
    if more is not None:
        found = [path for path in sorted(more.rglob("*")) if path.suffix.lower() in _ENDINGS]
        if not found:
            raise FileNotFoundError(f"{more} holds no photographs to lay objects on")
        grounds += [read_ground(path, path.relative_to(more).as_posix(), ()) for path in found]
    return SceneAssets(categories, sprites, grounds, folder, parts, more)


def read_ground(path: Path, name: str, shows: tuple[str, ...]) -> Ground:
    """Read a photograph that shows things of these names, scaled down to at most 512 pixels."""
    picture = upright(Image.open(path)).convert("RGB")
    picture.thumbnail((_GROUND_SIDE, _GROUND_SIDE), Image.Resampling.LANCZOS)
    return Ground(name=name, pixels=np.asarray(picture), shows=shows)


def make_sprite(category: str, style: str, pixels: NDArray[np.uint8]) -> Sprite:
    """Make a sprite from its drawing at full size, uint8 (side, side, 4), RGB multiplied by alpha."""
    cv2 = opencv()
    levels, side = [pixels], len(pixels) // 2
    while side >= _LEAST_LEVEL:
        levels.append(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA))
        side //= 2
    return Sprite(category=category, style=style, levels=tuple(levels), shares=color_shares(levels[-1]))


def save_assets(
    folder: Path,
    categories: Sequence[Category],
    sprites: dict[tuple[str, str], list[NDArray[np.uint8]]],
    grounds: Sequence[Ground],
    prefix: str = "",
) -> None:
    """Write assets for `SceneAssets.load`, with everything that training must not see in a file of its own.

    Args:
        folder: created if missing.
        categories: categories that no other files of the folder have.
        sprites: drawings of one size by category and style.
        grounds: background pictures.
        prefix: beginning of the names of all files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = [asdict(category) for category in categories]
    (folder / f"{prefix}categories.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False))
    for part in PARTS:
        chosen = [
            (key, pixels)
            for key, drawings in sprites.items()
            for pixels in drawings
            if (is_held_out(key[0]) or key[1] in HELD_OUT_STYLES) == (part == "test")
        ]
        kept = [ground for ground in grounds if is_held_out(ground.name) == (part == "test")]
        index = {"sprites": [key for key, _ in chosen], "grounds": [(ground.name, ground.shows) for ground in kept]}
        arrays: dict[str, Any] = {f"ground_{place}": ground.pixels for place, ground in enumerate(kept)}
        arrays |= {"index": np.array(json.dumps(index)), "sprites": np.stack([pixels for _, pixels in chosen])}
        np.savez_compressed(folder / f"{prefix}{part}.npz", **arrays)


@lru_cache
def _draw_builtin() -> SceneAssets:
    known = {category.name: category for category in curated_categories()}
    synonyms = {"car": ("automobile",), "tent": ("canopy",), "box": ("package",), "balloon": ("inflated ball",)}
    categories = [Category(name=name, group=known[name].group, synonyms=synonyms.get(name, ())) for name in SHAPE_NAMES]
    sprites = [make_sprite(name, style, draw_shape(name, style)) for name in SHAPE_NAMES for style in SHAPE_STYLES]
    return SceneAssets(
        categories, sprites, [Ground(name=name, pixels=pixels) for name, pixels in draw_grounds().items()]
    )
