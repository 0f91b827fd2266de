"""Photographic cut-outs: read from their package, named, and laid beside drawings of the same things."""

import pickle

import numpy as np
import pytest
from PIL import Image

from xsam_model.training.scenes.art import assets as art
from xsam_model.training.scenes.art import downloads
from xsam_model.training.scenes.art.assets import CUTOUTS, PARTS, PHOTO_STYLE, Ground, SceneAssets, save_assets
from xsam_model.training.scenes.art.cutouts import CUTOUT_SIDE, read_cutouts, stamp_name
from xsam_model.training.scenes.art.shapes import SHAPE_NAMES, draw_shape
from xsam_model.training.scenes.art.vocabulary import (
    curated_categories,
    everyday_names,
    is_core,
    is_held_out,
    lookalikes,
)
from xsam_model.training.scenes.scene import SceneConfig, make_scene
from xsam_model.training.scenes.source import scenes

TRAINED = [name for name in SHAPE_NAMES if not is_held_out(name)]
NEW = next(name for name in ("quoll", "tapir", "bongo") if not is_held_out(name))


def stamp(folder, name, text, side=120, alpha=None):
    pixels = np.zeros((side, side, 4), dtype=np.uint8)
    pixels[10:-10, 20:-20] = (200, 40, 10, 255)
    if alpha is not None:
        pixels[..., 3] = alpha
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(f"{text}\nde.utf8=Etwas.\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Assets of a few drawings and cut-outs; background pictures that the examples show, and others."""
    folder = tmp_path_factory.mktemp("assets")
    known = {category.name: category for category in curated_categories()}
    names = (*TRAINED, next(name for name in SHAPE_NAMES if is_held_out(name)))
    drawings = {(name, style): [draw_shape(name, style)] for name in names for style in ("flat", "outline")}
    gray = np.full((80, 80, 3), 90, dtype=np.uint8)
    train = next(name for name in sorted(art.SHOWN_IN_EXAMPLES) if not is_held_out(name))
    other = next(name for name in ("rocks", "cliff", "shore", "dune") if not is_held_out(name))
    held = next(f"held {i}" for i in range(99) if is_held_out(f"held {i}"))
    grounds = [Ground(name=name, pixels=gray) for name in (train, held)]
    save_assets(folder, [known[name] for name in names], drawings, grounds)
    photo = np.repeat(np.repeat(draw_shape(TRAINED[0], "flat"), 2, 0), 2, 1)
    photos = {(TRAINED[0], PHOTO_STYLE): [photo], (NEW, PHOTO_STYLE): [photo], (names[-1], PHOTO_STYLE): [photo]}
    save_assets(folder, [art.Category(name=NEW)], photos, [Ground(name=other, pixels=gray)], prefix=CUTOUTS)
    return folder


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("A Sumatran tiger.", "tiger"),
        ("A pair of cherries.", "cherries"),
        ("A \N{LEFT DOUBLE QUOTATION MARK}Stop\N{RIGHT DOUBLE QUOTATION MARK} sign. Stop here.", "stop sign"),
        ("A brown hen.", "chicken"),
        ("A mandarin orange.", "tangerine"),
        ("A hot air balloon.", "hot air balloon"),
        ("An otter (asleep).", "otter"),
        ("Venus\N{EM DASH}the second planet", "venus"),
        ("This shell is hundreds of years old!", ""),
        ("", ""),
    ],
)
def test_a_stamp_is_named_by_the_vocabulary_where_it_can_be(text, name):
    assert stamp_name(text, {category.name for category in curated_categories()}) == name


def test_only_photographs_with_a_name_and_an_outline_are_cut_out(tmp_path):
    stamps = tmp_path / "usr/share/tuxpaint/stamps"
    stamp(stamps / "animals/mammals", "tiger_sumatran", "A Sumatran tiger.")
    stamp(stamps / "animals/birds", "lark", "A lark.")
    stamp(stamps / "animals/birds/cartoon", "owl", "An owl.")
    stamp(stamps / "food", "small", "An apple.", side=60)
    stamp(stamps / "town", "whole", "A house.", alpha=255)
    stamp(stamps / "town", "nothing", "A house.", alpha=0)
    stamp(stamps / "town", "unnamed", "A long text about what a town may have been")
    new, found = read_cutouts(tmp_path)
    assert [(category.name, category.group) for category in new] == [("lark", "bird")]
    # People call a lark a bird.
    assert sorted(found) == [("bird", PHOTO_STYLE), ("lark", PHOTO_STYLE), ("tiger", PHOTO_STYLE)]
    assert found["bird", PHOTO_STYLE] == found["lark", PHOTO_STYLE]
    (tiger,) = found["tiger", PHOTO_STYLE]
    assert tiger.shape == (CUTOUT_SIDE, CUTOUT_SIDE, 4)
    # Trimmed to the object, which fills the longer side.
    assert (tiger[..., 3] > 127).any(1).all()
    assert (tiger[..., :3] <= tiger[..., 3:]).all()


def test_an_everyday_name_is_trained_and_never_stands_beside_its_kinds():
    known = {category.name for category in curated_categories()}
    for name, one in everyday_names().items():
        assert name not in known
        assert one.category.drawings
        assert not is_held_out(name)
        assert is_core(name)
        assert one.kinds <= lookalikes(name)
        assert all(name in lookalikes(kind) for kind in one.kinds)
    # A kind that shares a drawing need not be listed.
    assert "coffee" in everyday_names()["cup"].kinds
    assert "pine tree" in lookalikes("tree")
    assert "tree" not in lookalikes("flower")


