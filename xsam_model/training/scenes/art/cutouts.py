"""Reads photographic cut-outs with alpha and names, and photographs to lay them on: Tux Paint's, only to train on.

A cut-out of something that the vocabulary of drawings names stands beside its drawings; every other one is a category
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xsam_model.training.scenes.art.assets import PHOTO_STYLE, Ground, read_ground
from xsam_model.training.scenes.art.vocabulary import Category, curated_categories, everyday_names

DEBIAN_PACKAGES = ("tuxpaint-stamps-default", "tuxpaint-data")
DRAWING_SIDE, CUTOUT_SIDE = 128, 256
# Enlarged further than this, an object would be told from its ground by its blur.
_LEAST_SIDE = 90
_STAMPS, _TEMPLATES = "usr/share/tuxpaint/stamps", "usr/share/tuxpaint/templates"
# Photographs without a thing in front of the rest -> names of our vocabulary that they show.
_PHOTOS: dict[str, tuple[str, ...]] = {
    "burnt_bark": ("leafy tree", "soil"), "cliff": ("sky", "stone wall", "foliage"), "corn_maze": ("corn", "foliage"),
    "mossy_bark": ("leafy tree", "stone wall"), "mossy_log": ("leafy tree", "grass"), "mudstone": ("soil", "gravel"),
    "ocean_splash": ("water",), "ocean_waves": ("water",), "redwoods_above": ("leafy tree", "pine tree", "sky"),
    "rocks": ("gravel", "stone wall"), "spiders_web": ("spider",), "sun_behind_clouds": ("sky", "cloud", "sun"),
    "sun_behind_leaves": ("foliage",), "trees_above": ("sky", "foliage", "leafy tree"),
    "trees_at_dusk": ("sky", "leafy tree"), "wool_mill_machine": ("gear",),
}  # fmt: skip
# Folders and files whose pictures are drawn, written on, or show something else than their name says.
_LEFT_OUT = re.compile(
    r"cartoon|symbols|flags|roadsigns/(?!stop\.|traffic_cone)|seasonal/(halloween/grave|newyears|hanukkah/)|"
    r"naturalforces|space/(planets/0|voyager)|military/(final|ammunition)|sedan_police|walnutBoat|bunny-egg|"
    r"Roast_turkey|lamp|rugby_goal|7spoke|inukshuk-outline|wildboar|vehicles/wheel_tractor|christmas/star"
)
# Folder -> group of the vocabulary; "" for things that belong to none.
_GROUPS = {
    "animals/birds": "bird", "animals/fish": "sea animal", "animals/insects": "insect", "animals/lizards": "reptile",
    "animals/amphibians": "reptile", "animals/mammals": "mammal", "animals/marsupials": "mammal",
    "animals/shellfish": "sea animal", "food/fruit": "fruit", "food/nuts": "fruit", "food/vegetables": "vegetable",
    "plants": "plant", "vehicles/ship": "boat", "vehicles/flight": "aircraft", "vehicles": "land vehicle",
    "hobbies/music": "musical instrument", "household/tools": "tool",
}  # fmt: skip
# What the stamps call it -> what the vocabulary calls it.
_CALLED = {
    "hen": "chicken", "brown hen": "chicken", "colorful rooster": "rooster", "drake": "duck", "gander": "goose",
    "pigeon": "dove", "albino peahen": "peacock", "iguana": "lizard", "doe": "deer", "wapiti": "deer",
    "caribou": "deer",
    "donkey eating": "donkey", "dromedary": "camel", "black rhino": "rhinoceros", "male black rhino": "rhinoceros",
    "bunny": "rabbit", "floppy-eared bunny": "rabbit", "sea lion": "seal", "orca": "whale", "ram": "sheep",
    "wheelie bin": "trash can", "lightbulb": "light bulb", "t shirt": "t-shirt", "sock": "socks", "glove": "gloves",
    "pants": "jeans", "baseball cap": "cap", "mandarin orange": "tangerine", "kiwifruit": "kiwi",
    "sedan car": "car", "sports car": "car", "vw beetle": "car", "race car": "racing car", "cherries": "cherries",
    "stop sign": "stop sign", "trophy cup": "trophy", "jack-o'-lantern": "jack-o-lantern", "eye": "eye",
    "american football": "football", "lit candle": "candle", "adhesive bandage": "bandage", "full moon": "moon",
    "quarter of pizza": "pizza", "spiny lobster": "lobster", "electric guitar": "guitar", "classical guitar": "guitar",
    "electric bass guitar": "guitar", "floor tom drum": "drum", "hot air balloon": "hot air balloon",
    "liberia-palm": "palm tree", "fuji apple": "apple",
}  # fmt: skip
_ARTICLES = re.compile(r"^(an?|the|two|some|our|eat your|big) |\b(pair|bunch|head) of (an? )?|[\"\u201c\u201d\u2018]")
_MOST_WORDS = 3


def read_cutouts(root: Path) -> tuple[list[Category], dict[tuple[str, str], list[NDArray[np.uint8]]]]:
    """Read all cut-outs of an unpacked package.

    Args:
        root: folder into which the package was unpacked.

    Returns:
        The categories that neither the vocabulary of drawings nor the everyday names have, and the cut-outs by category
        and style, those of a kind under its everyday names too; each uint8 (256, 256, 4), RGB multiplied by alpha.
    """
    known = {category.name for category in curated_categories()} | set(everyday_names())
    new: dict[str, Category] = {}
    found: dict[tuple[str, str], list[NDArray[np.uint8]]] = {}
    for path, name in _named_stamps(root / _STAMPS, known):
        picture = Image.open(path).convert("RGBA")
        alpha = np.asarray(picture)[..., 3] > 127
        rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
        # A picture without transparency is a sign or a scene, not a cut-out.
        if not alpha.any() or alpha.mean() > 0.97 or max(np.ptp(rows), np.ptp(columns)) < _LEAST_SIDE:
            continue
        if name not in known and name not in new:
            place = path.relative_to(root / _STAMPS).as_posix()
            group = next((group for folder, group in _GROUPS.items() if place.startswith(folder)), "")
            new[name] = Category(name=name, group=group)
        found.setdefault((name, PHOTO_STYLE), []).append(trimmed(picture, CUTOUT_SIDE))
    for general, one in everyday_names().items():
        alike = [pixels for kind in sorted(one.kinds) for pixels in found.get((kind, PHOTO_STYLE), ())]
        found.setdefault((general, PHOTO_STYLE), []).extend(alike)
    found = {key: pictures for key, pictures in found.items() if pictures}
    return list(new.values()), found


def read_photographs(root: Path) -> list[Ground]:
    """Read the photographs of an unpacked package, scaled down to at most 512 pixels."""
    return [read_ground(root / _TEMPLATES / f"{stem}.jpg", stem, shows) for stem, shows in _PHOTOS.items()]


def _named_stamps(folder: Path, known: set[str]) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.png")):
        text = path.with_suffix(".txt")
        if _LEFT_OUT.search(path.relative_to(folder).as_posix()) or not text.is_file():
            continue
        lines = text.read_text(encoding="utf-8", errors="replace").splitlines()
        name = stamp_name(lines[0] if lines else "", known)
        if name:
            yield path, name


def stamp_name(text: str, known: Sequence[str] | set[str]) -> str:
    """Return the name of a stamp from its description in English, "" if that is no plain name.

    The longest end of it that the vocabulary has: "A Sumatran tiger." is a tiger.
    """
    plain = re.split(r"[.!?(,;:\N{EM DASH}]", text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))[0].lower().strip()
    plain = " ".join(_ARTICLES.sub("", _ARTICLES.sub("", plain)).split())
    words = plain.split()
    ends = [" ".join(words[place:]) for place in range(len(words))]
    for end in ends:
        if end in _CALLED or end in known:
            return _CALLED.get(end, end)
    return plain if 0 < len(words) <= _MOST_WORDS and re.fullmatch(r"[a-z' -]+", plain) else ""


def trimmed(picture: Image.Image, side: int = DRAWING_SIDE) -> NDArray[np.uint8]:
    """Trim a drawing's empty margin and fit it into a square, uint8 (side, side, 4), RGB multiplied by alpha."""
    pixels = np.asarray(picture.convert("RGBA")).astype(np.float32)
    pixels[..., :3] *= pixels[..., 3:] / 255
    rows, columns = (np.flatnonzero((pixels[..., 3] > 8).any(axis=axis)) for axis in (1, 0))
    pixels = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = side / max(pixels.shape[:2])
    height, width = (max(1, round(length * scale)) for length in pixels.shape[:2])
    fitted = np.zeros((side, side, 4), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    method = Image.Resampling.BOX if scale <= 1 else Image.Resampling.BILINEAR
    # Channel by channel in float32, which Pillow resizes without rounding in between.
    for channel in range(4):
        plane = Image.fromarray(pixels[..., channel]).resize((width, height), method)
        fitted[top : top + height, left : left + width, channel] = np.asarray(plane)
    return np.minimum(fitted, fitted[..., 3:]).round().astype(np.uint8)
