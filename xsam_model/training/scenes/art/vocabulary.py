"""The vocabulary of scenes: categories, stuff, groups, plurals, and which names are held out from training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

from xsam_model.training.scenes.art import names as scene_names


def listed(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas, which may be broken into lines."""
    return tuple(" ".join(name.split()) for name in text.split(","))


STUFF_NAMES = listed(scene_names.STUFF)
SUPERGROUPS = {
    "animal": ("mammal", "bird", "reptile", "sea animal", "insect", "small animal"),
    "vehicle": ("land vehicle", "boat", "aircraft"),
    "food": ("fruit", "vegetable", "meal", "sweet"),
}
# Prefix of what is hashed, chosen so that the most common names are trained on.
_SPLIT = "scenes-49:"
_LOOKALIKES = tuple(listed(line) for line in scene_names.LOOKALIKES.strip().split("\n"))
_CORE = frozenset(listed(scene_names.CORE))
_UNCOUNTED = frozenset(listed(scene_names.UNCOUNTED))
_PLURALS = {"mouse": "mice", "computer mouse": "computer mice", "knife": "knives", "goose": "geese", "die": "dice"}
# The same in singular and plural, but countable.
_SAME_PLURAL = frozenset({"sheep", "fish", "deer", "moose", "shrimp", "squid", "aircraft"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A category of objects.

    Attributes:
        name: name in prompts, lower case.
        synonyms: other names of it, none of which another category has.
        group: its group in the vocabulary: "mammal", "land vehicle", ...
        drawings: names of its drawings in emojibase.
    """

    name: str
    synonyms: tuple[str, ...] = ()
    group: str = ""
    drawings: tuple[str, ...] = ()


def curated_categories() -> tuple[Category, ...]:
    """Return all categories without synonyms, which come with the assets."""
    categories = []
    for row in scene_names.CATEGORIES.strip().replace("\n  ", " ").split("\n"):
        group, _, names = row.partition(":")
        for entry in names.split(","):
            name, _, drawings = entry.strip().partition("=")
            categories.append(Category(name=name, group=group, drawings=tuple((drawings or name).split("+"))))
    return tuple(categories)


@dataclass(frozen=True, slots=True, kw_only=True)
class EverydayName:
    """A name that people use for several categories, and for things that no drawing shows exactly.

    Attributes:
        category: the name as a category of its own, with its drawings in emojibase.
        kinds: categories that are also called so.
    """

    category: Category
    kinds: frozenset[str]


@cache
def everyday_names() -> dict[str, EverydayName]:
    """Return the everyday names, which stand beside the cut-outs of photographs."""
    curated = curated_categories()
    found = {}
    for row in scene_names.EVERYDAY.strip().replace("\n  ", " ").split("\n"):
        name, _, rest = row.partition(":")
        drawn, _, kinds = rest.partition(";")
        drawings = listed(drawn)
        # Whatever shares a drawing is a kind of it too.
        alike = {one.name for one in curated if not set(one.drawings).isdisjoint(drawings)}
        category = Category(name=name, drawings=drawings)
        found[name] = EverydayName(category=category, kinds=frozenset(filter(None, listed(kinds))) | alike)
    return found


def is_held_out(name: str) -> bool:
    """Return whether training never sees a category, stuff name or background.

    One in five, by the hash of its name; never an everyday name, which models are asked for.
    """
    if name in everyday_names():
        return False
    return int.from_bytes(hashlib.sha256((_SPLIT + name).encode()).digest()[:4], "big") % 5 == 0


def is_core(name: str) -> bool:
    """Return whether a category belongs to the small vocabulary: the core, and the everyday names beside cut-outs."""
    return name in _CORE or name in everyday_names()


@cache
def lookalikes(name: str) -> frozenset[str]:
    """Return the names that no scene shows or asks for together with this one, itself included."""
    kin = [{general, *one.kinds} for general, one in everyday_names().items() if name == general]
    kin += [{general} for general, one in everyday_names().items() if name in one.kinds]
    return frozenset({name}.union(*(names for names in _LOOKALIKES if name in names), *kin))


def group_of(name: str) -> str:
    """Return the group of a category, "" for an unknown name."""
    return _groups().get(name, "")


@cache
def _groups() -> dict[str, str]:
    return {category.name: category.group for category in curated_categories()}


def in_group(group: str, name_or_supergroup: str) -> bool:
    """Return whether a category's group is the given one, or part of the given supergroup."""
    return group == name_or_supergroup or group in SUPERGROUPS.get(name_or_supergroup, ())


def is_countable(name: str) -> bool:
    """Return whether a name takes "a" and "two"."""
    return name in _SAME_PLURAL or name not in _UNCOUNTED


def plural(name: str) -> str:
    """Return the plural of a name, as in "two wolves"."""
    if name in _PLURALS:
        return _PLURALS[name]
    if name in _SAME_PLURAL or not is_countable(name):
        return name
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    if name.endswith("lf"):
        return name[:-1] + "ves"
    return name + ("es" if name in {"potato", "tomato", "mango", "flamingo", "mosquito", "tornado"} else "s")


def with_article(words: str, name: str) -> str:
    """Add the article: "a red car", "an owl", "some grapes".

    Args:
        words: the name, with adjectives before it.
        name: the name alone.
    """
    if not is_countable(name):
        return f"some {words}"
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('uni') else 'a'} {words}"
