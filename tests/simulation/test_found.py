"""What the simulation has found, each as a small test of its own."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.memory import MemoryFileSystem

from flows.run.updates import as_planned
from pipelines.errors import StorageError
from pipelines.layout import data_name
from pipelines.planning.plan import require_plan
from pipelines.table.leftovers import find_leftovers, remove_losers, vacuum
from pipelines.table.quarantined import quarantined_images
from pipelines.table.verify import verify
from tests.reliability.small_run import RUN, SmallRun, check_ended, rows, run, write_source
from tests.reliability.watched_storage import watched


class Meddling:
    """A Watcher that lets effects and readings with a word in their names end otherwise."""

    def __init__(self, word: str, meddle: Callable[[Callable[[], Any]], Any]) -> None:
        self._word, self._meddle = word, meddle

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        return self._meddle(do) if self._word in name else do()

    reading = effect


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    """A finished run."""
    small = SmallRun(source=write_source(tmp_path / "images"), output=f"memory://{tmp_path.name}-found")
    assert run(small).ok
    return small


def _leave_loser(small: SmallRun) -> str:
    name = data_name("images", RUN, "shard-00000", "dead-0")
    store = small.store()
    store.write(name, store.read(next(one for one in store.find(f"images/{RUN}") if "shard-00000" in one)))
    return name


def test_a_commit_that_was_read_in_part_makes_no_committed_file_a_leftover(small: SmallRun) -> None:
    """Vacuum took all files of that shard for abandoned, the committed ones too."""
    loser, before = _leave_loser(small), rows(small.store())
    with watched(small.output, Meddling("/commits/shard", lambda do: do()[:200])):
        assert find_leftovers(small.store(), RUN).names == []
        assert vacuum(small.store(), RUN, older_than_s=0).removed == []
        assert remove_losers(small.store(), RUN).removed == []
    assert rows(small.store()) == before
    assert vacuum(small.store(), RUN, older_than_s=0).removed == [loser]
    assert verify(small.store(), RUN).problems == []


def test_a_leftover_that_could_not_be_removed_is_removed_by_the_next_run(small: SmallRun) -> None:
    """The summary vouched for it, and a glob over the folder saw its rows twice for good."""

    def deny(_do: Callable[[], Any]) -> Any:
        raise PermissionError(errno.EACCES, "AccessDenied")

    loser, expected = _leave_loser(small), rows(small.store())
    with watched(small.output, Meddling("delete", deny)):
        assert run(small).ok
    assert small.store().exists(loser)
    assert run(small).ok
    assert not small.store().exists(loser)
    check_ended(small, expected)


def test_an_update_goes_on_with_an_unfinished_run_without_the_budget_of_its_plan(small: SmallRun) -> None:
    """It ended again and again when that budget was spent."""
    plan, config = require_plan(small.store(), RUN), small.config()
    values = {**config.to_dict(), "pool": {**config.to_dict()["pool"], "budget_s": 3.0, "shard_timeout_s": 60.0}}
    begun = replace(plan, facts={**plan.facts, "config": values})
    now = config.replace(incremental=True, pool=config.pool.replace(budget_s=None, shard_timeout_s=None))
    assert as_planned(begun, now).pool == now.pool


@pytest.mark.parametrize("fault", ["slow down", "timeout", "cut short"])
def test_retry_says_in_one_message_that_rows_cannot_be_read(fault: str, small: SmallRun) -> None:
    store = small.store()
    if fault == "cut short":
        (name,) = [one for one in store.find(f"images/{RUN}") if "shard-00000" in one]
        store.write(name, store.read(name)[:100])
    else:
        error = FSTimeoutError() if fault == "timeout" else OSError(errno.EIO, "SlowDown")
        store = replace(store, fs=_Failing(error))
    with pytest.raises(StorageError, match=f"images/{RUN}"):
        list(quarantined_images(store, RUN))


class _Failing(MemoryFileSystem):
    """Opens no image rows."""

    cachable = False

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        self._check(path)
        return super()._open(path, *args, **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._check(path)
        return super().cat_file(path, *args, **options)

    def _check(self, path: str) -> None:
        if f"/images/{RUN}/" in path:
            raise self._error
