"""`publish`: let readers of lakehouse tables see the current rows."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from flows.commands.console import facts_table, literal, print_json
from flows.run.existing_runs import existing_plans
from pipelines.lakehouse.publish import PublishedTable, publish_delta
from pipelines.redaction import counted


def show_publish_delta(output: str, console: Console, *, as_json: bool = False) -> None:
    """Write the Delta logs of an output's tables, and print what they hold, or one JSON document.

    Raises:
        PlanError: nothing is committed, or something came between; the message says what to do.
        StorageError: the output cannot be read or written, or others have written one of the logs.
    """
    store, _ = existing_plans(output, None)
    with console.status("publishing") as spinner:
        tables = publish_delta(store, on_step=lambda step: spinner.update(literal(step)))
    if as_json:
        print_json(console, {"output": store.uri, "tables": [asdict(table) for table in tables]})
        return
    rows: list[tuple[str, object]] = [(literal(f"{store.uri}/{table.kind}"), _told(table)) for table in tables]
    is_new = any(table.is_new for table in tables)
    console.print(facts_table("published" if is_new else "there already: nothing has changed since", rows))


def _told(table: PublishedTable) -> str:
    held = f"version {table.version:,} of {counted(table.num_files, 'file')}"
    if not table.is_new:
        return held
    changes = [f"{table.added:,} added", f"{table.removed:,} removed"]
    if table.written:
        changes.append(f"{table.written:,} written, since other rows of the committed ones are replaced")
    return f"{held}: {', '.join(changes)}"
