"""What is asked about scenes is true, unambiguous, and answered by the right masks."""

import pickle
import re
from dataclasses import replace

import numpy as np
import pytest

from xsam_model.prompts.answers import read_caption
from xsam_model.prompts.templates import PHRASE_END, PHRASE_START, SEG_TOKEN, TASKS
from xsam_model.training.scenes.art.assets import SceneAssets
from xsam_model.training.scenes.art.vocabulary import STUFF_NAMES, SUPERGROUPS, curated_categories, in_group, lookalikes
from xsam_model.training.scenes.asked.captions import NUMBERS
from xsam_model.training.scenes.asked.prompts import PROMPT_KINDS, bounding_box, draw_prompt
from xsam_model.training.scenes.asked.questions import REASONS, answering
from xsam_model.training.scenes.asked.relations import NEAR, SIZE_RATIO, SceneLayout, referring_phrases
from xsam_model.training.scenes.asked.tasks import SCENE_TASKS, AskConfig, ask_scene
from xsam_model.training.scenes.scene import SceneConfig, make_scene
from xsam_model.training.scenes.source import SceneSource

SEEDS = range(60)
CROWDED = SceneConfig(min_objects=4, max_objects=6, repeat_share=0.6, paint_share=0.5)


@pytest.fixture(scope="module")
def assets():
    return SceneAssets.builtin()


@pytest.fixture(scope="module")
def scenes(assets):
    return [make_scene(seed, assets, config=CROWDED) for seed in SEEDS]


def samples(assets, task, count=60, **options):
    source = SceneSource(assets, task, **options)
    return [source.draw(0, np.random.default_rng(seed)) for seed in range(count)]


def center(mask):
    return np.argwhere(mask).mean(axis=0)


def phrases_of(scene):
    names = [thing.name for thing in scene.objects]
    return referring_phrases(SceneLayout(scene), names)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_asked_and_the_same_seed_asks_the_same(assets, task):
    source = SceneSource(assets, task)
    first, second = (pickle.loads(pickle.dumps(source)).draw(3, np.random.default_rng(5)) for _ in range(2))
    assert first.task == task
    assert first.source == f"scenes-{task}" == source.name
    assert (first.image == second.image).all()
    assert (first.masks == second.masks).all()
    assert (first.conditions, first.answer) == (second.conditions, second.answer)
    assert len(first.visual_prompts) == len(second.visual_prompts)
    assert all((a == b).all() for a, b in zip(first.visual_prompts, second.visual_prompts, strict=True))


def test_unknown_tasks_and_prompts_are_refused(assets):
    with pytest.raises(ValueError, match="unknown task 'depth'"):
        SceneSource(assets, "depth")
    with pytest.raises(ValueError, match="prompt_kinds"):
        AskConfig(prompt_kinds=("lasso",))
    with pytest.raises(RuntimeError, match="refseg"):
        SceneSource(
            assets,
            "refseg",
            scenes=SceneConfig(min_objects=0, max_objects=0),
            questions=AskConfig(nothing_present_share=0),
        ).draw(0, np.random.default_rng(0))
    assert set(SCENE_TASKS) == set(TASKS)


def test_categories_label_each_mask_and_absent_ones_have_none(assets):
    for seed in SEEDS:
        scene = make_scene(seed, assets)
        sample = ask_scene(scene, "genseg", assets, np.random.default_rng(seed))
        assert len(set(sample.conditions)) == len(sample.conditions)
        if not len(sample.masks):
            continue
        items = [*scene.objects, *scene.stuff]
        assert [sample.conditions[label] for label in sample.labels] == [item.name for item in items]
        assert all((mask == item.mask).all() for mask, item in zip(sample.masks, items, strict=True))


def test_some_questions_have_no_answer_in_the_picture(assets):
    questions = AskConfig(nothing_present_share=1)
    for task in ("genseg", "ovseg", "refseg", "reaseg"):
        for sample in samples(assets, task, 10, questions=questions):
            assert len(sample.masks) == 0
            assert sample.conditions
    assert any(
        len(sample.visual_prompts) > len(set(sample.labels.tolist()))
        for sample in samples(assets, "vgdseg", 10, questions=questions)
    )


def test_nothing_absent_is_like_something_that_is_shown(assets):
    for seed in SEEDS:
        scene = make_scene(seed, assets)
        shown = {thing.name for thing in scene.objects}
        config = AskConfig(nothing_present_share=1, all_names_share=1, synonym_share=0)
        sample = ask_scene(scene, "ovseg", assets, np.random.default_rng(seed), config=config)
        if sample is not None:
            assert not set(sample.conditions) & set().union(*(lookalikes(name) for name in shown))


def test_training_never_asks_for_held_out_names(assets):
    train, unseen = assets.pool("train"), assets.pool("unseen_categories")
    hidden = {*unseen.sprites, *unseen.stuff}
    hidden |= {other for name in unseen.sprites for other in assets.categories[name].synonyms}
    for task in SCENE_TASKS:
        for sample in samples(assets, task, 20):
            text = " ".join((*sample.conditions, sample.answer or ""))
            assert not [name for name in hidden if re.search(rf"\b{re.escape(name)}s?\b", text)]
    assert not hidden & {*train.asked, *train.asked_stuff}


