"""`xsam-label report`: write an HTML page that shows an output. The output is only read."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from flows.commands.console import literal, size
from flows.config import ConfigError
from flows.run.held_runs import no_run
from pipelines.planning.plan import planned_runs
from pipelines.report.build import ReportConfig, build_report
from pipelines.storage.local_files import write_atomically
from pipelines.storage.store import open_store


def write_report(
    output: str, to: Path, console: Console, *, overwrite: bool = False, drop_removed: bool = False
) -> None:
    """Write a page that shows an output.

    Args:
        output: path or URI of the output.
        to: file to write.
        console: where to print progress.
        overwrite: whether to replace the file if it exists.
        drop_removed: as for open_database.

    Raises:
        ConfigError: the file exists, or its folder does not.
        PlanError: the output has no run.
        StorageError: the output cannot be read, or the file cannot be written; there is no file then.
    """
    if to.exists() and not overwrite:
        raise ConfigError(f"{to} exists already; name a new file, or add --overwrite")
    if to.is_dir() or not to.parent.is_dir():
        what = f"{to} is a folder" if to.is_dir() else f"{to.parent} is not a folder"
        raise ConfigError(f"{what}; name the file to write, e.g. report.html")
    store = open_store(output)
    if not planned_runs(store):
        raise no_run(output)
    with console.status("reading") as spinner:
        page = build_report(
            store, ReportConfig(drop_removed=drop_removed), made_at=datetime.now(UTC), on_step=spinner.update
        )
    data = page.encode("utf-8")
    write_atomically(to, data, overwrite=overwrite)
    console.print(f"{literal(to)}: {size(len(data))}, open it in a browser")
