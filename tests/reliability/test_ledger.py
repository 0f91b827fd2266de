"""Listed = ok + empty + quarantined, per shard and in all: a run in which that is not so fails and names the shard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import pytest

from actors.pool.runner import PoolEvent
from flows.run import engine
from flows.run.observer import Silent
from pipelines.errors import DamagedError
from pipelines.layout import commit_name, plan_name, split_data_name
from pipelines.storage.store import Store
from pipelines.table import verify as verification
from pipelines.table.commits import data_files
from pipelines.table.verify import verify
from tests.reliability.small_run import RUN, SmallRun, as_driver, check_no_op, rows, run, write_source
from tests.support.documents import change_document
from tests.support.drivers import run_file
from tests.support.fakes import BrightPredictor


class Hearing(Silent):
    """Keeps what it hears of broken shards."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_event(self, event: PoolEvent) -> None:
        if event.kind == "shard_broken":
            self.events.append(event.message)


def test_a_run_whose_ledger_does_not_add_up_fails_and_names_the_shard(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    assert run(small).ledger == {"listed": 6, "ok": 5, "empty": 0, "not_asked": 0, "quarantined": 1}
    assert "config_name: annotations" in (tmp_path / "out" / "README.md").read_text()
    store, name = small.store(), commit_name(RUN, "shard-00001")
    change_document(store, name, lambda commit: commit["status_counts"].update(ok=13))

    summary = run(small)
    assert not summary.ok
    named, counted, total = summary.problems
    assert named == "shard-00001: 3 images planned, but 13 ok + 0 empty + 0 quarantined = 13"
    assert counted == "shard-00001: 3 rows committed, but 13 ok + 0 empty + 0 quarantined = 13"
    assert total == "6 images listed, but 15 ok + 0 empty + 1 quarantined = 16"
    # A finished run that was whole is told of again, now that it is not.
    assert run_file(small.output, "summary.json")["problems"] == summary.problems
    (recounted,) = set(verify(store, RUN).problems) - set(summary.problems)
    assert "counts {'ok': 3}, committed {'ok': 13}" in recounted


def test_a_finished_run_reads_no_commit_again_but_mends_a_shard_whose_file_is_gone(tmp_path: Path, monkeypatch) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    first = run(small)
    read: list[str] = []
    with monkeypatch.context() as patch:
        really_read = Store.read
        patch.setattr(Store, "read", lambda store, name: read.append(name) or really_read(store, name))
        again = run(small)
    assert replace(again, labelled_now=first.labelled_now, elapsed_s=first.elapsed_s) == first
    assert {PurePosixPath(name).name for name in read} == {"plan.json", "summary.json"}

    store = small.store()
    rows_before = rows(store)
    lost = next(iter(store.find(f"images/{RUN}")))
    store.delete(lost)
    healing = Hearing()
    with as_driver(BrightPredictor()):
        healed = engine.run_directly(small.config(), healing)
    shard_id, _ = split_data_name(lost) or ("", "")
    assert healing.events == [f"{shard_id}: {lost} is missing; it is labeled again (repair 1)"]
    assert (healed.problems, healed.labelled_now) == ([], 1)
    assert rows(store) == rows_before
    check_no_op(small)


def test_a_damaged_summary_is_written_anew_by_a_run_that_labels(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    small.store().write(f"_runs/{RUN}/summary.json", b'{"ledger": ')
    summary = run(small)
    assert summary.ok
    assert run_file(small.output, "summary.json") == summary.to_dict()


def test_a_late_file_of_the_same_size_does_not_hide_one_that_is_gone(tmp_path: Path) -> None:
    """Files of two attempts at one shard are often of one size: numbers and bytes of a listing would agree."""
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    run(small)
    store = small.store()
    expected, lost = rows(store), next(iter(store.find(f"images/{RUN}")))
    store.write(lost.replace(".parquet", "9.parquet"), store.read(lost))
    store.delete(lost)
    assert run(small).labelled_now == 1
    assert rows(store) == expected


def test_a_listing_that_is_behind_while_a_run_is_verified_does_not_vouch_for_the_absence_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    store = small.store()
    with monkeypatch.context() as patch:
        # What is listed first is not shown yet; by name it is found.
        patch.setattr(verification, "data_files", lambda *of: dict(list(data_files(*of).items())[1:]))
        assert run(small).ok
    expected, hidden = rows(store), next(iter(data_files(store, RUN)))
    store.delete(hidden)
    assert run(small).labelled_now == 1
    assert rows(store) == expected


def test_a_run_whose_plan_is_gone_is_not_planned_anew_over_its_commits(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images", 6), output=str(tmp_path / "out"))
    run(small)
    store = small.store()
    store.delete(plan_name(RUN))
    before = store.find("")
    with pytest.raises(DamagedError, match=r"plan.json: missing, although there are commits"):
        run(small)
    assert store.find("") == before
