"""A driver that pauses anywhere while another one does the whole run: one committed copy, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.dying import effects_of
from tests.reliability.pausing import Pausing
from tests.reliability.small_run import LONG, SmallRun, check_ended, remove_from_memory, rows, run, write_source
from tests.reliability.watched_storage import watched


@pytest.mark.parametrize("place", ["local", "memory"])
def test_a_driver_that_pauses_while_another_does_the_whole_run_commits_nothing_twice(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fresh() -> str:
        fresh.count = getattr(fresh, "count", 0) + 1
        where = f"{tmp_path.name}-{fresh.count}"
        return str(tmp_path / where) if place == "local" else f"memory://{where}"

    small = SmallRun(source=write_source(tmp_path / "images"), output=fresh())
    effects = effects_of(small)
    expected = rows(small.store())
    points = [(at, after) for at in range(len(effects)) for after in (False, True)]
    points = points[:: 1 if LONG or place == "memory" else 3]
    for at, after in points:
        both, ends = replace(small, output=fresh()), []
        with watched(both.output, Pausing(at, after, lambda both=both, ends=ends: ends.append(run(both)))):
            ends.append(run(both))
        assert [end.problems for end in ends] == [[], []]
        check_ended(both, expected)
        remove_from_memory(both)
    with capsys.disabled():
        print(f"\n{place}: {len(points)} points of {2 * len(effects)} at which another driver did the whole run")
