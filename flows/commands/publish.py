"""`publish`: let readers of lakehouse tables see the current rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console

from flows.commands.console import facts_table, literal, print_json
from flows.run.existing_runs import existing_plans
from pipelines.errors import UserError
from pipelines.lakehouse.publish import PublishedTable, publish_delta
from pipelines.redaction import counted
from pipelines.storage.store import Store


def show_publish(output: str, console: Console, *, iceberg: str | None = None, as_json: bool = False) -> None:
    """Publish an output's tables, and print what they hold, or one JSON document.

    Args:
        output: path or URI of the output.
        console: where to print.
        iceberg: catalog and namespace of the Iceberg tables that are to follow, as CATALOG.NAMESPACE; by default none.
        as_json: whether to print JSON.

    Raises:
        PlanError: nothing is committed, or something came between; the message says what to do.
        StorageError: the output or catalog does not answer, or others have written one of the tables.
    """
    store, _ = existing_plans(output, None)
    with console.status("publishing") as spinner:
        tables = _publish(store, iceberg, lambda step: spinner.update(literal(step)))
    if as_json:
        print_json(console, {"output": store.uri, "tables": [asdict(table) for table in tables]})
        return
    where = {table.kind: f"{iceberg}.{table.kind}" if iceberg else f"{store.uri}/{table.kind}" for table in tables}
    rows: list[tuple[str, object]] = [(literal(where[table.kind]), _told(table)) for table in tables]
    is_new = any(table.is_new for table in tables)
    console.print(facts_table("published" if is_new else "there already: nothing has changed since", rows))


def _publish(store: Store, iceberg: str | None, on_step: Callable[[str], None]) -> list[PublishedTable]:
    if iceberg is None:
        return publish_delta(store, on_step=on_step)
    from pipelines.lakehouse.iceberg import open_catalog, publish_iceberg

    catalog, _, namespace = iceberg.partition(".")
    if not catalog or not namespace:
        raise UserError(f"--iceberg {iceberg}: name a catalog and a namespace in it, as in production.labels")
    return publish_iceberg(store, open_catalog(catalog), namespace, on_step=on_step)


def _told(table: PublishedTable) -> str:
    held = f"version {table.version:,} of {counted(table.num_files, 'file')}"
    if not table.is_new:
        return held
    changes = [f"{table.added:,} added", f"{table.removed:,} removed"]
    if table.written:
        changes.append(f"{table.written:,} written, since other rows of the committed ones are replaced")
    return f"{held}: {', '.join(changes)}"
