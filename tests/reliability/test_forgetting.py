"""Forgetting that dies anywhere is completed by the same command; until then no row that stays is ever missing."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from functools import cache
from typing import Any

import pyarrow.dataset as ds

from pipelines.forgetting import Erased, Found, choose, forget
from pipelines.layout import KINDS
from pipelines.planning.erasures import read_forgotten
from pipelines.storage.store import Store, open_store
from pipelines.table.leftovers import vacuum
from pipelines.table.reader import open_table
from pipelines.table.verify import verify
from tests.reliability.dying import Death, Dying
from tests.reliability.small_run import LONG, state
from tests.reliability.watched_storage import watched
from tests.support.labeled import box, mask, named, region, write_output

BRIGHT = named("ovseg", "bright")
IMAGES = ("a", "a-jane", "b", "c", "c-jane", "d")
RUNS = ("run-1",)
WHERE = "image_id LIKE '%jane' AND num_annotations > 0"


@cache
def _written() -> dict[str, bytes]:
    uri = "memory://forgetting"
    for number, run_id in enumerate(RUNS):
        found = {name: [mask(BRIGHT[0], box(number, 1, 2, 2))] for name in IMAGES}
        own = {"a-jane": [region("vgdseg", "face", "box", "Jane")]}
        write_output(uri, found, common=BRIGHT, own=own, rejected={"a-jane": ["face"]}, run_id=run_id, per_shard=2)
    return state(open_store(uri))


def fresh() -> Store:
    """A run in memory: shards with and without an image that is to be forgotten."""
    store = open_store(f"memory://forgetting-{secrets.token_hex(4)}")
    for name, data in _written().items():
        store.write(name, data)
    return store


def forget_all(store: Store) -> Erased:
    """What the command does: complete what was begun, or else begin with what was chosen."""
    return forget(store, Found() if read_forgotten(store) else _chosen(), threads=1)


@cache
def _chosen() -> Found:
    return choose(fresh(), images_where=WHERE)


def rows(store: Store) -> dict[str, Any]:
    """The rows of the images that stay, without who wrote them."""
    tables = {kind: open_table(store, kind).to_table(filter=ds.field("image_id").isin(list("abcd"))) for kind in KINDS}
    return {
        kind: table.drop_columns(["attempt"]).sort_by([("run_id", "ascending"), ("image_id", "ascending")]).to_pylist()
        for kind, table in tables.items()
    }


def check_forgotten(store: Store, expected: dict[str, Any], files: int) -> None:
    assert rows(store) == expected
    for run_id in RUNS:
        report = verify(store, run_id)
        assert (report.problems, report.leftovers) == ([], [])
        assert report.ledger() == {"listed": 6, "ok": 4, "empty": 0, "not_asked": 0, "quarantined": 0, "forgotten": 2}
    held = state(store)
    assert not [name for name, data in held.items() if b"jane" in data]
    assert len(held) == files
    assert read_forgotten(store).unfinished == []


def die(store: Store, at: int, *, after: bool, act: Callable[[Store], Any]) -> bool:
    with watched(store.uri, Dying(at=at, after=after)):
        try:
            act(open_store(store.uri))
        except Death:
            return True
    return False


def test_forgetting_that_dies_at_any_side_effect_is_completed_by_the_same_command() -> None:
    whole = fresh()
    expected, watcher = rows(whole), Dying()
    with watched(whole.uri, watcher):
        forget_all(open_store(whole.uri))
    files = len(state(whole))
    check_forgotten(whole, expected, files)
    held = state(whole)
    assert choose(whole, images_where=WHERE).image_ids == ()
    assert forget(whole, Found()).images == 0
    assert state(whole) == held
    points = points_of(watcher.seen)
    for at, after in points:
        broken = fresh()
        assert die(broken, at, after=after, act=forget_all), f"it did not get to {watcher.seen[at]}"
        assert rows(broken) == expected
        assert not [problem for run_id in RUNS for problem in verify(broken, run_id).problems]
        vacuum(broken, RUNS[0], older_than_s=0)
        forget_all(broken)
        check_forgotten(broken, expected, files)


def points_of(effects: list[str]) -> list[tuple[int, bool]]:
    """Where to die: around what is created, amid what is written over and removed; everywhere in the long form."""
    if LONG:
        return [(at, after) for at in range(len(effects)) for after in (False, True)]
    wanted = [
        ("create .*erasure-000001$", True),
        ("create .*plan.erased-1", True),
        ("write .*plan.json", True),
        ("create .*commits/shard-00002", False),
        ("create .*commits/shard-00002", True),
        ("delete .*parquet", True),
        ("create .*erasure-000001-done", False),
    ]
    return [(next(at for at, name in enumerate(effects) if re.match(one, name)), after) for one, after in wanted]