def test_phrases_name_one_object_each(scenes):
    kinds = set()
    for scene in scenes:
        phrases = phrases_of(scene)
        by_text = {}
        for phrase in phrases:
            assert by_text.setdefault(phrase.text, phrase.target) == phrase.target
        kinds |= {phrase.kind for phrase in phrases}
    assert kinds == {"name", "color", "side", "size", "near", "behind", "in front", "group"}


def test_sides_and_sizes_are_true_of_the_masks(scenes):
    axes = {"on the left": (1, 1), "on the right": (1, -1), "at the top": (0, 1), "at the bottom": (0, -1)}
    for scene in scenes:
        for phrase in phrases_of(scene):
            target = scene.objects[phrase.target]
            others = [thing for thing in scene.objects if thing.name == target.name and thing is not target]
            if phrase.kind == "side":
                axis, sign = next(value for words, value in axes.items() if phrase.text.endswith(words))
                assert all(sign * (center(thing.mask) - center(target.mask))[axis] > 0 for thing in others)
            if phrase.kind in ("size", "group") and "est " in phrase.text:
                noun = re.sub("the (largest|smallest) ", "", phrase.text)
                rivals = [
                    thing.mask.sum()
                    for thing in scene.objects
                    if thing is not target and (noun in ("object", thing.name) or in_group(thing.group, noun))
                ]
                area = target.mask.sum()
                largest = phrase.text.startswith("the largest")
                assert all(area >= SIZE_RATIO * rival if largest else rival >= SIZE_RATIO * area for rival in rivals)


def test_neighbors_and_depth_are_true_of_the_masks(scenes):
    for scene in scenes:
        for phrase in phrases_of(scene):
            if phrase.kind not in ("near", "behind", "in front"):
                continue
            target = scene.objects[phrase.target]
            anchor_name = re.split(" next to the | behind the | in front of the ", phrase.text)[1]
            (anchor,) = [thing for thing in scene.objects if thing.name == anchor_name]
            rivals = [thing for thing in scene.objects if thing.name == target.name and thing is not target]
            if phrase.kind == "near":
                a, b = np.argwhere(target.mask), np.argwhere(anchor.mask)
                gap = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1)).min()
                assert gap <= NEAR * 128 * 1.1
                continue
            front, back = (anchor, target) if phrase.kind == "behind" else (target, anchor)
            assert front.z > back.z
            assert (front.mask & back.silhouette).any()
            assert not any((thing.silhouette & anchor.silhouette).any() for thing in rivals)


def test_colors_are_the_only_ones_of_their_kind(scenes):
    found = 0
    for scene in scenes:
        for phrase in phrases_of(scene):
            if phrase.kind == "color":
                target = scene.objects[phrase.target]
                same = [thing for thing in scene.objects if thing.name == target.name and thing.color == target.color]
                assert phrase.text == f"the {target.color} {target.name}"
                assert same == [target]
                found += 1
    assert found


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_prompts_lie_on_their_object_or_its_box(scenes, kind):
    random = np.random.default_rng(0)
    for scene in scenes[:30]:
        for thing in scene.objects:
            prompt = draw_prompt(kind, thing.mask, random)
            assert prompt.any()
            x, y, width, height = bounding_box(thing.mask)
            # Radii, smoothing and boxes of up to 1.1 times the size reach a little beyond.
            margin = 5 + 0.05 * max(width, height)
            left, top, wide, high = bounding_box(prompt)
            assert left >= x - margin
            assert top >= y - margin
            assert left + wide <= x + width + margin
            assert top + high <= y + height + margin
            if kind in ("scribble", "mask"):
                assert (prompt & thing.mask).sum() > 0.3 * prompt.sum()
            assert (prompt & thing.mask).any()


@pytest.mark.parametrize("kind", PROMPT_KINDS)
def test_a_prompt_for_an_object_that_fills_the_picture_is_not_empty(kind):
    assert draw_prompt(kind, np.ones((40, 60), dtype=np.bool_), np.random.default_rng(0)).any()


def test_a_prompt_of_one_object_stands_for_all_of_its_category(assets):
    for sample in samples(assets, "vgdseg"):
        assert len(sample.conditions) == len(sample.visual_prompts)
        for place, (category, prompt) in enumerate(zip(sample.conditions, sample.visual_prompts, strict=True)):
            own = sample.masks[sample.labels == place]
            assert (category == "background") == (len(own) == 0)
            if len(own):
                assert (own & prompt).any()
            else:
                assert not (sample.masks & prompt).any()


def test_an_interactive_prompt_stands_for_its_object_alone(assets):
    for sample in samples(assets, "intseg"):
        assert len(sample.visual_prompts) == len(sample.masks) == 1
        assert (sample.masks[0] & sample.visual_prompts[0]).any()


