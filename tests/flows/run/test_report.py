"""The report that a run leaves beside its summary."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.pool.runner import PoolEvent
from flows.run import engine
from flows.run.observer import Silent
from pipelines.storage.store import open_store
from pipelines.table.leftovers import find_leftovers
from pipelines.table.verify import verify
from tests.flows.conftest import MakeConfig
from tests.support.drivers import PrefectServer, listing


class _Heard(Silent):
    def __init__(self) -> None:
        self.events: list[PoolEvent] = []

    def on_event(self, event: PoolEvent) -> None:
        self.events.append(event)


def test_a_run_leaves_its_report_once(make_config: MakeConfig, tmp_path: Path) -> None:
    summary = engine.run_directly(make_config(report=True), Silent())
    page = tmp_path / "output" / "_runs" / summary.run_id / "report.html"
    assert page.read_text().count("<img ") > 10
    store = open_store(str(tmp_path / "output"))
    assert verify(store, summary.run_id, deep=True).ok
    assert find_leftovers(store, summary.run_id).names == []
    before = listing(tmp_path / "output")
    assert engine.run_directly(make_config(report=True), Silent()).labelled_now == 0
    assert listing(tmp_path / "output") == before


def test_a_report_that_fails_is_told_and_the_run_is_labeled(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr("pipelines.report.build.build_report", broken)
    heard = _Heard()
    summary = engine.run_directly(make_config(report=True), heard)
    assert summary.ok
    assert [event.message for event in heard.events if event.kind == "report_failed"] == [
        "no report was written: RuntimeError: no page today"
    ]
    assert not list(tmp_path.rglob("report.html"))


def test_no_report_is_left_unless_asked_for(make_config: MakeConfig, tmp_path: Path) -> None:
    engine.run_directly(make_config(), Silent())
    assert not list(tmp_path.rglob("report.html"))


def test_the_flow_says_where_its_report_is(make_config: MakeConfig, prefect: PrefectServer, tmp_path: Path) -> None:
    from flows.label_collection import label_collection

    summary = label_collection(make_config(report=True))
    page = tmp_path / "output" / "_runs" / summary["run_id"] / "report.html"
    chosen = {"artifacts": {"key": {"like_": "summary"}}}
    assert any(page.as_uri() in artifact["data"] for artifact in prefect.ask("artifacts/filter", chosen))
    assert page.exists()
