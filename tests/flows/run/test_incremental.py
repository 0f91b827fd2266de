"""Night after night over one output: only what is new reaches the model, and of several answers one is current."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actors.predictor.predictor import XSamPredictor
from flows.config import RunConfig
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.retry import retry_configs
from pipelines.errors import PlanError
from pipelines.planning.plan import read_plan
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from pipelines.table.verify import verify
from tests.flows.conftest import MakeConfig, photograph, write_photographs
from tests.support.drivers import listing

pytestmark = pytest.mark.timeout(180)

Asked = Counter[tuple[str, str]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """How often the model was asked which prompt about which image."""
    counts: Asked = Counter()
    real = XSamPredictor.predict

    def counting(self: XSamPredictor, images: Sequence[Any], prompts: Sequence[Sequence[Any]]) -> Any:
        for image, own in zip(images, prompts, strict=True):
            counts.update((image.ref.image_id, prompt.text) for prompt in own)
        return real(self, images, prompts)

    monkeypatch.setattr(XSamPredictor, "predict", counting)
    return counts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_photographs(tmp_path / "photos", 4)


@pytest.fixture
def nightly(make_config: MakeConfig, source: Path) -> Callable[..., RunConfig]:
    def make(*categories: str, **tables: Any) -> RunConfig:
        return make_config(source=str(source), categories=list(categories), incremental=True, **tables)

    return make


def label(config: RunConfig) -> Any:
    return engine.run_directly(config, Silent())


def sql(config: RunConfig, query: str) -> list[tuple[Any, ...]]:
    return open_database(open_store(config.output.uri)).sql(query).fetchall()


NAMES = ("000.png", "002.png", "more/001.JPG", "more/003.JPG")


def test_the_second_night_labels_only_what_came_between(
    nightly: Callable[..., RunConfig], source: Path, asked: Asked, tmp_path: Path
) -> None:
    config = nightly("car", "tree")
    assert label(config).ledger["listed"] == 4
    assert asked == {(name, text): 1 for name in NAMES for text in ("car", "tree")}

    asked.clear()
    photograph(64, 48, 77).save(source / "later.png")
    second = label(config)
    assert (second.run_id, second.ledger["listed"]) == ("update-2", 1)
    assert asked == {("later.png", "car"): 1, ("later.png", "tree"): 1}

    asked.clear()
    before = listing(tmp_path / "output")
    third = label(config)
    assert (third.run_id, third.labelled_now, third.ok) == ("update-2", 0, True)
    assert not asked
    assert listing(tmp_path / "output") == before
    assert sql(config, "SELECT count(*), count(DISTINCT image_id) FROM images") == [(5, 5)]
    assert sql(config, "SELECT count(*) FROM annotations") == sql(config, "SELECT count(*) FROM all_annotations")


def test_one_category_more_is_all_that_known_images_are_asked(
    nightly: Callable[..., RunConfig], source: Path, asked: Asked
) -> None:
    label(nightly("car", "tree"))
    asked.clear()
    photograph(64, 48, 77).save(source / "later.png")
    more = nightly("car", "tree", "traffic light")
    assert label(more).ok
    assert asked == {
        **{(name, "traffic light"): 1 for name in NAMES},
        **{("later.png", text): 1 for text in ("car", "tree", "traffic light")},
    }
    assert sql(more, "SELECT count(*) FROM coverage") == [(15,)]
    assert sql(more, "SELECT count(*), sum(num_annotations) FROM images") == [
        (5, sql(more, "SELECT count(*) FROM annotations")[0][0])
    ]
    plan = read_plan(open_store(more.output.uri), "update-2")
    assert plan is not None
    assert plan.facts["update"]["added_prompts"] == ["ovseg:traffic light"]


def test_a_changed_image_is_asked_everything_again_and_its_old_rows_are_not_current(
    nightly: Callable[..., RunConfig], source: Path, asked: Asked
) -> None:
    config = nightly("car", "tree")
    label(config)
    asked.clear()
    photograph(120, 90, 78).save(source / "000.png")
    assert label(config).ledger["listed"] == 1
    assert asked == {("000.png", "car"): 1, ("000.png", "tree"): 1}
    assert sql(config, "SELECT DISTINCT run_id FROM annotations WHERE image_id = '000.png'") == [("update-2",)]
    assert sql(config, "SELECT width, height, image_version FROM images WHERE image_id = '000.png'") == [(120, 90, 2)]
    assert sql(config, "SELECT image_version, count(*) FROM images GROUP BY 1 ORDER BY 1") == [(1, 3), (2, 1)]


def test_an_image_that_is_gone_keeps_its_rows(nightly: Callable[..., RunConfig], source: Path, asked: Asked) -> None:
    config = nightly("car")
    label(config)
    asked.clear()
    (source / "002.png").unlink()
    assert label(config).labelled_now == 0
    assert not asked
    assert sql(config, "SELECT count(*) FROM images") == [(4,)]


def test_a_quarantined_image_is_not_tried_every_night_but_when_it_has_changed(
    nightly: Callable[..., RunConfig], source: Path, asked: Asked
) -> None:
    whole = (source / "000.png").read_bytes()
    (source / "000.png").write_bytes(whole[: len(whole) // 2])
    config = nightly("car")
    assert label(config).ledger["quarantined"] == 1
    asked.clear()
    assert label(config).labelled_now == 0
    (source / "000.png").write_bytes(whole)
    assert label(config).ledger == {"listed": 1, "ok": 1, "empty": 0, "not_asked": 0, "quarantined": 0}
    assert asked == {("000.png", "car"): 1}
    assert sql(config, "SELECT count(*) FROM images WHERE status = 'quarantined'") == [(0,)]


def test_a_retry_leaves_to_an_update_what_has_changed(nightly: Callable[..., RunConfig], source: Path) -> None:
    whole = (source / "000.png").read_bytes()
    for name in ("000.png", "002.png"):
        (source / name).write_bytes(whole[: len(whole) // 2])
    config = nightly("car")
    first = label(config)
    (source / "000.png").write_bytes(whole[: len(whole) // 3])
    second = label(config)
    assert second.ledger == {"listed": 1, "ok": 0, "empty": 0, "not_asked": 0, "quarantined": 1}
    again = retry_configs(config.output.uri, None, [], {})
    assert [one.output.run_id for one in again] == [f"{first.run_id}-retry-1", "update-2-retry-1"]
    for name in ("000.png", "002.png"):
        (source / name).write_bytes(whole)
    assert [label(one).ledger["ok"] for one in again] == [1, 1]
    assert sql(config, "SELECT status, count(*) FROM images GROUP BY 1") == [("ok", 4)]
    assert retry_configs(config.output.uri, None, [], {}) == []


def test_a_run_that_died_is_finished_before_what_is_new(
    nightly: Callable[..., RunConfig], source: Path, asked: Asked
) -> None:
    config = nightly("car")
    first = label(config)
    store = open_store(config.output.uri)
    store.delete(f"_runs/{first.run_id}/commits/shard-00001.json")  # as if it had died before its last shard
    asked.clear()
    photograph(64, 48, 77).save(source / "later.png")
    other = nightly("car", "tree")
    assert label(other).run_id == "update-2"
    assert asked == {
        **{(name, "car"): 1 for name in NAMES[2:]},  # the shard that was not committed, as it was planned
        **{(name, "tree"): 1 for name in NAMES},
        ("later.png", "car"): 1,
        ("later.png", "tree"): 1,
    }
    for run_id in (first.run_id, "update-2"):
        assert verify(store, run_id).ok
    assert sql(other, "SELECT count(*) FROM coverage") == [(10,)]


def test_a_table_of_prompts_that_has_grown_asks_only_its_new_rows(
    nightly: Callable[..., RunConfig], tmp_path: Path, asked: Asked
) -> None:
    table = tmp_path / "prompts.csv"
    table.write_text('image_id,prompt_id,kind,coordinates\n000.png,dot,point,"10 12"\n')
    config = nightly("car", prompts=str(table))
    label(config)
    asked.clear()
    with table.open("a") as file:
        file.write('000.png,frame,box,"4 4 20 16"\n002.png,dot,point,"9 9"\n')
    assert label(config).ledger["listed"] == 2
    assert sorted(image for image, _ in asked) == ["000.png", "002.png"]
    assert sql(config, "SELECT image_id, prompt_id FROM coverage WHERE prompt_id NOT LIKE 'ovseg%' ORDER BY ALL") == [
        ("000.png", "dot"),
        ("000.png", "frame"),
        ("002.png", "dot"),
    ]


def test_of_two_updates_that_are_planned_at_once_the_first_one_holds(nightly: Callable[..., RunConfig]) -> None:
    label(nightly("car"))
    with planning.draft_run(nightly("car", "tree")) as one, planning.draft_run(nightly("car", "sky")) as other:
        assert planning.freeze_plan(nightly("car", "tree"), one).run_id == "update-2"
        with pytest.raises(PlanError, match="categories"):
            planning.freeze_plan(nightly("car", "sky"), other)


def test_an_update_is_not_planned_over_a_run_that_is_not_finished(nightly: Callable[..., RunConfig]) -> None:
    config = nightly("car")
    first = label(config)
    open_store(config.output.uri).delete(f"_runs/{first.run_id}/commits/shard-00001.json")
    with pytest.raises(PlanError, match="is not finished"), planning.draft_run(config):
        pass


def test_what_an_update_would_do_is_said_beforehand(
    cli: Callable[..., Any], source: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    common = ("--source", source, "--output", output, "--model", model, "--incremental", "--categories")
    first = cli("run", *common, "car", "--runner", "in_process", "--no-prefect")
    assert first.code == 0, first.err
    shutil.copy(source / "000.png", source / "later.png")
    photograph(120, 90, 78).save(source / "002.png")
    before = listing(output)
    shown = " ".join(cli("plan", *common, "car,tree").out.split())
    assert "new images 1: asked everything" in shown
    assert "changed 1: asked everything again" in shown
    assert "known 3: asked what is new: ovseg:tree" in shown
    assert "run update-2 would be planned" in shown
    second = cli("run", *common, "car,tree", "--runner", "in_process", "--no-prefect")
    assert second.code == 0, second.err
    assert "update: 1 new image, 1 changed, 3 asked something new (1 prompt), 0 with nothing left" in second.out
    assert {name: listing(output)[name] for name in before} == before
    assert "nothing is left to ask" in cli("plan", *common, "car,tree").out


def test_another_source_has_to_be_said_to_be_the_same_collection(
    cli: Callable[..., Any], source: Path, model: Path, tmp_path: Path
) -> None:
    common = ("--output", tmp_path / "output", "--model", model, "--incremental", "--categories", "car")
    first = cli("run", *common, "--source", source, "--runner", "in_process", "--no-prefect")
    assert first.code == 0, first.err
    moved = shutil.copytree(source, tmp_path / "moved")
    refused = cli("plan", *common, "--source", moved)
    assert refused.code == 2
    told = " ".join(refused.err.split())
    assert f"source: there '{source}', now '{moved}'" in told
    assert "--same-collection" in told
    said = cli("plan", *common, "--source", moved, "--same-collection")
    assert "nothing is left to ask" in said.out, said.err
