"""Asks every task of X-SAM about scenes, and returns training samples with exact answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import REASEG_EXPLAIN_QUESTION, SEG_TOKEN
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.scenes.art.assets import SceneAssets, ScenePool
from xsam_model.training.scenes.art.vocabulary import is_countable, lookalikes, plural
from xsam_model.training.scenes.asked.captions import grounded_caption, question_and_answer
from xsam_model.training.scenes.asked.prompts import PROMPT_KINDS, draw_prompt
from xsam_model.training.scenes.asked.questions import REASONS, answering
from xsam_model.training.scenes.asked.relations import SceneLayout, referring_phrases
from xsam_model.training.scenes.scene import Scene, SceneObject, StuffRegion

# Relative frequency of each kind of phrase among those that are true in a scene.
_PHRASE_WEIGHTS = {"name": 1, "color": 3, "side": 3, "size": 3, "near": 3, "behind": 4, "in front": 4, "group": 1}


@dataclass(frozen=True, kw_only=True, slots=True)
class AskConfig:
    """Settings of question generation.

    Attributes:
        max_absent: most absent categories in a list of names.
        all_names_share: share of lists with every name that may be asked for.
        num_names: exact number of object names in every list of ovseg (fewer if there are not so many), without
            surfaces, which makes tests comparable. None to vary as the fields above say.
        nothing_present_share: share of questions with an empty answer: lists of absent names, phrases for absent
            objects, questions that nothing answers, prompts on empty ground.
        synonym_share: share of categories that are asked by a synonym (not in genseg, whose list is closed).
        explain_share: share of reasoning questions that ask for an explanation.
        max_phrases: most refseg phrases for one scene, each a conversation of its own; fewer if fewer are true.
        max_prompts: most intseg prompts for one scene, each on an object of its own choice.
        prompt_kinds: kinds of visual prompts, equally likely.
    """

    max_absent: int = 20
    all_names_share: float = 0.08
    num_names: int | None = None
    nothing_present_share: float = 0.06
    synonym_share: float = 0.25
    explain_share: float = 0.25
    max_phrases: int = 1
    max_prompts: int = 1
    prompt_kinds: tuple[str, ...] = PROMPT_KINDS

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            ValueError: if a kind of prompt is unknown or there is none.
        """
        if not self.prompt_kinds or set(self.prompt_kinds) - set(PROMPT_KINDS):
            raise ValueError(f"prompt_kinds must be some of {', '.join(PROMPT_KINDS)}, got {self.prompt_kinds}")


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """A scene with everything that is needed to ask about it."""

    scene: Scene
    pool: ScenePool
    assets: SceneAssets
    config: AskConfig
    random: np.random.Generator

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def choose(self, items: Sequence[str]) -> str:
        return items[int(self.random.integers(len(items)))]

    def names(self) -> list[str]:
        """Return the name to use for each object, the same for all of one category."""
        called = {thing.name: self.call(thing.name) for thing in self.scene.objects}
        return [called[thing.name] for thing in self.scene.objects]

    def call(self, name: str) -> str:
        synonyms = self.assets.categories[name].synonyms if name in self.assets.categories else ()
        return self.choose(synonyms) if synonyms and self.chance(self.config.synonym_share) else name

    def absent(self, with_stuff: bool) -> list[str]:
        """Return, in random order, all names of which the scene shows neither an instance nor a look-alike."""
        scene = self.scene
        shown = [thing.name for thing in scene.objects] + [*scene.shown_by_ground]
        banned = frozenset[str]().union(*(lookalikes(name) for name in shown))
        banned |= {region.name for region in scene.stuff}
        names = [*self.pool.asked, *(self.pool.asked_stuff if with_stuff else ())]
        return [names[place] for place in self.random.permutation(len(names)) if names[place] not in banned]

    def sample(
        self, task: str, masks: Sequence[NDArray[np.bool_]], labels: Sequence[int], **fields: object
    ) -> TrainingSample:
        size = self.scene.pixels.shape[:2]
        return TrainingSample(
            image=self.scene.pixels,
            task=task,
            masks=np.stack(masks) if len(masks) else np.zeros((0, *size), dtype=np.bool_),
            labels=np.array(labels, dtype=np.int64),
            source=f"scenes-{task}",
            **fields,  # type: ignore[arg-type]
        )


