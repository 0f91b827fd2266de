"""Quarantined images are labeled again as a run of their own, and readers see one row for each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.config import ConfigError, parse_config
from flows.run import engine
from flows.run.observer import Silent
from flows.run.retry import broken_retries, retry_configs, runs_to_retry
from flows.run.summary import RunSummary
from pipelines.planning.plan import retries_by_run
from pipelines.query.database import open_arrow
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from pipelines.types import Answer, Image, PredictionError, Predictor, Prompt, Reason
from tests.reliability.small_run import RUN, SmallRun, as_driver, run
from tests.support.documents import change_document
from tests.support.fakes import BrightPredictor, half_bright, png, write_images


class ScarcePredictor(BrightPredictor):
    """Runs out of memory over certain images."""

    def __init__(self, too_large: Sequence[str]) -> None:
        super().__init__()
        self._too_large = set(too_large)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        if any(image.ref.image_id in self._too_large for image in images):
            raise PredictionError(Reason.OUT_OF_MEMORY, "no memory left")
        return super().predict(images, prompts)


@pytest.fixture
def labeled(tmp_path: Path) -> SmallRun:
    """A run of ten images: one is broken, one is missing its pixels, two were too large for the model."""
    source = tmp_path / "images"
    write_images(source, 10)
    (source / "0001.png").write_bytes(b"no image")
    (source / "0005.png").write_bytes((source / "0005.png").read_bytes()[:50])
    small = SmallRun(source=str(source), output=str(tmp_path / "out"))
    assert run(small, ScarcePredictor(["0003.png", "0008.png"])).ledger["quarantined"] == 4
    return small


def retry(
    small: SmallRun, *reasons: str, predictor: Predictor | None = None, **overrides: Mapping[str, Any]
) -> RunSummary | None:
    configs = retry_configs(small.output, None, reasons, overrides)
    if not configs:
        return None
    (config,) = configs
    with as_driver(predictor or BrightPredictor()):
        return engine.run_directly(config, Silent())


def rows(small: SmallRun) -> dict[str, dict[str, Any]]:
    found = open_arrow(small.store(), "FROM images").read_all().to_pylist()
    assert len(found) == len({row["image_id"] for row in found}) == 10
    return {row["image_id"]: row for row in found}


def test_only_images_with_the_reason_are_asked_again_and_their_rows_take_the_place_of_the_old(
    labeled: SmallRun,
) -> None:
    before, predictor = rows(labeled), BrightPredictor()
    summary = retry(labeled, "out_of_memory", predictor=predictor)
    assert summary is not None
    assert summary.ok
    assert summary.run_id == f"{RUN}-retry-1"
    assert sorted(name for call in predictor.calls for name in call) == ["0003.png", "0008.png"]
    after = rows(labeled)
    assert [after[name]["status"] for name in ("0003.png", "0008.png")] == ["ok", "ok"]
    assert {name: row for name, row in after.items() if row["status"] == "quarantined"} == {
        name: before[name] for name in ("0001.png", "0005.png")
    }
    masks = open_table(labeled.store(), "annotations").to_table(columns=["image_id"])["image_id"].to_pylist()
    assert set(masks) == set(after) - {"0001.png", "0005.png"}
    for run_id in (RUN, summary.run_id):
        assert verify(labeled.store(), run_id).problems == []


def test_each_retry_takes_what_the_ones_before_left(labeled: SmallRun) -> None:
    still_scarce = ScarcePredictor(["0008.png"])
    first = retry(labeled, predictor=still_scarce)
    assert first is not None
    assert first.ledger == {"listed": 4, "ok": 1, "empty": 0, "not_asked": 0, "quarantined": 3}
    (Path(labeled.source) / "0005.png").write_bytes(png(half_bright()))  # mended
    second = retry(labeled)
    assert second is not None
    assert second.run_id == f"{RUN}-retry-2"
    assert second.ledger == {"listed": 3, "ok": 2, "empty": 0, "not_asked": 0, "quarantined": 1}
    found = rows(labeled)
    assert found["0001.png"]["run_id"] == second.run_id
    assert [name for name, row in found.items() if row["status"] == "quarantined"] == ["0001.png"]
    assert retries_by_run(labeled.store()) == {RUN: [first.run_id, second.run_id]}
    assert retry(labeled, "out_of_memory") is None


def test_the_run_itself_still_resumes_by_the_same_command(labeled: SmallRun) -> None:
    retry(labeled)
    again = run(labeled)
    assert again.run_id == RUN
    assert again.labelled_now == 0
    config = labeled.config()
    with as_driver(BrightPredictor()):
        unnamed = parse_config({**config.to_dict(), "output": {"uri": labeled.output}})
        assert engine.run_directly(unnamed, Silent()).run_id == RUN


@pytest.mark.parametrize("version", [1, 99])
def test_rows_of_a_run_planned_by_another_version_stay_readable(labeled: SmallRun, version: int) -> None:
    before, name = rows(labeled), f"_runs/{RUN}/plan.json"
    store = labeled.store()
    change_document(store, name, {"format": version})
    assert rows(labeled) == before
    assert open_table(store, "annotations").count_rows() > 0


def test_a_retry_that_was_stopped_goes_on(labeled: SmallRun) -> None:
    stopped = retry(labeled, plan={"images_per_shard": 1}, pool={"budget_s": 1e-9})
    assert stopped is not None
    assert stopped.committed < stopped.shards
    assert rows(labeled)
    finished = retry(labeled)
    assert finished is not None
    assert (finished.run_id, finished.ok) == (stopped.run_id, True)


@pytest.mark.parametrize("kind", ["annotations", "images"])
def test_a_retry_whose_files_are_gone_is_mended_before_anything_is_retried(labeled: SmallRun, kind: str) -> None:
    first = retry(labeled, "out_of_memory")
    assert first is not None
    whole = rows(labeled)
    (lost,) = labeled.store().find(f"{kind}/{first.run_id}")
    labeled.store().delete(lost)
    ended = []
    for config in runs_to_retry(labeled.output, None, [], {}):
        with as_driver(BrightPredictor()):
            ended.append(engine.run_directly(config, Silent()))
    assert [(run.run_id, run.ok) for run in ended] == [(first.run_id, True), (f"{RUN}-retry-2", True)]
    for run_id in (first.run_id, f"{RUN}-retry-2"):
        assert verify(labeled.store(), run_id).problems == []
    found = rows(labeled)
    assert {name: row["status"] for name, row in found.items()} == {name: row["status"] for name, row in whole.items()}
    assert broken_retries(labeled.output, None, {}) == []


def test_a_stopped_retry_whose_files_are_gone_is_mended_and_goes_on(labeled: SmallRun) -> None:
    stopped = retry(labeled, "out_of_memory", plan={"images_per_shard": 1})
    assert stopped is not None
    store = labeled.store()
    lost, _ = sorted(store.find(f"images/{stopped.run_id}"))
    store.delete(lost)
    store.delete(f"_runs/{stopped.run_id}/commits/shard-00001.json")
    ended = []
    for config in runs_to_retry(labeled.output, None, ["out_of_memory"], {}):
        with as_driver(BrightPredictor()):
            ended.append(engine.run_directly(config, Silent()))
    assert [(run.run_id, run.ok) for run in ended] == [(stopped.run_id, True)]
    assert verify(store, stopped.run_id).problems == []


def test_a_retry_may_differ_from_its_run(labeled: SmallRun) -> None:
    summary = retry(labeled, "out_of_memory", categories=["dark"])
    assert summary is not None
    names = open_table(labeled.store(), "annotations", summary.run_id).to_table()["category_name"].to_pylist()
    assert set(names) == {"dark"}


def test_mistakes_are_named(labeled: SmallRun) -> None:
    with pytest.raises(ConfigError, match=r"no such reason: oom; allowed: .*out_of_memory"):
        retry(labeled, "oom")
    retry(labeled)
    with pytest.raises(ConfigError, match=f"is a retry: name the run that it belongs to, {RUN}"):
        retry_configs(labeled.output, f"{RUN}-retry-1", [], {})
