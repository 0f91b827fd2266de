"""Images that a condition names are labeled again: exactly these, once, whatever stops the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flows.config import parse_config
from flows.run import engine
from flows.run.observer import Silent
from flows.run.relabel import relabel_config
from flows.run.retry import retry_configs
from flows.run.summary import RunSummary
from pipelines.errors import QueryError, SourceError
from pipelines.forgetting import choose, forget
from pipelines.layout import summary_name
from pipelines.planning.plan import plan_documents
from pipelines.query.database import open_database
from pipelines.query.named_images import NothingNamedError
from pipelines.storage.store import open_store
from pipelines.table.verify import verify
from tests.reliability.dying import die_here, effects_of
from tests.reliability.small_run import RUN, SmallRun, as_driver, remove_from_memory, run, state
from tests.support.fakes import BrightPredictor, half_bright, png, write_images

SOME = "image_id IN ('0002.png', '0004.png', '0006.png')"


@pytest.fixture
def labeled(tmp_path: Path) -> SmallRun:
    """A run of eight images; one is broken."""
    source = tmp_path / "images"
    write_images(source, 8)
    (source / "0001.png").write_bytes(b"no image")
    small = SmallRun(source=str(source), output=str(tmp_path / "out"))
    assert run(small).ok
    return small


def relabel(
    small: SmallRun, where: str = SOME, predictor: BrightPredictor | None = None, **overrides: Mapping[str, Any]
) -> RunSummary:
    with as_driver(predictor or BrightPredictor()):
        return engine.run_directly(relabel_config(small.output, where, {}, overrides), Silent())


def sql(small: SmallRun, query: str) -> list[Any]:
    with open_database(small.store()) as database:
        return database.execute(query).fetchall()


def asked(predictor: BrightPredictor) -> list[str]:
    return sorted(name for call in predictor.calls for name in call)


def test_the_named_images_alone_are_asked_and_their_new_rows_are_current(labeled: SmallRun) -> None:
    predictor = BrightPredictor()
    summary = relabel(labeled, predictor=predictor)
    assert summary.ok
    assert asked(predictor) == ["0002.png", "0004.png", "0006.png"]
    assert summary.ledger["listed"] == 3
    current = dict(sql(labeled, "SELECT image_id, run_id FROM images"))
    assert {name for name, run_id in current.items() if run_id == summary.run_id} == set(asked(predictor))
    assert set(current.values()) == {RUN, summary.run_id}
    masks = sql(labeled, "SELECT DISTINCT image_id, run_id FROM annotations")
    assert all(current[image_id] == run_id for image_id, run_id in masks)
    assert verify(labeled.store(), summary.run_id).problems == []
    assert sql(labeled, "SELECT relabeled FROM runs ORDER BY place") == [(None,), ("image_id IN (? , ? , ? )",)]


def test_a_stopped_one_is_gone_on_with_though_its_condition_names_others_by_now(labeled: SmallRun) -> None:
    # What is committed does not fit any more.
    where = f"{SOME} AND run_id = '{RUN}'"
    stopped = relabel(labeled, where, plan={"images_per_shard": 1}, pool={"budget_s": 1e-9})
    assert stopped.committed < stopped.shards == 3
    predictor = BrightPredictor()
    finished = relabel(labeled, where, predictor)
    assert (finished.run_id, finished.ok) == (stopped.run_id, True)
    assert len(asked(predictor)) == 3 - stopped.committed
    assert sql(labeled, "SELECT count(*) FROM runs") == [(2,)]
    with pytest.raises(NothingNamedError, match=r"no image .* fits --where"):
        relabel(labeled, where)


@pytest.mark.timeout(600)
def test_one_that_dies_at_any_side_effect_is_gone_on_with_by_the_same_command(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_images(source, 4)
    where = f"run_id = '{RUN}' AND image_id < '0003.png'"  # what is committed does not fit any more
    outputs = iter(range(1000))

    def fresh() -> SmallRun:
        small = SmallRun(source=str(source), output=f"memory://relabel-{next(outputs)}", images_per_shard=2)
        assert run(small).ok
        return small

    whole = fresh()
    effects = effects_of(whole, lambda small: relabel(small, where))
    current = "SELECT image_id, category_name, segmentation, run_id FROM annotations ORDER BY ALL"
    expected = sql(whole, current)
    for at in range(len(effects)):
        small = fresh()
        assert die_here(small, at, after=at % 2 == 0, act=lambda small: relabel(small, where)), effects[at]
        try:
            summary = relabel(small, where)
        except NothingNamedError:
            is_over = True
        else:
            is_over = False
            assert summary.ok
        assert sql(small, current) == expected, effects[at]
        assert sql(small, "SELECT count(*) FROM runs") == [(2,)]
        (run_id,) = (name for (name,) in sql(small, "SELECT run_id FROM runs WHERE relabeled IS NOT NULL"))
        assert verify(small.store(), run_id).problems == []
        assert run_id in (name for (name,) in sql(small, "SELECT DISTINCT run_id FROM images"))
        assert small.store().exists(summary_name(run_id))
        assert not is_over or "summary" in " ".join(effects[: at + 1])
        remove_from_memory(small)


def test_the_same_again_asks_nothing_until_something_has_come_since(labeled: SmallRun) -> None:
    first, predictor = relabel(labeled), BrightPredictor()
    before = state(labeled.store())
    again = relabel(labeled, predictor=predictor)
    assert (again.run_id, again.labelled_now, predictor.calls) == (first.run_id, 0, [])
    assert state(labeled.store()) == before
    other = relabel(labeled, "image_id = '0002.png'")
    assert other.run_id not in (RUN, first.run_id)
    once_more = relabel(labeled, predictor=predictor)
    assert once_more.run_id == f"{first.run_id}-2"
    assert len(asked(predictor)) == 3


def test_another_question_is_another_run(labeled: SmallRun) -> None:
    first = relabel(labeled)
    second = relabel(labeled, categories=["dark"])  # type: ignore[arg-type]
    assert second.run_id != first.run_id
    found = sql(labeled, "SELECT prompt_id, run_id FROM coverage WHERE image_id = '0004.png' ORDER BY 1")
    assert found == [
        ("ovseg:bright", first.run_id), ("ovseg:dark", second.run_id), ("ovseg:light", first.run_id)
    ]  # fmt: skip


def test_updates_and_what_is_asked_do_not_go_by_it(labeled: SmallRun) -> None:
    relabel(labeled, categories=["dark"])  # type: ignore[arg-type]
    assert sql(labeled, "SELECT prompt_id FROM prompts WHERE is_asked ORDER BY 1") == [
        ("ovseg:bright",), ("ovseg:light",)
    ]  # fmt: skip
    config = labeled.config().to_dict()
    update = parse_config({**config, "output": {"uri": labeled.output}, "incremental": True})
    predictor = BrightPredictor()
    with as_driver(predictor):
        assert engine.run_directly(update, Silent()).run_id == RUN
    assert predictor.calls == []
    unnamed = parse_config({**config, "output": {"uri": labeled.output}})
    with as_driver(predictor):
        assert engine.run_directly(unnamed, Silent()).run_id == RUN  # the only run to resume
    assert predictor.calls == []


def test_a_file_that_is_another_since_is_labeled_as_it_is_and_the_next_update_still_finds_it_changed(
    labeled: SmallRun,
) -> None:
    (Path(labeled.source) / "0004.png").write_bytes(png(half_bright(40, 30)))
    assert relabel(labeled).ok
    rows = "SELECT width, height, image_version FROM images WHERE image_id = '0004.png'"
    assert sql(labeled, rows) == [(40, 30, 1)]
    config = labeled.config().to_dict()
    predictor = BrightPredictor()
    with as_driver(predictor):
        engine.run_directly(parse_config({**config, "output": {"uri": labeled.output}, "incremental": True}), Silent())
    assert asked(predictor) == ["0004.png"]
    assert sql(labeled, rows) == [(40, 30, 2)]


def test_a_mended_file_of_a_quarantined_image_is_labeled(labeled: SmallRun) -> None:
    (Path(labeled.source) / "0001.png").write_bytes(png(half_bright()))
    assert relabel(labeled, "status = 'quarantined'").ledger["ok"] == 1
    assert sql(labeled, "SELECT count(*) FROM images WHERE status = 'quarantined'") == [(0,)]


def test_what_failed_in_it_can_be_retried(labeled: SmallRun) -> None:
    path = Path(labeled.source) / "0004.png"
    whole = path.read_bytes()
    path.write_bytes(b"gone for a moment")
    first = relabel(labeled)
    assert first.ledger["quarantined"] == 1
    path.write_bytes(whole)
    config = next(one for one in retry_configs(labeled.output, first.run_id, [], {}))
    with as_driver(BrightPredictor()):
        summary = engine.run_directly(config, Silent())
    assert (summary.run_id, summary.ledger["ok"]) == (f"{first.run_id}-retry-1", 1)
    assert dict(sql(labeled, "SELECT image_id, run_id FROM images"))["0004.png"] == summary.run_id


def test_lost_files_of_it_are_written_again_by_the_same_command(labeled: SmallRun) -> None:
    first = relabel(labeled)
    (lost,) = labeled.store().find(f"annotations/{first.run_id}")
    labeled.store().delete(lost)
    mended = relabel(labeled)
    assert (mended.run_id, mended.labelled_now) == (first.run_id, 1)
    assert verify(labeled.store(), first.run_id).problems == []


def test_a_condition_that_is_none_names_the_columns_and_writes_nothing(labeled: SmallRun) -> None:
    before = state(labeled.store())
    told = r"--where is no SQL condition .*shade[\s\S]*images: image_id, uri, .*is_listed"
    with pytest.raises(SourceError, match=told):
        relabel(labeled, "shade = 'red'")
    for where in ("status =", "true; DROP TABLE images", "", "true) OR (true"):
        with pytest.raises(QueryError, match="--where is no SQL condition"):
            relabel(labeled, where)
    with pytest.raises(NothingNamedError):
        relabel(labeled, "image_id = 'none.png'")
    assert state(labeled.store()) == before


def test_neither_the_condition_nor_an_image_it_names_outlasts_the_image(labeled: SmallRun) -> None:
    relabel(labeled, "image_id = '0004.png'")
    store = labeled.store()
    documents = [name for name in state(store) if name.endswith(".json")]
    assert not any(b"0004.png" in store.read(name) for name in documents)
    forget(store, choose(store, image_ids=["0004.png"]))
    assert not any(b"0004.png" in data for data in state(store).values())


def test_rows_of_a_prompt_table_about_other_images_are_not_at_fault(labeled: SmallRun, tmp_path: Path) -> None:
    table = tmp_path / "prompts.csv"
    rows = [f"000{number}.png,p{number},vgdseg,point,1 1,thing" for number in range(2, 8)]
    table.write_text("image_id,prompt_id,task,kind,coordinates,label\n" + "\n".join(rows) + "\n")
    summary = relabel(labeled, "image_id = '0004.png'", prompts=str(table))  # type: ignore[arg-type]
    assert (summary.ok, summary.num_rejected_prompts) == (True, 0)
    found = sql(labeled, "SELECT image_id, prompt_id FROM coverage WHERE prompt_id LIKE 'p%'")
    assert found == [("0004.png", "p4")]


def test_that_the_last_run_replaced_what_people_answered_is_not_taken_over(labeled: SmallRun) -> None:
    config = parse_config({**labeled.config().to_dict(), "over_corrections": True, "output": {
        "uri": labeled.output, "run_id": "over"
    }})  # fmt: skip
    with as_driver(BrightPredictor()):
        engine.run_directly(config, Silent())
    assert not relabel_config(labeled.output, SOME, {}, {}).over_corrections
    assert relabel_config(labeled.output, SOME, {}, {"over_corrections": True}).over_corrections


def test_a_config_of_its_own_is_taken_whole_but_for_the_images_and_the_place(labeled: SmallRun) -> None:
    given = {
        "source": "elsewhere", "output": {"uri": "elsewhere", "run_id": "mine"}, "model": {"path": "fake"},
        "categories": ["dark"], "plan": {"limit": 1, "images_per_shard": 2}, "pool": {"runner": "in_process"},
    }  # fmt: skip
    config = relabel_config(labeled.output, SOME, given, {})
    assert (config.source.uri, config.output.uri, config.output.run_id) == (labeled.source, labeled.output, None)
    assert (config.categories, config.plan.limit, config.plan.images_per_shard) == (("dark",), None, 2)
    with as_driver(BrightPredictor()):
        summary = engine.run_directly(config, Silent())
    assert summary.ledger["listed"] == 3
    planned = plan_documents(open_store(labeled.output))[summary.run_id]
    assert "where" not in planned["facts"]["config"]["relabel"]
