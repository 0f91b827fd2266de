"""What Prefect is told of runs that are unlike the one before: events, of which its automations can tell people."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from prefect.events.schemas.events import Event

from actors.pool.runner import PoolEvent
from flows.prefect_server.told import PrefectObserver, artifacts
from flows.run.summary import RunSummary
from tests.support.labeled import RUN, write_output


class Record:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.events: list[dict[str, Any]] = []

    def log(self, level: int, text: str) -> None:
        self.lines.append((level, text))

    def progress(self, percent: float, description: str) -> None: ...

    def event(self, values: dict[str, Any]) -> None:
        self.events.append(values)


def test_an_alarm_of_a_canary_is_an_event_that_prefect_takes_and_a_warning_in_the_log(tmp_path: Path) -> None:
    _, plan = write_output(tmp_path / "out", {"a": []})
    record = Record()
    observer = PrefectObserver(record, plan, 0)
    observer.on_event(PoolEvent("canary", "all is as it was"))
    observer.on_event(PoolEvent("alarm", "nothing was found"))
    assert record.lines == [
        (logging.INFO, "canary: all is as it was"),
        (logging.WARNING, "alarm: nothing was found"),
    ]
    (values,) = record.events
    event = Event(**values)
    assert (event.event, event.resource.id) == ("xsam-label.canary.alarm", f"xsam-label.run.{RUN}")
    assert event.payload == {"run_id": RUN, "found": ["nothing was found"]}


def test_a_run_that_differs_from_the_last_is_an_event_at_its_end() -> None:
    ended = RunSummary(
        run_id=RUN, output="out", ledger={"listed": 1}, reason_counts={}, num_annotations=0, shards=1, committed=1
    )
    assert "event" not in [kind for _, kind, _ in artifacts(ended, None)]
    changed = RunSummary(**{**ended.to_dict(), "facts": {"changes": ["fewer masks"]}, "warnings": ["fewer masks"]})
    told = {kind: values for _, kind, values in artifacts(changed, None)}
    assert Event(**told["event"]).event == "xsam-label.run.changed"
    assert told["event"]["payload"]["found"] == ["fewer masks"]
    assert "* fewer masks" in told["markdown"]["markdown"]
