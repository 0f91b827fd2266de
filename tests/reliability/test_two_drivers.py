"""A driver that pauses anywhere while another one does the whole run: one committed copy, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.reliability.dying import effects_of
from tests.reliability.small_run import LONG, SmallRun, check_ended, rows, run, write_source
from tests.reliability.watched_storage import watched


@dataclass
class Pausing:
    """A Watcher that does something else right before or right after a side effect, once."""

    at: int
    after: bool
    meanwhile: Callable[[], Any]
    _number: int = field(default=0)
    _away: bool = False

    def effect(self, _name: str, do: Callable[[], Any]) -> Any:
        if self._away:
            return do()
        number, self._number = self._number, self._number + 1
        if number != self.at:
            return do()
        if not self.after:
            self._leave()
        try:
            return do()
        finally:
            if self.after:
                self._leave()

    def reading(self, _name: str, do: Callable[[], Any]) -> Any:
        return do()

    def _leave(self) -> None:
        self._away = True
        self.meanwhile()
        self._away = False


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
    with capsys.disabled():
        print(f"\n{place}: {len(points)} points of {2 * len(effects)} at which another driver did the whole run")
