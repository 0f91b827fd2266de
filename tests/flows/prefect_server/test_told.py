"""What Prefect is told of runs that are unlike the one before: events, of which its automations can tell people."""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from prefect.events.schemas.events import Event

from actors.pool.runner import PoolEvent
from flows.prefect_server.told import PrefectObserver, artifact_key, artifacts, ended_text
from flows.run.planning import PlannedRun
from flows.run.summary import RunSummary
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.plan import Plan
from pipelines.table.repairs import Due
from tests.support.labeled import RUN, write_output


def planned(update: UpdateCounts | None = None, nothing_new: str = "") -> PlannedRun:
    """A run that artifacts are made of; they look at no plan."""
    due = Due({})
    return PlannedRun(plan=cast(Plan, None), runner=None, update=update, due=due, started=0, nothing_new=nothing_new)


class Record:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self.events: list[dict[str, Any]] = []

    def log(self, level: int, text: str) -> None:
        self.lines.append((level, text))

    def progress(self, key: str, percent: float, description: str) -> None: ...

    def event(self, values: dict[str, Any]) -> None:
        self.events.append(values)


def test_an_alarm_of_a_canary_is_an_event_that_prefect_takes_and_a_warning_in_the_log(tmp_path: Path) -> None:
    _, plan = write_output(tmp_path / "out", {"a": []})
    record = Record()
    observer = PrefectObserver(record, "out", plan, 0)
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
    assert "event" not in [kind for _, kind, _ in artifacts(planned(), ended, None)]
    changed = RunSummary(**{**ended.to_dict(), "facts": {"changes": ["fewer masks"]}, "warnings": ["fewer masks"]})
    told = {kind: values for _, kind, values in artifacts(planned(), changed, None)}
    assert Event(**told["event"]).event == "xsam-label.run.changed"
    assert told["event"]["payload"]["found"] == ["fewer masks"]
    assert "* fewer masks" in told["markdown"]["markdown"]


def test_a_night_with_nothing_new_says_so_and_not_the_counts_of_another() -> None:
    last = RunSummary(
        run_id=RUN,
        output="s3://b/out",
        ledger={"listed": 9},
        reason_counts={},
        num_annotations=77,
        shards=1,
        committed=1,
    )
    run = planned(UpdateCounts(covered=12_345), nothing_new="what the terminal says")
    assert ended_text(run, last) == "nothing new: all 12,345 listed images are covered"
    ((_, kind, values),) = artifacts(run, last, None)
    assert (kind, values["description"]) == ("markdown", ended_text(run, last))
    assert "77" not in values["markdown"]
    now = replace(last, labelled_now=1)
    assert ended_text(run, now) == "9 listed; 77 masks"
    assert ended_text(planned(), last) == "9 listed; 77 masks, none of them by this flow run"


def test_each_output_has_artifacts_of_its_own_and_the_report_is_told_in_words() -> None:
    ended = RunSummary(
        run_id=RUN, output="s3://b/out", ledger={}, reason_counts={}, num_annotations=0, shards=1, committed=1
    )
    for output, name in {"s3://cats/Labels v2": "s3-cats-labels-v2", "/home/ann/labels": "home-ann-labels"}.items():
        made = list(artifacts(planned(), replace(ended, output=output), "s3://cats/report.html"))
        assert [values["key"] for _, _, values in made] == [f"{name}-counts", f"{name}-summary"]
        assert f"`xsam-label report {shlex.quote(output)}`" in made[1][2]["markdown"]
        assert "s3://cats/report.html" in made[1][2]["markdown"]


def test_outputs_whose_names_prefect_does_not_take_are_told_apart() -> None:
    keys = [artifact_key(output, "counts") for output in ("/данные/кот", "/метки/пёс", "/a" * 50, "/a" * 51)]
    assert len(set(keys)) == 4
    assert all(re.fullmatch("[a-z0-9][a-z0-9-]{0,80}", key) for key in keys)
