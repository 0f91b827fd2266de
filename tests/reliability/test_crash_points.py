"""A run that dies right before or right after any of its side effects is resumed to the rows of an unbroken run."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pipelines.table.leftovers import Removal, vacuum
from pipelines.table.verify import verify
from tests.reliability.dying import die_elsewhere, die_here, effects_of
from tests.reliability.small_run import (
    LONG,
    RUN,
    SmallRun,
    check_ended,
    check_readable,
    raw_rows,
    remove_from_memory,
    rows,
    run,
    state,
    write_source,
)
from tests.support.fork_server import fork_server

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Place:
    """A kind of storage: gives fresh outputs, and what another process needs to reach them."""

    kind: str
    fresh: Callable[[], str]
    environment: dict[str, str]

    def points(self, effects: list[str]) -> list[tuple[int, bool]]:
        """Return (effect, whether after it) for each point to die at: all, but a third in the short form on S3."""
        every = [(at, after) for at in range(len(effects)) for after in (False, True)]
        return every[:: 1 if LONG or self.kind != "s3" else 3]


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return Place("local", lambda: str(tmp_path / f"output-{secrets.token_hex(4)}"), {})
    if request.param == "memory":
        return Place("memory", lambda: f"memory://output-{secrets.token_hex(4)}", {})
    server = request.getfixturevalue("s3")
    return Place("s3", lambda: f"s3://bkt/output-{secrets.token_hex(4)}", server.environment)


@pytest.fixture
def unbroken(place: Place, tmp_path: Path) -> SmallRun:
    """A run that nothing has happened to."""
    small = SmallRun(source=write_source(tmp_path / "images"), output=place.fresh())
    assert run(small).ok
    return small


def test_a_run_that_dies_at_any_side_effect_is_resumed_to_the_rows_of_an_unbroken_one(
    place: Place, unbroken: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = rows(unbroken.store())
    effects = effects_of(replace(unbroken, output=place.fresh()))
    assert sum("/commits/" in name and name.startswith("create") for name in effects) == 2
    points = place.points(effects)
    for at, after in points:
        broken = replace(unbroken, output=place.fresh())
        assert die_here(broken, at, after=after), f"it did not get to {effects[at]}"
        check_readable(broken.store())
        assert run(broken).ok
        check_ended(broken, expected)
        remove_from_memory(broken)
    with capsys.disabled():
        print(f"\n{place.kind}: {len(points)} crash points survived, of {2 * len(effects)}")


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_a_process_that_really_ends_is_no_worse(place: Place, unbroken: SmallRun) -> None:
    expected = rows(unbroken.store())
    effects = effects_of(replace(unbroken, output=place.fresh()))
    with fork_server("tests.reliability.dying") as processes:
        for at in range(0, len(effects), 5):
            broken = replace(unbroken, output=place.fresh())
            assert die_elsewhere(broken, at, after=at % 2 == 0, environment=place.environment, processes=processes)
            check_readable(broken.store())
            assert run(broken).ok
            check_ended(broken, expected)


def test_a_run_that_dies_again_and_again_ends_well(place: Place, unbroken: SmallRun) -> None:
    broken = replace(unbroken, output=place.fresh())
    deaths = 0
    while die_here(broken, 5 + deaths, after=deaths % 2 == 0):
        deaths += 1
        check_readable(broken.store())
    assert deaths >= 2
    check_ended(broken, rows(unbroken.store()))


def test_vacuum_that_dies_at_any_side_effect_removes_nothing_that_is_committed(
    place: Place, unbroken: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = rows(unbroken.store())
    names = effects_of(replace(unbroken, output=place.fresh()))
    first_commit = next(at for at, name in enumerate(names) if name.startswith("create") and "/commits/" in name)

    def left_behind() -> SmallRun:
        """A run of which a driver died before its first commit, and another one after."""
        broken = replace(unbroken, output=place.fresh())
        assert die_here(broken, first_commit, after=False)
        assert die_here(broken, 4 if place.kind == "local" else 1, after=True)
        return broken

    def clean(small: SmallRun) -> Removal:
        return vacuum(small.store(), RUN, older_than_s=0)

    effects = effects_of(left_behind(), clean)
    assert len(effects) >= 2
    points = place.points(effects)
    for at, after in points:
        broken = left_behind()
        assert die_here(broken, at, after=after, act=clean)
        check_readable(broken.store())
        clean(broken)
        assert verify(broken.store(), RUN).leftovers == []
        assert run(broken).ok
        check_ended(broken, expected)
        remove_from_memory(broken)
    with capsys.disabled():
        print(f"\n{place.kind}: {len(points)} crash points of vacuum survived, of {2 * len(effects)}")


def test_vacuum_leaves_exactly_what_an_unbroken_run_has(place: Place, unbroken: SmallRun) -> None:
    """Also what a dead process was in the middle of: temporary files, probes, plans that lost."""
    effects = effects_of(replace(unbroken, output=place.fresh()))
    for at, after in place.points(effects):
        if not after:
            continue
        broken = replace(unbroken, output=place.fresh())
        die_here(broken, at, after=True)
        run(broken)
        vacuum(broken.store(), RUN, older_than_s=0)
        assert _everything(place, broken) == _everything(place, unbroken)
        assert raw_rows(broken.store()) == rows(unbroken.store())
        remove_from_memory(broken)


def _everything(place: Place, small: SmallRun) -> int:
    if place.kind == "local":
        return sum(path.is_file() for path in Path(small.output).rglob("*"))
    return len(state(small.store()))
