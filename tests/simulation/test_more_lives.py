"""Lives of further kinds: bits that flip, --check, drivers that begin one run together, compactions, imports."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows.run import planning
from pipelines.compaction import removal
from pipelines.errors import PlanError
from pipelines.planning import plan as planned
from pipelines.query import current_rows
from pipelines.table import leftovers, verify
from tests.reliability.small_run import CHAOS
from tests.simulation.life import Broken, live, simulation
from tests.simulation.more_scenarios import DRAWS
from tests.simulation.scenario import draw_scenario

LIVES = {
    **{"checked": 2_000 * CHAOS or 150, "contended": 2_000 * CHAOS or 80},
    **{"compacted": 2_000 * CHAOS or 40, "corrected": 500 * CHAOS or 12},
}
MAX_LIVES = 150
"""Within which each rule that is taken away has to be missed."""


@pytest.fixture(scope="module", autouse=True)
def _simulation() -> Iterator[None]:
    with simulation():
        yield


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", LIVES)
def test_lives_end_complete_whatever_happens_in_them(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    since, drivers, named, broken = time.process_time(), 0, 0, list[str]()
    for seed in range(LIVES[kind]):
        try:
            life = live(seed, DRAWS[kind](seed))
        except Broken as error:
            broken.append(str(error))
        else:
            drivers, named = drivers + life.drivers, named + life.num_named
    with capsys.disabled():
        print(f"\n{LIVES[kind]} lives, {drivers} drivers, {named} flipped bits named,", end=" ")
        print(f"{time.process_time() - since:.1f} s of CPU")
    assert not broken, f"{len(broken)} of {LIVES[kind]} lives are broken, of which the first:\n{broken[0]}"
    assert (named > 50) == (kind == "checked")


def _takes_uncommitted_for_losers(patch: pytest.MonkeyPatch) -> None:
    find = leftovers.find_leftovers

    def found(*args: Any) -> leftovers.Leftovers:
        return leftovers.Leftovers(tuple(find(*args).names), ())

    patch.setattr(leftovers, "find_leftovers", found)


def _compares_plans_by_numbers(patch: pytest.MonkeyPatch) -> None:
    def check(_store: Any, plan: Any, draft: Any) -> None:
        if (plan.num_images, plan.num_bytes) != (draft.num_images, draft.num_bytes):
            raise PlanError("other images")

    patch.setattr(planned, "_check_same_images", check)


def _checks_sizes_alone(patch: pytest.MonkeyPatch) -> None:
    due = planning.due_shards
    patch.setattr(planning, "due_shards", lambda store, plan, hashes: due(store, plan))


def _verifies_no_hash(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(verify, "hash_problem", lambda _data, _file: None)


def _takes_compacted_for_abandoned(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(removal, "_folder", lambda _store, _number: "")


def _lets_models_answer_over_people(patch: pytest.MonkeyPatch) -> None:
    rule = "imported IS NOT NULL AND place > over_place"
    assert rule in current_rows._REPLACED
    patch.setattr(current_rows, "_REPLACED", current_rows._REPLACED.replace(rule, "false"))


@pytest.mark.parametrize(
    ("take_away", "kind", "told"),
    [
        (_takes_uncommitted_for_losers, "contended", "which is gone"),
        (_compares_plans_by_numbers, "contended", "a run has listed .* and ends complete, but planned are"),
        (_checks_sizes_alone, "checked", "does not have the committed SHA-256"),
        (_verifies_no_hash, "checked", "has flipped, and verify does not tell"),
        (_takes_compacted_for_abandoned, "compacted", "there is no compaction"),
        (_lets_models_answer_over_people, "corrected", "is not current, though .* has imported it last"),
    ],
)
def test_a_rule_that_is_taken_away_is_missed(
    take_away: Callable[[pytest.MonkeyPatch], None],
    kind: str,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    take_away(monkeypatch)
    seed = _first_broken(kind, told)
    with capsys.disabled():
        print(f"\n{take_away.__name__}: missed in life {seed + 1}")


def _first_broken(kind: str, told: str) -> int:
    """Return the first life that breaks in just this way: without a rule some break in others first."""
    for seed in range(MAX_LIVES):
        try:
            live(seed, DRAWS[kind](seed))
        except Broken as error:
            if re.search(told, str(error).partition("\n")[0]):
                return seed
    pytest.fail(f"nothing is missed in {MAX_LIVES} lives")


def test_a_retry_that_ends_a_life_is_not_ended_by_the_budget_of_its_run() -> None:
    """Its shards take longer than the three seconds with which the run was planned, each of three times."""
    life = live(11416, draw_scenario(11416, "retry", {}))
    assert life.endings[-2].code == 0
