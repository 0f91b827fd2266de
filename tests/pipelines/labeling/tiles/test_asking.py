"""Large pictures asked in tiles: what comes out is what would be found if the model saw all of it at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pydantic import ValidationError

from pipelines.labeling import shard
from pipelines.labeling.isolation import Asked, ModelClock
from pipelines.labeling.tiles.asking import Tiling
from pipelines.labeling.tiles.config import TileConfig
from pipelines.masks import rle
from pipelines.types import (
    Answer,
    Image,
    ImagePrediction,
    ImageRef,
    PredictionError,
    Prompt,
    Reason,
    Region,
    RejectedPrompt,
    Status,
)
from tests.support.fakes import sentence, text_prompt
from tests.support.tiled import ColorPredictor, codes_of, color, paint

THING = text_prompt("thing")
TILES = TileConfig(size=64, overlap=32)


def image_of(pixels: np.ndarray) -> Image:
    return Image(ref=ImageRef(image_id="large.png", uri="large.png"), pixels=pixels)


def ask(
    pixels: np.ndarray, prompts: Sequence[Prompt], predictor: Any, tiles: TileConfig = TILES, max_masks: int = 1000
) -> Asked:
    tiling = Tiling(tiles=tiles, max_masks=max_masks)
    (answer,) = tiling.ask([image_of(pixels)], [prompts], predictor, ModelClock(), batch_size=4)
    return answer


def untiled(pixels: np.ndarray) -> set[str]:
    codes = codes_of(pixels)
    return {rle.encode(codes == code).counts for code in np.unique(codes).tolist() if code}


def shapes(asked: Asked) -> list[str]:
    return [mask.segmentation.counts for mask in asked.answer.masks]


@pytest.mark.parametrize("seed", range(12))
def test_objects_come_out_once_and_whole_wherever_the_seams_are(seed: int) -> None:
    # Some are longer than a tile, and put together from several.
    pixels = paint((150 + seed, 190 - seed), count=40, longest=100, seed=seed)
    predictor = ColorPredictor()
    found = shapes(ask(pixels, [THING], predictor))
    assert len(found) == len(set(found))
    # What is blurred by shrinking, or less than the predictor sees in the view that has most of it, may be missing.
    assert set(found) == untiled(pixels)
    assert set(predictor.shown[:-1]) == {(64, 64)}
    assert max(predictor.shown[-1]) == 64


def test_an_object_over_a_seam_has_the_score_box_and_area_of_the_picture() -> None:
    pixels = np.zeros((64, 200, 3), np.uint8)
    pixels[20:30, 40:130] = color(7)
    (mask,) = ask(pixels, [THING], ColorPredictor()).answer.masks
    assert (mask.bbox_xywh, mask.area, mask.segmentation.size_hw) == ((40, 20, 90, 10), 900, (64, 200))
    assert mask.score == 640 / 64**2, "the best of its tiles' and the whole's"
    assert mask.mask_score == 0.5


def test_small_objects_that_shrinking_loses_are_found() -> None:
    pixels = np.zeros((400, 400, 3), np.uint8)
    pixels[100:104, 200:204] = color(7)
    shrunk = ask(pixels, [THING], ColorPredictor(), TileConfig(size=399, overlap=1))
    assert shapes(ask(pixels, [THING], ColorPredictor())) == shapes(shrunk) == list(untiled(pixels))
    pictures = ColorPredictor().predict([image_of(pixels[::8, ::8].copy())], [[THING]])
    assert pictures[0].masks == ()


def test_a_picture_no_larger_than_a_tile_is_asked_as_it_is_together_with_others() -> None:
    small, large = paint((64, 64), 4, 20), paint((65, 64), 4, 20)
    predictor = ColorPredictor()
    tiling = Tiling(tiles=TILES, max_masks=10)
    images = [image_of(small), image_of(large), image_of(small)]
    first, second, third = tiling.ask(images, [[THING]] * 3, predictor, ModelClock(), batch_size=8)
    assert predictor.shown == [(64, 64), (64, 64), (64, 64), (64, 64), (64, 63)]
    assert set(shapes(first)) == set(shapes(third)) == untiled(small)
    assert set(shapes(second)) == untiled(large)


@pytest.mark.parametrize("task", ["ovseg_semantic", "ovseg_panoptic"])
def test_maps_give_every_pixel_once(task: Any) -> None:
    pixels = paint((150, 190), count=30, longest=90, seed=3)
    ground, thing = (
        dataclasses.replace(
            text_prompt(name, number), prompt_id=f"{task}:{name}", task=task, is_thing=bool(number) or None
        )
        for number, name in enumerate(["ground", "thing"])
    )
    prompts = [ground, thing] if task == "ovseg_semantic" else [thing]
    predictor = ColorPredictor()
    masks = ask(pixels, prompts, predictor).answer.masks
    covered = np.sum([rle.decode(mask.segmentation) for mask in masks], axis=0)
    assert (covered == 1).all()
    if task == "ovseg_semantic":
        by_prompt = {mask.prompt.prompt_id: mask.segmentation for mask in masks}
        assert by_prompt == {
            ground.prompt_id: rle.encode(codes_of(pixels) == 0),
            thing.prompt_id: rle.encode(codes_of(pixels) > 0),
        }
    else:
        assert untiled(pixels) <= {mask.segmentation.counts for mask in masks}
    assert (64, 51) not in predictor.shown


def test_what_is_about_the_whole_picture_is_asked_of_it_alone() -> None:
    chat, phrase = sentence("chat", "How large?"), sentence("refseg", "the thing on the left")
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[32:96, 64:160] = color(7)
    predictor = ColorPredictor()
    answer = ask(pixels, [chat, phrase], predictor).answer
    assert predictor.shown == [(32, 64)]
    assert [caption.text for caption in answer.captions] == ["(32, 64)"]
    (mask,) = answer.masks
    assert (mask.prompt, mask.segmentation.size_hw) == (phrase, (128, 256))
    assert rle.iou([mask.segmentation], [rle.encode(codes_of(pixels) > 0)])[0, 0] > 0.8


def region(prompt_id: str, task: Any, kind: Any, *coordinates: float) -> Prompt:
    where = Region(kind=kind, coordinates=coordinates)
    return Prompt(prompt_id=prompt_id, task=task, text="", category_id=0, category_name="x", region=where, source_row=2)


@pytest.mark.parametrize("task", ["intseg", "vgdseg"])
def test_a_region_is_asked_where_there_is_room_around_it_and_keeps_its_place(task: Any) -> None:
    pixels = paint((300, 300), count=50, longest=14, seed=5)
    codes = codes_of(pixels)
    ys, xs = np.nonzero(codes)
    for place in range(0, len(ys), len(ys) // 25):
        y, x = int(ys[place]), int(xs[place])
        asked, predictor = region("r", task, "point", x, y), ColorPredictor()
        (mask,) = ask(pixels, [asked], predictor).answer.masks
        assert (mask.prompt, mask.segmentation) == (asked, rle.encode(codes == codes[y, x]))
        assert predictor.shown == [(64, 64), (64, 64)]
        (in_tile,), _ = predictor.asked
        assert in_tile.region is not None
        assert all(
            8 <= at <= 56 or edge
            for at, edge in zip(in_tile.region.coordinates, (x < 8 or x > 292, y < 8 or y > 292), strict=True)
        )


def test_a_region_larger_than_a_tile_is_asked_of_the_whole() -> None:
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[50:250, 50:250] = color(7)
    predictor = ColorPredictor()
    (mask,) = ask(pixels, [region("r", "intseg", "box", 50, 50, 200, 200)], predictor).answer.masks
    assert predictor.shown == [(64, 64)]
    assert rle.iou([mask.segmentation], [rle.encode(codes_of(pixels) > 0)])[0, 0] > 0.95


def test_an_object_that_its_tile_cuts_is_that_of_the_whole() -> None:
    pixels = np.zeros((300, 300, 3), np.uint8)
    pixels[50:250, 50:250] = color(7)
    (mask,) = ask(pixels, [region("r", "intseg", "point", 150, 150)], ColorPredictor()).answer.masks
    assert rle.iou([mask.segmentation], [rle.encode(codes_of(pixels) > 0)])[0, 0] > 0.95


def test_masks_beyond_the_most_of_a_picture_are_left_out_worst_first() -> None:
    pixels = paint((150, 190), count=40, longest=30)
    every, some = (ask(pixels, [THING], ColorPredictor(), max_masks=count).answer.masks for count in (1000, 5))
    assert len(every) > 5
    assert list(some) == sorted(every, key=lambda mask: -mask.score)[:5]


def test_a_picture_fails_with_its_first_tile_that_fails() -> None:
    class Failing(ColorPredictor):
        def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
            if any((image.pixels == color(7)).all() for image in images):
                raise PredictionError(Reason.OUT_OF_MEMORY, "too bright")
            return super().predict(images, prompts)

    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[60:, 60:] = color(7)
    predictor = Failing()
    asked = ask(pixels, [THING], predictor)
    assert (asked.reason, asked.error, asked.answer) == (
        Reason.OUT_OF_MEMORY, "in the tile at x 82, y 82: too bright", Answer(),
    )  # fmt: skip
    assert len(predictor.shown) < 25


def test_a_prompt_is_rejected_only_if_no_view_could_be_asked() -> None:
    class Refusing(ColorPredictor):
        def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
            return [
                dataclasses.replace(
                    answer,
                    rejected=tuple(
                        RejectedPrompt.of(one, "large.png", "no")
                        for one in asked
                        if one.prompt_id == "never" or (one.prompt_id == "once" and len(self.shown) % 2)
                    ),
                )
                for answer, asked in zip(super().predict(images, prompts), prompts, strict=True)
            ]

    pixels = paint((150, 190), count=10, longest=30)
    prompts = [region(name, "vgdseg", "point", 20, 20) for name in ("never", "once")]
    assert [one.prompt_id for one in ask(pixels, prompts, Refusing()).answer.rejected] == ["never"]


@pytest.mark.parametrize(
    ("size", "overlap", "words"),
    [(0, 1, "size is 0; allowed: 1 or more"), (64, 64, "overlap is 64; allowed: 1 to 32"), (64, 0, "overlap is 0")],
)
def test_tiles_that_cannot_be_joined_are_refused(size: int, overlap: int, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TileConfig(size=size, overlap=overlap)


def label(path: Path) -> ImagePrediction:
    job = shard.LabelJob(run_id="run-1", prompts=(THING,), tiling=Tiling(tiles=TILES, max_masks=1000))
    ref = ImageRef(image_id=path.name, uri=str(path), num_bytes=path.stat().st_size)
    (found,) = shard.label_images([ref], job, ColorPredictor(), ModelClock())
    return found


def test_a_tiff_is_labeled_without_being_decoded_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = paint((150, 190), count=40, longest=90, seed=6)
    tifffile.imwrite(tmp_path / "large.tif", pixels, tile=(32, 48), compression="deflate", photometric="rgb")
    monkeypatch.setattr(shard, "decode_image", lambda *_: pytest.fail("it was decoded as a whole"))
    found = label(tmp_path / "large.tif")
    assert (found.status, found.size_hw) == (Status.OK, (150, 190))
    assert {mask.segmentation.counts for mask in found.masks} == untiled(pixels)


def test_a_tiff_of_which_one_part_is_damaged_is_quarantined_as_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, paint((150, 190), 40, 90), tile=(32, 48), compression="deflate", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        start, count = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    data = path.read_bytes()
    path.write_bytes(data[:start] + b"\x55" * count + data[start + count :])
    found = label(path)
    assert (found.status, found.reason, found.stage) == (Status.QUARANTINED, Reason.CORRUPT, "decode")


@pytest.mark.parametrize(
    ("error", "reason"), [(MemoryError(), Reason.OUT_OF_MEMORY), (KeyError("x"), Reason.MODEL_FAILED)]
)
def test_a_picture_whose_tiles_cannot_be_joined_fails_alone(
    error: Exception, reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipelines.labeling.tiles.asking.join_instances", fail)
    images = [image_of(paint(size, count=3, longest=20, seed=1)) for size in ((200, 200), (60, 60))]
    tiling = Tiling(tiles=TILES, max_masks=10)
    large, small = tiling.ask(images, [[THING], [THING]], ColorPredictor(), ModelClock(), batch_size=4)
    assert large.reason is reason
    assert small.reason is None
    assert small.answer.masks
