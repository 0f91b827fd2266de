"""`xsam-label query`: run a SELECT over an output, and show the result or save it to a new file."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from flows.commands.console import literal
from flows.run.existing_runs import no_run
from pipelines.query.database import open_database
from pipelines.query.files import damage_named
from pipelines.query.select_text import read_statement
from pipelines.query.user_select import Column, check_format, check_select, first_rows, save
from pipelines.redaction import counted, quoted_names
from pipelines.storage.store import open_store
from pipelines.storage.targets import open_target

_MAX_CELL = 40
_PLAIN = (str, int, float, bool, date, datetime, time, Decimal)


def run_query(
    output: str,
    sql: str,
    console: Console,
    *,
    to: str | None = None,
    overwrite: bool = False,
    max_rows: int = 40,
    drop_removed: bool = False,
    image_ids: Sequence[str] | None = None,
) -> None:
    """Run a query, and print the first rows of its result or save all of them.

    Args:
        output: path or URI of the output.
        sql: one SELECT statement over the views of `open_database`.
        console: where to print.
        to: path or URI of a new file for the whole result, in the format of its extension; by default the first rows
            are printed.
        overwrite: whether the file may be replaced.
        max_rows: number of rows to print.
        drop_removed, image_ids: as for open_database.

    Raises:
        QueryError: the query is invalid, or the file's extension is not known.
        PlanError: the output has no run.
        StorageError: the output cannot be read, or the file exists or cannot be written.
    """
    statement = read_statement(sql)
    target = None
    if to is not None:
        check_format(to)
        target = open_target(to, overwrite=overwrite, output=output)
    store = open_store(output)
    with damage_named(store), contextlib.ExitStack() as opened:
        # DuckDB writes only to this folder (see fence), so the file is complete before it gets its name.
        place = None if target is None else opened.enter_context(target.place())
        with console.status("finding the committed files"):
            found = open_database(
                store,
                image_ids=image_ids,
                own_files=statement.own_files,
                folder=place,
                is_saved=target is not None,
                drop_removed=drop_removed,
            )
            connection = opened.enter_context(found)
        if not connection.execute("SELECT 1 FROM runs LIMIT 1").fetchall():
            raise no_run(store.uri)
        select = check_select(connection, sql)
        if target is not None and place is not None:
            with console.status(f"writing {to}"):
                whole = place / f"whole{target.suffix}"
                count = save(connection, select, whole)
                target.publish(whole)
            console.print(f"{counted(count, 'row')} written to {literal(str(to))}")
            return
        with console.status("reading"):
            rows, is_cut = first_rows(connection, select, max_rows)
    show_rows(select.columns, rows, console)
    if is_cut:
        console.print(f"the first {max_rows:,} rows; --rows shows more, --to FILE saves all")


def show_rows(columns: Sequence[Column], rows: Sequence[Sequence[Any]], console: Console) -> None:
    """Print rows as a table with as many columns as fit, and name the other columns. Only a terminal gets them cut."""
    texts = [[cell_text(value) for value in row] for row in rows]
    widths = _widths(columns, [[_cut(text) for text in row] for row in texts])
    fitting = max(1, sum(1 for place in range(len(columns)) if sum(widths[: place + 1]) < console.width))
    printed = [[_cut(text) if console.is_terminal else text for text in row[:fitting]] for row in texts]
    # A program that reads the table finds each value whole.
    table = Table(width=None if console.is_terminal else sum(_widths(columns[:fitting], printed)) + 1)
    for column in columns[:fitting]:
        justify: Any = "right" if _is_number(column.type) else "left"
        table.add_column(literal(column.name), justify=justify, overflow="fold")
    for row in printed:
        table.add_row(*map(literal, row))
    console.print(table)
    if printed != [row[:fitting] for row in texts]:
        console.print(f"cells cut at {_MAX_CELL} characters; --to FILE has them whole")
    if hidden := [column.name for column in columns[fitting:]]:
        names = literal(quoted_names(hidden))
        console.print(
            f"{counted(len(hidden), 'more column does', 'more columns do')} not fit: {names}; select those "
            "wanted, or save all with --to FILE"
        )


def _widths(columns: Sequence[Column], texts: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column with its border."""
    return [
        max([cell_len(column.name), *(cell_len(line) for row in texts for line in row[place].split("\n"))]) + 3
        for place, column in enumerate(columns)
    ]


def cell_text(value: Any) -> str:
    """Format a value for a table, with lists and structs as JSON."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, _PLAIN) else json.dumps(value, default=str, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"


def _is_number(kind: str) -> bool:
    return kind.rstrip("0123456789").endswith(("INT", "INTEGER", "FLOAT", "DOUBLE")) or kind.startswith("DECIMAL")
