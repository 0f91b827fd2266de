"""Runs with tiles: rows are those of the whole picture, and retry, update and relabel ask as the run has asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from pipelines.masks import rle
from pipelines.masks.spans import Spans
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from pipelines.table.verify import verify
from pipelines.types import Answer, Image, PredictionError, Prompt, Reason, Rle
from tests.support.commands import Ended, command
from tests.support.drivers import REPOSITORY, Command
from tests.support.fakes import png
from tests.support.tiled import ColorPredictor, codes_of, paint

LARGE, SMALL = paint((150, 190), count=40, longest=90, seed=6), paint((60, 50), count=6, longest=20, seed=2)


class Life:
    """An output whose runs are of a large picture and a small one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.predictor = folder, folder / "output", ColorPredictor()
        (folder / "photos").mkdir()
        for name, pixels in (("large.png", LARGE), ("small.png", SMALL)):
            (folder / "photos" / name).write_bytes(png(pixels))
        self.tiles(64)

    def tiles(self, size: int, more: str = "") -> None:
        (self.folder / "run.toml").write_text(
            f'pool.runner = "in_process"\ntiles = {{ size = {size}, overlap = 32 }}\n'
            f"model.max_masks_per_image = 1000\n{more}"
        )

    def run(self, *more: object) -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.output, "--config", self.folder / "run.toml")
        return self("run", *places, "--categories", "thing,other", "--no-prefect", *more)

    def __call__(self, *arguments: object) -> Ended:
        self.predictor.shown.clear()
        ended = command(*arguments, predictor=self.predictor)
        assert ended.code == 0, ended
        return ended

    def sql(self, query: str) -> list[Any]:
        with open_database(open_store(str(self.output))) as database:
            return database.execute(query).fetchall()

    def masks(self, image_id: str) -> set[str]:
        return {
            counts
            for (counts,) in self.sql(f"SELECT segmentation.counts FROM annotations WHERE image_id = '{image_id}'")
        }


def every_color(pixels: np.ndarray) -> set[str]:
    codes = codes_of(pixels)
    return {rle.encode(codes == code).counts for code in np.unique(codes).tolist() if code}


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_rows_are_those_of_the_whole_picture_and_counts_for_each_prompt_are_theirs(life: Life) -> None:
    life.run()
    assert (life.masks("large.png"), life.masks("small.png")) == (every_color(LARGE), every_color(SMALL))
    assert {(150, 190), (60, 50)} == set(
        life.sql("SELECT DISTINCT segmentation.size[1], segmentation.size[2] FROM annotations")
    )
    counted = life.sql("SELECT p.n FROM (SELECT unnest(per_prompt) AS p FROM images WHERE image_id = 'large.png')")
    assert counted == [(len(every_color(LARGE)),)] * 2
    assert life.sql("SELECT count(*) FROM annotations WHERE area <> bbox_w * bbox_h AND area > bbox_w * bbox_h") == [
        (0,)
    ]
    (run_id,) = (run for (run,) in life.sql("SELECT run_id FROM runs"))
    assert verify(open_store(str(life.output)), run_id).ok


def test_an_update_asks_again_in_other_tiles_and_nothing_in_the_same(life: Life) -> None:
    life.run()
    life.run("--incremental")
    assert life.predictor.shown == []
    life.tiles(80)
    life.run("--incremental")
    assert (80, 80) in life.predictor.shown
    assert life.masks("large.png") == every_color(LARGE)


def test_relabel_asks_in_the_tiles_of_the_run(life: Life) -> None:
    life.run()
    life("relabel", life.output, "--images-where", "image_id = 'large.png'", "--no-prefect")
    assert set(life.predictor.shown) == {(64, 64), (51, 64)}
    assert life.masks("large.png") == every_color(LARGE)


def test_a_picture_that_failed_in_one_tile_is_quarantined_and_retried_in_tiles(life: Life) -> None:
    class Failing(ColorPredictor):
        def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
            if any(image.size_hw == (64, 64) and (image.pixels == LARGE[:64, :64]).all() for image in images):
                raise PredictionError(Reason.OUT_OF_MEMORY, "no room")
            return super().predict(images, prompts)

    life.predictor = Failing()
    life.run()
    assert life.sql("SELECT image_id, reason, error FROM images WHERE status = 'quarantined'") == [
        ("large.png", "out_of_memory", "in the tile at x 0, y 0: no room")
    ]
    life.predictor = ColorPredictor()
    life("retry", life.output, "--no-prefect")
    assert life.masks("large.png") == every_color(LARGE)