def test_several_prompts_of_a_scene_stand_each_for_its_own_object(assets):
    scene = make_scene(3, assets, config=SceneConfig(min_objects=3))
    sample = ask_scene(scene, "intseg", assets, np.random.default_rng(0), config=AskConfig(max_prompts=4))
    assert len(sample.visual_prompts) == len(sample.masks) == 4
    for prompt, mask, name in zip(sample.visual_prompts, sample.masks, sample.conditions, strict=True):
        assert (prompt & mask).any()
        assert any(thing.name == name and (thing.mask == mask).all() for thing in scene.objects)


def test_reasoning_is_answered_by_all_that_match(assets):
    found = 0
    for seed in SEEDS:
        scene = make_scene(seed, assets, config=CROWDED)
        sample = ask_scene(scene, "reaseg", assets, np.random.default_rng(seed), config=AskConfig(explain_share=0.5))
        if sample is None or not len(sample.masks):
            continue
        (reason,) = [reason for reason in REASONS if sample.conditions[0] in reason.questions]
        matching = [thing for thing in scene.objects if reason.answers(thing.name, thing.group)]
        assert matching
        assert (sample.masks[0] == np.any([thing.mask for thing in matching], axis=0)).all()
        if sample.answer is not None:
            assert sample.answer.endswith(f"It is {SEG_TOKEN}.")
            assert all(thing.name in sample.answer.lower() for thing in matching)
        found += 1
    assert found > 10


def test_reasons_name_what_exists_and_doubt_forbids_asking(scenes):
    categories = curated_categories()
    known = {item for category in categories for item in (category.name, category.group)} | set(SUPERGROUPS)
    for reason in REASONS:
        assert known >= {*reason.groups, *reason.names, *reason.doubtful}
        assert any(reason.answers(category.name, category.group) for category in categories)
        for scene in scenes:
            doubt = any(reason.is_doubtful(thing.name, thing.group) for thing in scene.objects)
            assert (answering(reason, scene.objects) is None) == doubt


def test_what_the_photograph_behind_shows_is_not_asked_for(assets, scenes):
    for scene in scenes:
        behind = replace(scene, shown_by_ground=("cat", "car", "pizza"))
        names = [thing.name for thing in behind.objects]
        texts = {phrase.text for phrase in referring_phrases(SceneLayout(behind), names)}
        assert not {"the animal", "the largest animal", "the vehicle", "the largest object"} & texts
        for reason in REASONS:
            if reason.answers("cat", "mammal") or reason.answers("pizza", "meal"):
                assert answering(reason, behind.objects, behind.shown_by_ground) is None
        sample = ask_scene(behind, "genseg", assets, np.random.default_rng(0), config=AskConfig(all_names_share=1))
        asked = set(sample.conditions) - set(names)
        assert not asked & {"car", "pizza"}


def test_captions_mark_their_phrases_in_the_order_of_their_masks(assets):
    for seed in SEEDS:
        scene = make_scene(seed, assets, config=CROWDED)
        config = AskConfig(synonym_share=0)
        sample = ask_scene(scene, "gcgseg", assets, np.random.default_rng(seed), config=config)
        caption = read_caption(sample.answer, [PHRASE_START, PHRASE_END, SEG_TOKEN])
        assert len(caption.phrases) == len(sample.masks) == sample.num_conditions
        assert SEG_TOKEN not in caption.text
        assert sample.labels.tolist() == list(range(len(sample.masks)))
        for phrase, mask in zip(caption.phrases, sample.masks, strict=True):
            assert caption.text[phrase.start : phrase.end] == phrase.text
            if phrase.text in STUFF_NAMES:
                (region,) = [region for region in scene.stuff if region.name == phrase.text]
                assert (mask == region.mask).all()
                continue
            members = [thing for thing in scene.objects if (mask & thing.mask).any()]
            assert len({thing.name for thing in members}) == 1
            assert (mask == np.any([thing.mask for thing in members], axis=0)).all()
            assert len([thing for thing in scene.objects if thing.name == members[0].name]) == len(members)
            if len(members) > 1:
                assert phrase.text.split()[0] == NUMBERS[len(members)]


def test_synonyms_belong_to_one_category(assets):
    names = [name for category in assets.categories.values() for name in (category.name, *category.synonyms)]
    assert len(names) == len(set(names))
    asked = {
        name
        for sample in samples(assets, "ovseg", 30, questions=AskConfig(synonym_share=1))
        for name in sample.conditions
    }
    assert "automobile" in asked
    assert "car" not in asked


def test_several_phrases_may_be_asked_of_one_scene(assets):
    config = AskConfig(max_phrases=3, nothing_present_share=0.0)
    drawn = samples(assets, "refseg", scenes=CROWDED, questions=config)
    assert {len(sample.conditions) for sample in drawn} >= {2, 3}
    for sample in drawn:
        assert len(set(sample.conditions)) == len(sample.conditions) == len(sample.masks) <= 3
        assert sample.labels.tolist() == list(range(len(sample.masks)))
