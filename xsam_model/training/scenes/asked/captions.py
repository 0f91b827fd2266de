"""Writes grounded captions of scenes, and short questions with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, SEG_TOKEN
from xsam_model.training.scenes.art.vocabulary import is_countable, plural, with_article
from xsam_model.training.scenes.asked.relations import NEAR, SIDE_MARGIN, SceneLayout

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_OPENINGS = ("The picture shows {}.", "The image has {}.", "This is a picture of {}.", "We see {}.")


@dataclass(frozen=True, slots=True, eq=False)
class GroundedCaption:
    """A caption with a mask for each of its phrases.

    Attributes:
        answer: the caption with its phrases as `<p>phrase</p>`, followed by one `<SEG>`, as an answer of gcgseg.
        masks: bool (N, H, W), for each phrase in order the union of the objects that it refers to.
    """

    answer: str
    masks: NDArray[np.bool_]


def noun_phrase(layout: SceneLayout, members: Sequence[int], name: str) -> str:
    """Return a noun phrase for all objects of one category: "a red car", "an owl", "two dogs", "some grapes".

    Args:
        layout: layout of the scene.
        members: positions of the objects in the scene.
        name: name to use for them.
    """
    colors = {layout.objects[place].color for place in members}
    color = next(iter(colors)) if len(colors) == 1 else None
    words = f"{color} {name}" if color else name
    if len(members) > 1 and is_countable(name):
        several = f"{color} {plural(name)}" if color else plural(name)
        return f"{NUMBERS[len(members)]} {several}"
    return with_article(words, name)


def relation(layout: SceneLayout, first: int, second: int) -> str | None:
    """Return the spatial relation of one object to another, or None if there is no clear one."""
    if layout.is_behind(first, second):
        return "behind"
    if layout.is_behind(second, first):
        return "in front of"
    down, right = layout.centers[second] - layout.centers[first]
    if abs(right) > max(SIDE_MARGIN, 1.5 * abs(down)):
        words = "to the left of" if right > 0 else "to the right of"
    elif abs(down) > max(SIDE_MARGIN, 1.5 * abs(right)):
        words = "above" if down > 0 else "below"
    else:
        return "next to" if layout.gap(first, second) <= NEAR else None
    return words


def grounded_caption(layout: SceneLayout, names: Sequence[str], random: np.random.Generator) -> GroundedCaption | None:
    """Write a caption that mentions every object, and in most cases the surfaces.

    Args:
        layout: layout of the scene.
        names: name to use for each object.
        random: source of order and wording.

    Returns:
        The caption; None if there is nothing to mention.
    """
    scene = layout.scene
    categories = [thing.name for thing in layout.objects]
    groups = [[i for i, name in enumerate(categories) if name == category] for category in dict.fromkeys(categories)]
    groups = [groups[place] for place in random.permutation(len(groups))]
    if not groups and not scene.stuff:
        return None
    words: list[str] = []
    masks: list[NDArray[np.bool_]] = []
    for members in groups:
        phrase = noun_phrase(layout, members, names[members[0]])
        said = relation(layout, groups[0][0], members[0]) if len(masks) == 1 and len(groups[0] + members) == 2 else None
        marked = f"{PHRASE_START}{phrase}{PHRASE_END}"
        if said is not None:
            words[0] = f"{words[0]} {said} {marked}"
        else:
            words.append(marked)
        masks.append(np.any([layout.objects[place].mask for place in members], axis=0))
    text = _OPENINGS[random.integers(len(_OPENINGS))].format(_listed(words)) if words else ""
    if scene.stuff and (not words or random.random() < 0.7):
        surfaces = [f"{PHRASE_START}{region.name}{PHRASE_END}" for region in scene.stuff]
        text += f"{' ' if text else ''}The background shows {_listed(surfaces)}."
        masks += [region.mask for region in scene.stuff]
    return GroundedCaption(answer=f"{text} {SEG_TOKEN}", masks=np.stack(masks))


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def question_and_answer(
    layout: SceneLayout, names: Sequence[str], absent: str, random: np.random.Generator
) -> tuple[str, str]:
    """Return a question with an answer in words: how many there are, whether there is one, or what there is.

    Args:
        layout: layout of the scene.
        names: name to use for each object.
        absent: name of a category that the scene does not have.
        random: source of all choices.
    """
    counts = {name: list(names).count(name) for name in names}
    known = [*counts, absent]
    name = known[random.integers(len(known))]
    kind = random.integers(3)
    if kind == 0 and counts:
        members = {name: [place for place, other in enumerate(names) if other == name] for name in counts}
        said = _listed([noun_phrase(layout, places, name) for name, places in members.items()])
        return "What does the picture show?", f"It shows {said}."
    if kind == 1 and is_countable(name):
        number = counts.get(name, 0)
        verb, noun = ("is", name) if number == 1 else ("are", plural(name))
        return f"How many {plural(name)} are there?", f"There {verb} {NUMBERS[number]} {noun}."
    article = with_article(name, name).replace("some ", "any ")
    return f"Can you see {article} in the picture?", "Yes." if name in counts else "No."
