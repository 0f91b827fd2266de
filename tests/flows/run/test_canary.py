"""A run labels a sample of its images first, and the rest only if the sample is what was asked for."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.layout import approval_name, canary_name
from pipelines.planning.plan import read_plan
from pipelines.query.database import open_database
from pipelines.storage.store import Store, open_store
from tests.support.commands import Ended, command
from tests.support.fakes import BrightPredictor, half_bright, png

_CONFIG = """
pool.runner = "in_process"
plan.images_per_shard = 20
canary.images = 32
canary.then = "{then}"
"""


class Life:
    """An output whose first run was of bright pictures, and pictures that come later."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output, self.predictor = folder, folder / "output", BrightPredictor()
        self.then("stop")
        self.add("a", 100)
        assert self.run().code == 0

    @property
    def store(self) -> Store:
        return open_store(str(self.output))

    def then(self, then: str, more: str = "") -> None:
        (self.folder / "run.toml").write_text(_CONFIG.format(then=then) + more)

    def add(self, name: str, count: int, bright_columns: int = 6) -> None:
        (self.folder / "photos").mkdir(exist_ok=True)
        for number in range(count):
            path = self.folder / "photos" / f"{name}-{number:03d}.png"
            path.write_bytes(png(half_bright(width=20 + number % 9, bright_columns=bright_columns)))

    def run(self, *more: object) -> Ended:
        places = ("--source", self.folder / "photos", "--output", self.output, "--config", self.folder / "run.toml")
        return self("run", *places, "--categories", "bright", "--incremental", "--no-prefect", *more)

    def __call__(self, *arguments: object) -> Ended:
        return command(*arguments, predictor=self.predictor)

    def sql(self, query: str) -> list[Any]:
        with open_database(self.store) as database:
            return database.execute(query).fetchall()

    def labeled(self) -> list[str]:
        return [name for name, *_ in self.sql("SELECT image_id FROM all_images WHERE run_id = 'update-2' ORDER BY 1")]


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path)


def test_a_first_run_without_limits_goes_through_and_every_image_is_labeled_once(life: Life) -> None:
    assert life.sql("SELECT count(*), count(DISTINCT image_id) FROM all_images") == [(100, 100)]
    (run_id,) = (name for (name,) in life.sql("SELECT run_id FROM runs"))
    plan = read_plan(life.store, run_id)
    assert plan is not None
    assert len(plan.canary_shards) == 32
    assert life.store.read_json(canary_name(run_id))["alarms"] == []
    assert re.search(r"canary +passed by 32 images", life("status", life.output).out)
    assert life("verify", life.output).code == 0


def test_images_unlike_the_last_runs_stop_the_run_and_an_approval_lets_it_go_on(life: Life) -> None:
    life.add("b", 90, bright_columns=0)
    stopped = life.run()
    assert stopped.code == 1
    assert "not as expected: mean best score of an image: 0.00 in 32 images, 0.25 in run run-" in stopped.out
    assert "xsam-label approve" in stopped.out
    first = life.labeled()
    assert len(first) == 32
    # Spread over what was to be labeled.
    numbers = [int(name[2:5]) for name in first]
    assert max(after - before for before, after in zip([0, *numbers], [*numbers, 89], strict=True)) <= 4
    told = life("status", life.output)
    assert "not as expected: mean best score of an image" in told.out
    assert "approve lets the run go on" in json.loads(life("status", life.output, "--json").out)["run"]["canary"]
    # Without an approval nothing more is labeled, however often it is tried.
    life.predictor.calls.clear()
    assert life.run().code == 1
    assert life.predictor.calls == []
    approved = life("approve", life.output)
    assert (approved.code, "run update-2 may go on" in approved.out) == (0, True)
    assert life("approve", life.output).is_refusal
    assert life.run().code == 0
    assert len(life.labeled()) == len(set(life.labeled())) == 90
    assert life("verify", life.output).code == 0
    assert life.store.exists(approval_name("update-2"))
    assert life("vacuum", life.output, "--older-than", 0).code == 0
    assert life.store.exists(approval_name("update-2"))


def test_a_run_that_was_wrong_is_taken_back_by_removing_its_three_folders(life: Life) -> None:
    before = life.sql("SELECT image_id, score FROM annotations ORDER BY ALL")
    life.add("b", 90, bright_columns=0)
    assert life.run().code == 1
    for folder in ("images", "annotations", "_runs"):
        shutil.rmtree(life.output / folder / "update-2")
    assert life("verify", life.output).code == 0
    assert life.sql("SELECT image_id, score FROM annotations ORDER BY ALL") == before
    life.add("b", 90)
    assert life.run().code == 0
    assert life.sql("SELECT count(*), count(DISTINCT image_id), max(status) FROM images") == [(190, 190, "ok")]
    assert life("verify", life.output).code == 0


def test_images_like_the_last_runs_are_labeled_without_a_question(life: Life) -> None:
    life.add("b", 90)
    ended = life.run()
    assert ended.code == 0
    assert "are like those of run" in ended.out
    assert len(life.labeled()) == 90


def test_a_run_that_waits_goes_on_once_it_is_approved(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.run.canary._LOOK_EVERY_S", 0.05)
    life.then("wait")
    life.add("b", 90, bright_columns=0)

    def approve() -> None:
        deadline = time.monotonic() + 60
        while not life.store.exists(canary_name("update-2")) and time.monotonic() < deadline:
            time.sleep(0.05)
        life.store.create(approval_name("update-2"), b"{}")

    person = threading.Thread(target=approve)
    person.start()
    ended = life.run()
    person.join()
    assert ended.code == 0
    assert "the rest waits" in ended.out
    assert len(life.labeled()) == 90


def test_a_run_that_is_only_warned_goes_on_and_its_summary_says_what_has_changed(life: Life) -> None:
    life.then("warn")
    life.add("b", 90, bright_columns=0)
    ended = life.run()
    assert ended.code == 0
    assert "are not as expected" in ended.out
    summary = life.store.read_json("_runs/update-2/summary.json")
    assert any(one.startswith("unlike the last run: mean best score of an image") for one in summary["warnings"])
    assert len(life.labeled()) == 90


def test_limits_hold_without_a_run_before_and_a_canary_can_be_asked_for_later(life: Life, tmp_path: Path) -> None:
    life.output = tmp_path / "second"
    life.then("stop", "canary.min_masks_per_image = 3.0\n")
    stopped = life.run()
    assert stopped.code == 1
    assert "ovseg:bright: masks per image: 1.00 in 32 images, at least 3.00 allowed" in stopped.out
    # As configured now, which is no part of what a run asks.
    life.then("stop", "canary.min_masks_per_image = 1.0\n")
    assert life.run().code == 0
    assert life.sql("SELECT count(*), count(DISTINCT image_id) FROM all_images") == [(100, 100)]


def test_too_few_images_for_a_canary_are_labeled_at_once(life: Life) -> None:
    life.add("b", 40, bright_columns=0)
    ended = life.run()
    assert ended.code == 0
    assert not life.store.exists(canary_name("update-2"))
    assert "unlike the last run" in ended.out