def _genseg(asked: _Asked) -> TrainingSample | None:
    return _categories(asked, "genseg", with_stuff=True, called=lambda name: name)


def _ovseg(asked: _Asked) -> TrainingSample | None:
    with_stuff = asked.config.num_names is None and asked.chance(0.4)
    return _categories(asked, "ovseg", with_stuff=with_stuff, called=asked.call)


def _categories(asked: _Asked, task: str, with_stuff: bool, called: Callable[[str], str]) -> TrainingSample | None:
    """Ask for categories by name, with a mask for each object and one for each surface."""
    items: list[SceneObject | StuffRegion] = [*asked.scene.objects, *(asked.scene.stuff if with_stuff else ())]
    if asked.chance(asked.config.nothing_present_share):
        items = []
    present = list(dict.fromkeys(item.name for item in items))
    absent = asked.absent(with_stuff)
    if asked.config.num_names is not None:
        absent = absent[: max(0, asked.config.num_names - len(present))]
    elif not asked.chance(asked.config.all_names_share):
        least = 0 if items else 1
        absent = absent[: int(asked.random.integers(least, max(least, asked.config.max_absent) + 1))]
    names = [*present, *absent]
    if not names:
        return None
    order = asked.random.permutation(len(names))
    place = {names[index]: position for position, index in enumerate(order)}
    conditions = tuple(called(names[index]) for index in order)
    return asked.sample(
        task, [item.mask for item in items], [place[item.name] for item in items], conditions=conditions
    )


def _refseg(asked: _Asked) -> TrainingSample | None:
    """Ask for objects by phrases that are true of only one, sometimes for one that is absent."""
    if asked.chance(asked.config.nothing_present_share):
        absent = asked.absent(with_stuff=False)
        return asked.sample("refseg", [], [], conditions=(f"the {asked.call(absent[0])}",)) if absent else None
    phrases = referring_phrases(SceneLayout(asked.scene), asked.names())
    if not phrases:
        return None
    objects = asked.scene.objects
    categories = [thing.name for thing in objects]
    # Prefer targets of which there are several of a kind: only there do the words beside the name matter.
    several = [categories.count(categories[phrase.target]) > 1 for phrase in phrases]
    weights = np.array([_PHRASE_WEIGHTS[phrase.kind] for phrase in phrases]) * np.where(several, 3.0, 1.0)
    number = min(asked.config.max_phrases, len(phrases))
    chosen = asked.random.choice(len(phrases), size=number, replace=False, p=weights / weights.sum())
    masks = [objects[phrases[place].target].mask for place in chosen]
    return asked.sample("refseg", masks, range(number), conditions=tuple(phrases[place].text for place in chosen))


def _reaseg(asked: _Asked) -> TrainingSample | None:
    """Ask a reasoning question; the truth is one mask of all objects that answer it."""
    objects = asked.scene.objects
    nothing = asked.chance(asked.config.nothing_present_share)
    for place in asked.random.permutation(len(REASONS)):
        reason = REASONS[place]
        found = answering(reason, objects, asked.scene.shown_by_ground)
        if found is None or bool(found) == nothing:
            continue
        conditions = (asked.choose(reason.questions),)
        if nothing:
            return asked.sample("reaseg", [], [], conditions=conditions)
        mask = np.any([objects[index].mask for index in found], axis=0)
        fields: dict[str, object] = {"conditions": conditions}
        if asked.chance(asked.config.explain_share):
            names = dict.fromkeys(objects[index].name for index in found)
            said = " and ".join(_definite(name, [objects[i].name for i in found].count(name)) for name in names)
            fields["question"] = REASEG_EXPLAIN_QUESTION
            fields["answer"] = f"{said[0].upper()}{said[1:]} {reason.explanation}. It is {SEG_TOKEN}."
        return asked.sample("reaseg", [mask], [0], **fields)
    return None


def _definite(name: str, count: int) -> str:
    return f"the {plural(name) if count > 1 and is_countable(name) else name}"