def test_the_first_images_of_a_canary_are_asked_in_tiles_too(life: Life) -> None:
    for number in range(70):
        (life.folder / "photos" / f"{number:03d}.png").write_bytes(png(LARGE[:66, :64]))
    life.tiles(64, "canary.images = 32\n")
    life.run()
    assert life.predictor.shown.count((64, 64)) > 70
    assert (66, 64) not in life.predictor.shown
    assert life.sql("SELECT count(*) FROM images WHERE status = 'ok'") == [(72,)]


def test_the_limit_of_pixels_holds_with_tiles_too(life: Life) -> None:
    life.tiles(64, "label.decode.max_image_pixels = 10000\n")
    life.run()
    assert life.sql("SELECT image_id, status, reason FROM images ORDER BY 1") == [
        ("large.png", "quarantined", "too_many_pixels"), ("small.png", "ok", None),
    ]  # fmt: skip


def test_tiles_smaller_than_the_canvas_of_the_model_are_refused_before_anything_is_written(
    cli: Command, life: Life
) -> None:
    life.tiles(100)
    config = ("--config", life.folder / "run.toml", "--source", life.folder / "photos", "--output", life.output)
    for name in ("plan", "run"):
        ended = cli(name, *config, "--categories", "cat")
        assert ended.code == 2
        assert "tiles.size is 100, and the model sees a picture on 128 x 128 pixels" in ended.err
        assert ended.err.count("error") == 1
    assert not life.output.exists()


def test_the_included_model_finds_in_tiles_what_shrinking_loses(cli: Command, tmp_path: Path) -> None:
    import torch

    torch.set_num_threads(1)  # as a replica of one CPU has it
    truth = mosaic(tmp_path / "photos", 2)
    names = ",".join(sorted({name for name, _ in truth}))
    found = {}
    for tiles in ("", "tiles = { size = 256, overlap = 64 }\n"):
        (tmp_path / "run.toml").write_text(f'pool.runner = "in_process"\n{tiles}')
        output = tmp_path / ("tiled" if tiles else "untiled")
        places = ("--source", tmp_path / "photos", "--output", output, "--config", tmp_path / "run.toml")
        assert cli("run", *places, "--categories", names, "--no-prefect").code == 0
        query = "SELECT category_name, segmentation FROM annotations WHERE score >= 0.3"
        with open_database(open_store(str(output))) as database:
            masks = [(name, Rle.from_coco(mask)) for name, mask in database.execute(query).fetchall()]
        found[output.name] = sum(
            any(rle.iou([mask], [wanted])[0, 0] >= 0.5 for of_name, mask in masks if of_name == name)
            for name, wanted in truth
        )
    assert found["tiled"] >= len(truth) / 2
    assert found["tiled"] > found["untiled"]


def mosaic(folder: Path, side: int) -> list[tuple[str, Rle]]:
    """Write a picture of ``side`` x ``side`` of the example's scenes, and return the names and masks that it shows."""
    folder.mkdir()
    scenes = REPOSITORY / "examples" / "scenes"
    told = json.loads((scenes / "instances.json").read_text())
    names = {category["id"]: category["name"] for category in told["categories"]}
    picture, truth = PilImage.new("RGB", (256 * side, 256 * side)), []
    for number, image in enumerate(told["images"][: side * side]):
        top, left = 256 * (number // side), 256 * (number % side)
        picture.paste(PilImage.open(scenes / image["file_name"]), (left, top))
        for one in told["annotations"]:
            if one["image_id"] == image["id"]:
                mask = Spans.of(rle.from_runs((256, 256), one["segmentation"]["counts"]))
                placed = mask.placed((top, left), (256 * side, 256 * side))
                truth.append((names[one["category_id"]], placed.to_rle()))
    picture.save(folder / "mosaic.png")
    return truth