def test_cutouts_stand_beside_drawings_and_are_loaded_only_if_asked_for(folder):
    drawn = SceneAssets.load(folder).pool("train")
    both = SceneAssets.load(folder, (*PARTS, f"{CUTOUTS}train", f"{CUTOUTS}test")).pool("train")
    assert drawn.photos == {}
    assert set(drawn.sprites) == set(TRAINED)
    # One of the cut-outs is of a held-out category, which training does not see.
    assert set(both.photos) == {TRAINED[0], NEW}
    assert {sprite.style for sprite in both.sprites[TRAINED[0]]} == {"flat", PHOTO_STYLE}
    assert [level.shape[0] for level in both.photos[NEW][0].levels] == [256, 128, 64, 32]


def test_a_share_of_the_objects_are_photographs_and_examples_are_no_backgrounds(folder):
    look = {"max_objects": 3, "photo_share": 1.0, "repeat_share": 0.0, "paint_share": 1.0, "unjudged_only": True}
    source = scenes("intseg", assets=str(folder), cutouts=True, name="photos", scene=look)
    assert source.name == "photos"
    made = [make_scene(seed, source.assets, config=source.scenes) for seed in range(20)]
    objects = [thing for scene in made for thing in scene.objects]
    assert {thing.style for thing in objects} == {PHOTO_STYLE}
    assert {thing.name for thing in objects} == {TRAINED[0], NEW}
    # Nobody paints a photograph red.
    assert len({thing.color for thing in objects}) <= 2
    grounds = {scene.ground for scene in made} - {"gradient"}
    assert grounds
    assert not grounds & art.SHOWN_IN_EXAMPLES
    assert {scene.ground for seed in range(20) if (scene := make_scene(seed, source.assets))} & art.SHOWN_IN_EXAMPLES


def test_objects_may_fill_the_canvas_and_stand_alone():
    assets = SceneAssets.builtin()
    config = SceneConfig(side_pixels=64, max_objects=5, alone_share=0.5, min_length=0.3, max_length=1.8, min_inside=0.4)
    made = [make_scene(seed, assets, config=config) for seed in range(50)]
    areas = [thing.mask.mean() for scene in made for thing in scene.objects]
    assert min(areas) < 0.05 < 0.6 < max(areas)
    assert sum(len(scene.objects) == 1 for scene in made) > 0.4 * len(made)
    with pytest.raises(ValueError, match="max_length <= 2"):
        SceneConfig(max_length=2.5)
    with pytest.raises(ValueError, match="alone_share must be in"):
        SceneConfig(alone_share=1.5)


def test_more_photographs_are_backgrounds_where_only_prompts_are_asked(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    names = [next(f"{kind}{i}.png" for i in range(99) if not is_held_out(f"photos/{kind}{i}.png")) for kind in "ab"]
    for name in names:
        Image.fromarray(np.full((600, 900, 3), 30, dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "notes.txt").write_text("no picture")
    options = {"assets": str(folder), "cutouts": True, "scene": {"stuff_share": 0.0}}
    source = scenes("intseg", backgrounds=str(tmp_path), **options)
    again = pickle.loads(pickle.dumps(source))
    for one in (source, again):
        made = {make_scene(seed, one.assets, config=one.scenes).ground for seed in range(40)}
        assert made >= {f"photos/{name}" for name in names}
    assert {ground.pixels.shape for ground in source.assets.grounds[-2:]} == {(341, 512, 3)}
    with pytest.raises(ValueError, match="ovseg cannot be asked there"):
        scenes("ovseg", backgrounds=str(tmp_path), **options)
    with pytest.raises(FileNotFoundError, match="holds no photographs"):
        scenes("intseg", backgrounds=str(folder), **options)


@pytest.mark.parametrize("gpl", [True, False])
def test_what_is_under_the_gpl_can_be_left_out_and_everyday_names_then_have_drawings_alone(tmp_path, monkeypatch, gpl):
    drawing = draw_shape(TRAINED[0], "flat")
    both = {name: [drawing] for name in ("flat", "noto")}
    asked = []
    monkeypatch.setattr(downloads, "fetch", lambda root: [])
    monkeypatch.setattr(downloads, "fetch_debian", lambda root, packages: asked.extend(packages) or [])
    monkeypatch.setattr(downloads, "_unpacked", lambda root, package: root)
    monkeypatch.setattr(downloads, "with_synonyms", lambda categories, data: categories)
    monkeypatch.setattr(downloads, "read_grounds", lambda root: [])
    few = [one for one in curated_categories() if one.name in TRAINED]
    monkeypatch.setattr(downloads, "curated_categories", lambda: few)
    drawn = {one.name: both for one in few} | dict.fromkeys(everyday_names(), both)
    monkeypatch.setattr(
        downloads,
        "draw_sprites",
        lambda categories, *_: {(one.name, style): drawn[one.name][style] for one in categories for style in both},
    )
    monkeypatch.setattr(downloads.cutouts, "read_cutouts", lambda root: ([], {(TRAINED[0], PHOTO_STYLE): [drawing]}))
    monkeypatch.setattr(downloads.cutouts, "read_photographs", lambda root: [])
    downloads.prepare_assets(tmp_path / "assets", tmp_path, photographs=True, gpl=gpl)
    found = SceneAssets.load(tmp_path / "assets", (*PARTS, *(f"{CUTOUTS}{part}" for part in PARTS)))
    assert {sprite.style for sprite in found.sprites} == {"flat", "noto", *([PHOTO_STYLE] if gpl else [])}
    assert set(everyday_names()) <= set(found.categories)
    assert bool(asked) == gpl