def _gcgseg(asked: _Asked) -> TrainingSample | None:
    """Ask for a caption, with a mask for each of its phrases."""
    caption = grounded_caption(SceneLayout(asked.scene), asked.names(), asked.random)
    if caption is None:
        return None
    return asked.sample("gcgseg", list(caption.masks), range(len(caption.masks)), answer=caption.answer)


def _vgdseg(asked: _Asked) -> TrainingSample | None:
    """Prompt one object of each category; the truth are all objects of that category."""
    objects = asked.scene.objects
    if not objects:
        return None
    categories = list(dict.fromkeys(thing.name for thing in objects))
    categories = [categories[place] for place in asked.random.permutation(len(categories))]
    prompts = []
    for category in categories:
        members = [thing for thing in objects if thing.name == category]
        member = members[asked.random.integers(len(members))]
        prompts.append(draw_prompt(asked.choose(asked.config.prompt_kinds), member.mask, asked.random))
    if asked.chance(asked.config.nothing_present_share) and (empty := _empty_prompt(asked)) is not None:
        prompts.append(empty)
        categories.append("background")
    labels = [categories.index(thing.name) for thing in objects]
    return asked.sample(
        "vgdseg",
        [thing.mask for thing in objects],
        labels,
        conditions=tuple(categories),
        visual_prompts=tuple(prompts),
    )


def _empty_prompt(asked: _Asked) -> NDArray[np.bool_] | None:
    """Draw a point or a scribble on unnamed background, or return None if there is too little of it."""
    items: list[SceneObject | StuffRegion] = [*asked.scene.objects, *asked.scene.stuff]
    free = ~np.any([item.mask for item in items], axis=0)
    if free.mean() < 0.1:
        return None
    prompt = draw_prompt(asked.choose(("point", "scribble")), free, asked.random) & free
    return prompt if prompt.any() else None


def _intseg(asked: _Asked) -> TrainingSample | None:
    """Prompt one object, or several one by one; the truth of each prompt is that object alone."""
    objects = asked.scene.objects
    if not objects:
        return None
    things, prompts = [], []
    for _ in range(asked.config.max_prompts):
        thing = objects[asked.random.integers(len(objects))]
        things.append(thing)
        prompts.append(draw_prompt(asked.choose(asked.config.prompt_kinds), thing.mask, asked.random))
    return asked.sample(
        "intseg",
        [thing.mask for thing in things],
        range(len(things)),
        conditions=tuple(thing.name for thing in things),
        visual_prompts=tuple(prompts),
    )


def _chat(asked: _Asked) -> TrainingSample | None:
    """Ask a question that is answered in words, without masks."""
    absent = asked.absent(with_stuff=False)
    if not absent:
        return None
    question, answer = question_and_answer(SceneLayout(asked.scene), asked.names(), absent[0], asked.random)
    return asked.sample("chat", [], [], conditions=(question,), answer=answer)


_TASKS: dict[str, Callable[[_Asked], TrainingSample | None]] = {
    "genseg": _genseg,
    "ovseg": _ovseg,
    "refseg": _refseg,
    "reaseg": _reaseg,
    "gcgseg": _gcgseg,
    "vgdseg": _vgdseg,
    "intseg": _intseg,
    "chat": _chat,
}
SCENE_TASKS = tuple(_TASKS)


def ask_scene(
    scene: Scene,
    task: str,
    assets: SceneAssets,
    random: np.random.Generator,
    *,
    config: AskConfig | None = None,
    core_only: bool = False,
) -> TrainingSample | None:
    """Ask one task about a scene.

    Args:
        scene: the scene.
        task: one of `prompts.templates.TASKS`.
        assets: assets that the scene was made from; absent names come from the pool of its split.
        random: source of all choices about the question.
        config: how questions vary.
        core_only: as in the scene's `SceneConfig`.

    Returns:
        A sample whose source is "scenes-<task>", or None if there is nothing to ask. Reasoning questions have one mask
        of everything that answers them, captions one for each phrase.

    Raises:
        ValueError: if the task is unknown.
    """
    if task not in _TASKS:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(_TASKS)}")
    pool = assets.pool(scene.split, core_only)
    return _TASKS[task](_Asked(scene, pool, assets, config or AskConfig(), random))
