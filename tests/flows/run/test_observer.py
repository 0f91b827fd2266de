"""Whoever watches a run cannot end it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from flows.run import engine
from flows.run.observer import Several, Silent, observed_by
from tests.reliability.small_run import SmallRun, as_driver, write_source
from tests.support.drivers import PrefectServer
from tests.support.fakes import BrightPredictor

CALLS = ("on_plan", "on_receipt", "on_event", "on_failure", "on_update")


class Broken:
    """Raises whatever it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name not in CALLS:
            raise AttributeError(name)

        def tell(*_: object) -> None:
            self.told.append(name)
            raise RuntimeError("the terminal is gone")

        return tell


class Listening(Silent):
    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def on_event(self, event: Any) -> None:
        self.told.append((event.kind, event.message))


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    return SmallRun(source=write_source(tmp_path / "images"), output=str(tmp_path / "out"), images_per_shard=1)


def test_an_observer_that_raises_ends_no_run_and_is_spoken_of_once(
    small: SmallRun, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    with as_driver(BrightPredictor()), caplog.at_level(logging.WARNING):
        assert engine.run_directly(small.config(), broken).ok
    assert broken.told.count("on_receipt") == 5
    spoken = [record.getMessage() for record in caplog.records if "the terminal is gone" in record.getMessage()]
    assert spoken == ["Broken raised RuntimeError: the terminal is gone; the run goes on, and is not told of it again"]


def test_the_other_observers_hear_everything_and_what_went_wrong() -> None:
    listening = Listening()
    several = Several(Broken(), listening)
    for number in range(3):
        several.on_event(type("Event", (), {"kind": "draining", "message": str(number)})())
    assert [kind for kind, _ in listening.told] == ["observer_failed", "draining", "draining", "draining"]


def test_who_ends_the_process_is_heard() -> None:
    class Ending(Silent):
        def on_event(self, event: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Several(Ending()).on_event(None)  # type: ignore[arg-type]


def test_a_flow_outlives_an_observer_that_raises(prefect: PrefectServer, small: SmallRun) -> None:
    from flows.label_collection import label_collection

    with as_driver(BrightPredictor()), observed_by(Broken()):
        assert label_collection(small.config())["problems"] == []
