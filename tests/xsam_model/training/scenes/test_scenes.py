"""Scenes are functions of their seeds, and their masks are what is in the picture."""

import pickle

import cv2
import numpy as np
import pytest

from xsam_model.training.scenes.art.assets import HELD_OUT_STYLES, SPLITS, SceneAssets
from xsam_model.training.scenes.art.vocabulary import curated_categories, is_core, is_held_out, lookalikes
from xsam_model.training.scenes.scene import SceneConfig, make_scene

SEEDS = range(40)
PLAIN = SceneConfig(effects=False)


@pytest.fixture(scope="module")
def assets():
    return SceneAssets.builtin()


def test_a_seed_gives_the_same_scene_again_and_in_another_process(assets):
    other = pickle.loads(pickle.dumps(assets))
    for seed in SEEDS:
        first, second = make_scene(seed, assets), make_scene(seed, other)
        assert (first.pixels == second.pixels).all()
        assert [thing.name for thing in first.objects] == [thing.name for thing in second.objects]
        assert all((a.mask == b.mask).all() for a, b in zip(first.objects, second.objects, strict=True))


def test_seeds_and_splits_give_other_scenes(assets):
    pictures = [make_scene(seed, assets, split).pixels.tobytes() for seed in range(8) for split in SPLITS]
    assert len(set(pictures)) == len(pictures)


def test_the_size_is_the_configured_one(assets):
    scene = make_scene(0, assets, config=SceneConfig(side_pixels=96))
    assert scene.pixels.shape == (96, 96, 3)
    assert scene.pixels.dtype == np.uint8
    assert all(thing.mask.shape == (96, 96) and thing.mask.dtype == np.bool_ for thing in scene.objects)


def test_nothing_is_visible_twice_and_what_is_visible_is_part_of_the_whole(assets):
    for seed in SEEDS:
        scene = make_scene(seed, assets)
        masks = [item.mask for item in (*scene.objects, *scene.stuff)]
        assert not masks or np.sum(masks, axis=0).max() <= 1
        for thing in scene.objects:
            assert not (thing.mask & ~thing.silhouette).any()


def test_visible_masks_are_the_silhouettes_laid_over_each_other(assets):
    for seed in SEEDS:
        objects = make_scene(seed, assets).objects
        assert [thing.z for thing in objects] == list(range(len(objects)))
        for thing in objects:
            hidden = np.any([other.silhouette for other in objects[thing.z + 1 :]] or [np.zeros((1, 1), bool)], axis=0)
            assert (thing.mask == thing.silhouette & ~hidden).all()


def test_the_picture_differs_from_its_bare_ground_exactly_where_objects_are(assets):
    bare = SceneConfig(effects=False, min_objects=0, max_objects=0)
    for seed in SEEDS:
        scene, ground = make_scene(seed, assets, config=PLAIN), make_scene(seed, assets, config=bare)
        assert not ground.objects
        changed = (scene.pixels != ground.pixels).any(axis=-1)
        covered = np.zeros_like(changed)
        for thing in scene.objects:
            covered |= thing.mask
        # Half-transparent edges of an object are not counted as the object: four pixels around it at most.
        edge = cv2.dilate(covered.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert not (changed & ~edge).any()
        if covered.any():
            assert changed[covered].mean() > 0.95


def test_objects_are_never_mostly_hidden_nor_tiny(assets):
    config = SceneConfig(min_objects=6, max_objects=6)
    for seed in SEEDS:
        for thing in make_scene(seed, assets, config=config).objects:
            assert thing.mask.sum() >= config.min_visible * thing.silhouette.sum() - 1
            assert thing.mask.sum() >= config.min_area * 128 * 128


def test_no_two_categories_of_a_scene_could_be_taken_for_each_other(assets):
    for seed in SEEDS:
        names = {thing.name for thing in make_scene(seed, assets).objects}
        assert all(lookalikes(name) & names == {name} for name in names)


def test_splits_share_nothing_that_is_held_out(assets):
    train, test = assets.pool("train"), assets.pool("test")
    unseen, style = assets.pool("unseen_categories"), assets.pool("unseen_style")
    assert set(train.sprites) == set(test.sprites) == set(style.sprites)
    assert not set(train.sprites) & set(unseen.sprites)
    assert not set(train.asked) & set(unseen.sprites)
    assert not set(train.stuff) & set(unseen.stuff)
    assert not set(train.asked_stuff) & set(unseen.stuff)
    train_grounds = {ground.name for ground in train.grounds}
    for pool in (test, unseen, style):
        assert pool.grounds
        assert not train_grounds & {ground.name for ground in pool.grounds}
    drawn = {
        sprite.style for pool in (train, test, unseen) for drawings in pool.sprites.values() for sprite in drawings
    }
    assert not drawn & set(HELD_OUT_STYLES)
    assert {sprite.style for drawings in style.sprites.values() for sprite in drawings} <= set(HELD_OUT_STYLES)


def test_the_vocabulary_is_large_and_a_fifth_of_it_is_held_out():
    names = [category.name for category in curated_categories()]
    assert len(set(names)) == len(names) >= 200
    assert 0.15 < np.mean([is_held_out(name) for name in names]) < 0.25
    core = [name for name in names if is_core(name)]
    assert len([name for name in core if not is_held_out(name)]) >= 60


def test_every_scene_asks_for_something_known(assets):
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        make_scene(0, assets, "validation")
    with pytest.raises(FileNotFoundError, match=r"scenes\.art\.prepare"):
        SceneAssets.load("/nonexistent")
    with pytest.raises(ValueError, match="min_objects"):
        SceneConfig(min_objects=3, max_objects=2)
