"""`xsam-label relabel`, and the loop that it is a part of: label, export, correct, import, relabel, diff."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.masks import rle
from pipelines.types import Answer, Image, Prompt
from tests.flows.commands.test_importing import Life
from tests.support.fakes import BrightPredictor


class BlindPredictor(BrightPredictor):
    """Another model, which finds nothing."""

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        return [Answer() for _ in super().predict(images, prompts)]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    life = Life(tmp_path)
    assert life.run().code == 0
    return life


def test_a_dry_run_tells_how_many_images_are_named_and_writes_nothing(life: Life) -> None:
    before = life.files()
    ended = life("relabel", life.output, "--where", "num_annotations > 0", "--dry-run")
    assert ended.code == 0, ended
    assert "run relabel-" in ended.out
    lines = {line.split()[0]: line.split()[1:] for line in ended.out.splitlines() if line.split()}
    assert lines["images"][0] == "2,"
    assert life.files() == before


def test_images_are_labeled_again_and_the_command_says_which_run_it_was(life: Life) -> None:
    ended = life("relabel", life.output, "--images-where", "image_id = 'a.png'", "--no-prefect")
    assert ended.code == 0, ended
    assert "run relabel-" in ended.out
    assert "1 image in 1 shard" in ended.out
    (run_id,) = (run for run, relabeled in life.sql("SELECT run_id, relabeled FROM runs") if relabeled)
    assert life.sql(f"SELECT image_id FROM images WHERE run_id = '{run_id}'") == [("a.png",)]
    status = life("status", life.output)
    assert "(again: where image_id = ?" in status.out
    again = life("relabel", life.output, "--where", "image_id = 'a.png'", "--no-prefect")
    assert again.code == 0
    assert "has just asked the same of the same 1 image" in again.out
    dry = life("relabel", life.output, "--where", "image_id = 'a.png'", "--dry-run")
    assert "nothing would be labeled" in dry.out


def test_a_condition_that_names_nothing_says_so_and_one_that_is_none_is_refused(life: Life) -> None:
    before = life.files()
    nothing = life("relabel", life.output, "--where", "width > 9000", "--no-prefect")
    assert (nothing.code, "no image of" in nothing.out, "nothing is labeled again" in nothing.out) == (0, True, True)
    for where, told in (("widht > 1", "num_annotations"), ("width >", "--where is no SQL condition")):
        ended = life("relabel", life.output, "--where", where, "--no-prefect")
        assert ended.is_refusal, ended
        assert told in ended.errors
    assert life("relabel", life.folder / "none", "--where", "true", "--no-prefect").is_refusal
    assert life("relabel", life.output).code == 2
    assert life.files() == before


def test_the_loop_label_export_correct_import_relabel_diff(tmp_path: Path) -> None:
    """A person corrects one of two pictures; another model labels both again; the correction stays, and diff tells."""
    life = Life(tmp_path)
    assert life.run().code == 0
    exported, corrected = tmp_path / "masks.json", tmp_path / "corrected.json"
    assert life("export", life.output, "--to", exported).code == 0
    document = json.loads(exported.read_text())
    number = next(image["id"] for image in document["images"] if image["file_name"] == "a.png")
    truth = np.zeros((16, 20), np.bool_)
    truth[:, :4] = True  # where the model found six columns
    for one in document["annotations"]:
        if one["image_id"] == number:
            one["segmentation"] = rle.encode(truth).to_coco()
    corrected.write_text(json.dumps(document))
    assert life("import", life.output, corrected).code == 0

    what_was_corrected = life("diff", life.output, "--json")
    assert what_was_corrected.code == 0, what_was_corrected
    told = json.loads(what_was_corrected.out)
    assert (told["images"]["compared"], told["total"]["moved"], told["total"]["kept"]) == (1, 1, 0)
    assert any("holds corrections by people" in note for note in told["notes"])

    life.predictor = BlindPredictor()
    how = ("--no-prefect", "--config", _same_question(life))
    again = life("relabel", life.output, "--where", "num_annotations > 0", *how)
    assert again.code == 0, again
    assert "people have corrected 1 of these images" in again.out + again.errors
    assert life.sql("SELECT image_id, source FROM annotations ORDER BY 1") == [("a.png", "human")]
    assert life("diff", life.output, "--to", tmp_path / "changes.parquet").code == 0
    rows = pq.read_table(tmp_path / "changes.parquet").to_pylist()
    assert [(row["image_id"], row["change"], row["source_before"]) for row in rows] == [
        ("b.png", "lost", "model")
    ]  # fmt: skip
    over = life("relabel", life.output, "--where", "image_id = 'a.png'", "--over-corrections", "--no-prefect")
    assert over.code == 0
    assert "take the place of theirs" in over.out + over.errors
    assert life.sql("SELECT count(*) FROM annotations") == [(0,)]


def _same_question(life: Life) -> Path:
    """A config that asks the same as the first run."""
    path = life.folder / "again.toml"
    path.write_text('categories = ["bright"]\npool.runner = "in_process"\nlimits.max_quarantined_share = 1.0\n')
    return path
