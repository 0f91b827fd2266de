"""`xsam-label report`, and the report that a run leaves beside its summary. The output is only read by the first."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from actors.pool.runner import PoolEvent
from flows.config import ConfigError, RunConfig
from flows.console import literal, size
from flows.observer import RunObserver
from flows.planning import open_output
from flows.summary import RunSummary
from pipelines.errors import PlanError
from pipelines.layout import run_folder
from pipelines.planning.plan import planned_runs
from pipelines.report.build import ReportConfig, build_report
from pipelines.storage.local_files import write_whole
from pipelines.storage.store import open_store


def write_report(output: str, to: Path, console: Console, *, overwrite: bool = False) -> None:
    """Write a page that shows an output.

    Args:
        output: path or URI of the output.
        to: file to write.
        console: where to tell what is done.
        overwrite: replace the file if it exists.

    Raises:
        ConfigError: the file exists, or its folder does not.
        PlanError: the output holds no run.
        StorageError: it cannot be read, or the file not be written. There is no file then.
    """
    if to.exists() and not overwrite:
        raise ConfigError(f"{to} exists already; name a new file, or add --overwrite")
    if to.is_dir() or not to.parent.is_dir():
        what = f"{to} is a folder" if to.is_dir() else f"{to.parent} is not a folder"
        raise ConfigError(f"{what}; name the file to write, e.g. report.html")
    store = open_store(output)
    if not planned_runs(store):
        raise PlanError(f"{output} holds no run")
    with console.status("reading") as spinner:
        page = build_report(store, ReportConfig(), made_at=datetime.now(UTC), on_step=spinner.update)
    data = page.encode("utf-8")
    write_whole(to, data, overwrite=overwrite)
    console.print(f"{literal(to)}: {size(len(data))}, open it in a browser")


def leave_report(config: RunConfig, summary: RunSummary, observer: RunObserver) -> str | None:
    """Write a run's report beside its summary, if the config asks for it and this invocation has finished the run.

    What goes wrong is told to the observer and not raised: the run is labelled.

    Returns:
        The report's URI; None if none was written.
    """
    if not config.report or not summary.labelled_now or summary.committed < summary.shards:
        return None
    name = f"{run_folder(summary.run_id)}/report.html"
    try:
        store = open_output(config)
        page = build_report(store, ReportConfig(), made_at=datetime.now(UTC))
        store.write(name, page.encode("utf-8"))
    except Exception as error:  # noqa: BLE001  (a picture of the labels is not worth the run)
        observer.on_event(PoolEvent("report_failed", f"no report was written: {type(error).__name__}: {error}"))
        return None
    return Path(store.path(name)).as_uri() if store.is_local else f"{store.uri}/{name}"
