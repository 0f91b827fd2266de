"""`xsam-label report`: write an HTML page that shows an output. The output is only read."""

from __future__ import annotations

from datetime import UTC, datetime

from rich.console import Console

from flows.commands.console import literal, size
from flows.run.existing_runs import no_run
from pipelines.planning.plan import planned_runs
from pipelines.report.build import ReportConfig, build_report
from pipelines.storage.store import open_store
from pipelines.storage.targets import open_target, write_target


def write_report(
    output: str, to: str, console: Console, *, overwrite: bool = False, drop_removed: bool = False
) -> None:
    """Write a page that shows an output.

    Args:
        output: path or URI of the output.
        to: path or URI of the file to write.
        console: where to print progress.
        overwrite: whether to replace the file if it exists.
        drop_removed: as for open_database.

    Raises:
        PlanError: the output has no run.
        StorageError: the file exists, the output cannot be read, or the file cannot be written; there is no file then.
    """
    target = open_target(
        to, overwrite=overwrite, output=output, suffixes=(".html", ".htm"), what="a report is written as .html"
    )
    store = open_store(output)
    if not planned_runs(store):
        raise no_run(output)
    with console.status("reading") as spinner:
        page = build_report(
            store, ReportConfig(drop_removed=drop_removed), made_at=datetime.now(UTC), on_step=spinner.update
        )
    data = page.encode("utf-8")
    write_target(target, data)
    console.print(f"{literal(to)}: {size(len(data))}, open it in a browser")
