"""Repairs, the commits that take the place of broken ones: also while one is on its way, and of a retry."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.exceptions import FSTimeoutError

from flows.run import engine
from flows.run.observer import Silent
from flows.run.retry import runs_to_retry
from pipelines.layout import commit_name
from pipelines.storage.store import Store
from pipelines.table.leftovers import find_leftovers, vacuum
from pipelines.table.verify import verify
from tests.reliability.small_run import RUN, SmallRun, as_driver, check_ended, rows, run, write_source
from tests.reliability.watched_storage import watched
from tests.support.fakes import BrightPredictor


class LateRepair:
    """A Watcher that keeps the creation of repairs on their way."""

    def __init__(self) -> None:
        self.late: list[Callable[[], Any]] = []

    def effect(self, name: str, do: Callable[[], Any]) -> Any:
        if name.startswith("create") and ".repair-" in name:
            self.late.append(do)
            raise FSTimeoutError
        return do()

    def reading(self, _name: str, do: Callable[[], Any]) -> Any:
        return do()


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    return SmallRun(source=write_source(tmp_path / "images"), output=f"memory://{tmp_path.name}/out", max_attempts=1)


def checked(small: SmallRun) -> Any:
    """`run --check`."""
    config = small.config()
    with as_driver(BrightPredictor()):
        return engine.run_directly(config.replace(output=config.output.replace(check=True)), Silent())


def spoil(store: Store, name: str) -> None:
    """Flip a bit, which leaves the size as it was."""
    data = bytearray(store.read(name))
    data[200] ^= 1
    store.write(name, bytes(data))


@contextlib.contextmanager
def repair_on_its_way(small: SmallRun) -> Iterator[LateRepair]:
    """Spoil a file of a finished run, and mend it by a commit that is late."""
    store, late = small.store(), LateRepair()
    spoil(store, next(name for name in store.find(f"images/{RUN}") if "shard-00000" in name))
    with watched(small.output, late):
        assert not checked(small).ok
    yield late
    assert late.late
    for land in late.late:
        land()


@pytest.mark.parametrize("meddler", ["nobody", "vacuum", "another run"])
def test_files_of_a_repair_on_its_way_are_no_losers_though_the_broken_commit_looks_whole(
    small: SmallRun, meddler: str
) -> None:
    assert run(small).ok
    expected = rows(small.store())
    with repair_on_its_way(small):
        if meddler == "vacuum":
            assert vacuum(small.store(), RUN).removed == []
        if meddler == "another run":
            assert run(small).ok
    assert verify(small.store(), RUN).problems == []
    assert run(small).ok
    check_ended(small, expected)


def test_a_repair_whose_first_commit_was_removed_by_hand_still_holds(small: SmallRun) -> None:
    assert run(small).ok
    store = small.store()
    store.write(commit_name(RUN, "shard-00000"), b"{}")
    assert run(small).ok
    store.delete(commit_name(RUN, "shard-00000"))
    assert find_leftovers(store, RUN).names == []
    vacuum(store, RUN, older_than_s=0)
    assert verify(store, RUN).problems == []
    assert run(small).ok


@pytest.mark.parametrize("what", ["commit", "data"])
def test_a_retry_of_which_a_bit_has_flipped_is_mended_by_a_retry_that_checks(small: SmallRun, what: str) -> None:
    assert run(small).ok
    store, retried = small.store(), f"{RUN}-retry-1"

    def retry(**output: bool) -> list[bool]:
        with as_driver(BrightPredictor()):
            configs = runs_to_retry(small.output, None, [], {"output": output})
            return [engine.run_directly(config, Silent()).ok for config in configs]

    assert retry() == [True]
    spoil(
        store, commit_name(retried, "shard-00000") if what == "commit" else next(iter(store.find(f"images/{retried}")))
    )
    assert any("`retry --check`" in problem for problem in verify(store, retried).problems)
    assert retry(check=True)[0]
    assert verify(store, retried).problems == []


def test_a_summary_vouches_for_the_commits_that_were_read_and_none_that_came_since(
    small: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(small).ok
    store = small.store()
    whole = verify(store, RUN).size
    reading, name = Store.read_json, commit_name(RUN, "shard-00000")

    def read_before_damage(self: Store, asked: str) -> Any:
        document = reading(self, asked)
        if asked == name:
            store.write(name, b"{}")
        return document

    monkeypatch.setattr(Store, "read_json", read_before_damage)
    assert verify(store, RUN, deep=False).size == whole


def test_a_dry_run_of_vacuum_writes_nothing(small: SmallRun) -> None:
    assert run(small).ok
    store = small.store()
    store.write(f"images/{RUN}/shard-00000-dead-0.parquet", b"loser")
    store.write(f"_runs/{RUN}/plan-dead-00000.parquet", b"part")
    with watched(small.output, Refusing()):
        found = vacuum(small.store(), RUN, dry_run=True)
    assert (len(found.removed), len(found.kept)) == (1, 1)


class Refusing:
    """A Watcher under which nothing may be changed."""

    def effect(self, name: str, _do: Callable[[], Any]) -> Any:
        raise AssertionError(name)

    def reading(self, _name: str, do: Callable[[], Any]) -> Any:
        return do()
