"""Drivers, faults of the storage and deaths in any order: whatever is readable is true, and the run ends whole."""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from actors.pool.runner import ReplicaStartError
from pipelines.errors import StorageError
from tests.reliability.dying import Death, effects_of
from tests.reliability.faults import ON_EFFECTS, ON_READINGS, Faulty
from tests.reliability.small_run import (
    LONG,
    RUN,
    SmallRun,
    check_ended,
    check_readable,
    remove_from_memory,
    rows,
    run,
    write_source,
)
from tests.reliability.watched_storage import watched

faults = st.fixed_dictionaries(
    {
        "on_effects": st.dictionaries(st.integers(0, 30), st.sampled_from(ON_EFFECTS), max_size=4),
        "on_readings": st.dictionaries(st.integers(0, 40), st.sampled_from(ON_READINGS), max_size=3),
    }
)


class Collection(RuleBasedStateMachine):
    """One output that many drivers work on, one after the other, while writes of dead ones are still on their way."""

    source: ClassVar[str]
    expected: ClassVar[dict]
    drivers = 0

    @initialize(kind=st.sampled_from(["memory", "local"]))
    def begin(self, kind: str) -> None:
        name = f"faults-{secrets.token_hex(6)}"
        output = f"memory://{name}" if kind == "memory" else str(Path(self.source).parent / name)
        self.small = SmallRun(source=self.source, output=output)
        self.on_their_way: list[Faulty] = []

    @rule(faults=faults)
    def drive(self, faults: dict) -> None:
        """Run until its end, its failure or its death."""
        type(self).drivers += 1
        faulty = Faulty(**faults)
        self.on_their_way.append(faulty)
        with watched(self.small.output, faulty), contextlib.suppress(StorageError, ReplicaStartError, Death):
            run(self.small)

    @rule()
    def land(self) -> None:
        """What dead or impatient drivers have sent arrives."""
        for faulty in self.on_their_way:
            faulty.land()

    @invariant()
    def what_is_readable_is_true(self) -> None:
        if hasattr(self, "small"):
            check_readable(self.small.store())

    def teardown(self) -> None:
        if hasattr(self, "small"):
            self.land()
            assert run(self.small).ok
            check_ended(self.small, self.expected)


@pytest.mark.timeout(900)
def test_any_order_of_drivers_faults_and_deaths(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.mktemp("faults")
    small = SmallRun(source=write_source(folder / "images"), output=str(folder / "unbroken"))
    run(small)
    Collection.source, Collection.expected = small.source, rows(small.store())
    machine = Collection.TestCase
    machine.settings = settings(
        max_examples=400 if LONG else 12,
        stateful_step_count=12 if LONG else 6,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    machine().runTest()
    with capsys.disabled():
        print(f"\n{Collection.drivers} drivers met faults and deaths; every run ended whole")


def meet(small: SmallRun, faulty: Faulty, expected: dict) -> bool:
    """Let a run of its own meet faults, and what is late land; then run it to its end. Say whether any took place."""
    broken = replace(small, output=f"memory://{secrets.token_hex(6)}")
    with watched(broken.output, faulty):
        try:
            run(broken)
        except (StorageError, ReplicaStartError, Death):
            assert faulty.happened
    # Where a fault befalls no access of its kind, this was an unbroken run.
    if faulty.happened:
        check_readable(broken.store())
        if faulty.late:
            faulty.land()
            check_readable(broken.store())
        assert run(broken).ok
        check_ended(broken, expected)
    remove_from_memory(broken)
    return bool(faulty.happened)


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    return SmallRun(source=write_source(tmp_path / "images"), output=f"memory://one-{secrets.token_hex(6)}")


@pytest.mark.parametrize("fault", ON_EFFECTS)
def test_each_fault_at_each_side_effect_is_survived(fault: str, small: SmallRun) -> None:
    run(small)
    expected = rows(small.store())
    # Only what is created can be in conflict, or refused.
    fewest = 7 if fault in ("conflict", "refused") else 14
    assert sum(meet(small, Faulty({at: fault}, {}), expected) for at in range(14)) >= fewest


@pytest.mark.parametrize("fault", ON_READINGS)
def test_each_fault_at_each_reading_is_survived(fault: str, small: SmallRun) -> None:
    run(small)
    expected = rows(small.store())
    # Only what is read is cut short, and only what is listed is stale.
    fewest = {"cut short": 13, "stale": 8}.get(fault, 24)
    assert sum(meet(small, Faulty({}, {at: fault}), expected) for at in range(24)) >= fewest


def test_a_lost_answer_and_a_short_one_together_lose_no_commit(small: SmallRun) -> None:
    """Our own commit, refused at the repeat of its put and read back in part, is still ours."""
    names = effects_of(small)
    expected = rows(small.store())
    (first, _) = [at for at, name in enumerate(names) if name.startswith("create") and "/commits/" in name]
    for at in range(24):
        meet(small, Faulty({first: "lost answer"}, {at: "cut short"}), expected)


def test_the_run_that_is_tested_is_a_real_one(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images"), output=str(tmp_path / "output"))
    summary = run(small)
    assert summary.run_id == RUN
    assert summary.ledger == {"listed": 5, "ok": 4, "empty": 0, "not_asked": 0, "quarantined": 1}
    assert summary.num_annotations == 8
