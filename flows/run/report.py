"""Write a run's HTML report beside its summary."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from actors.pool.runner import PoolEvent
from flows.config import RunConfig
from flows.run.observer import RunObserver
from flows.run.planning import open_output
from flows.run.summary import RunSummary
from pipelines.layout import report_name


def leave_report(config: RunConfig, summary: RunSummary, observer: RunObserver) -> str | None:
    """Write a run's report beside its summary, if the config asks for it and this invocation has completed the run.

    Errors are reported to the observer and not raised, since the run itself has succeeded.

    Returns:
        The report's URI; None if none was written.
    """
    if not config.report or not summary.labelled_now or summary.committed < summary.shards:
        return None
    from pipelines.report.build import ReportConfig, build_report  # DuckDB, Jinja: not for a run with nothing to do

    name = report_name(summary.run_id)
    try:
        store = open_output(config)
        page = build_report(store, ReportConfig(), made_at=datetime.now(UTC))
        store.write(name, page.encode("utf-8"))
    except Exception as error:  # noqa: BLE001  (a report is not worth failing a run)
        observer.on_event(PoolEvent("report_failed", f"no report was written: {type(error).__name__}: {error}"))
        return None
    return Path(store.path(name)).as_uri() if store.is_local else f"{store.uri}/{name}"
