"""`xsam-label query`: run a SELECT over an output, and show the result or save it to a new file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from flows.commands.console import literal
from flows.run.existing_runs import no_run
from pipelines.errors import QueryError
from pipelines.query.database import open_database
from pipelines.query.files import damage_named
from pipelines.query.select_text import read_statement
from pipelines.query.user_select import (
    TEXT_FORMATS,
    Column,
    check_format,
    check_select,
    first_rows,
    save,
    text_pieces,
)
from pipelines.redaction import counted, quoted
from pipelines.storage.store import open_store
from pipelines.storage.targets import open_target

FORMATS = ("table", *TEXT_FORMATS)
# On a terminal: rows of a table, and of records, each of which takes as many lines as there are columns.
_MAX_ROWS, _MAX_RECORDS = 40, 5
# The characters of a value that a terminal shows, in lines of at least so many where columns share its width.
_MAX_CELL, _MIN_LINE = 200, 12
_PLAIN = (str, int, float, bool, date, datetime, time, Decimal)


def run_query(  # noqa: PLR0913  (each is a choice of its own)
    output: str,
    sql: str,
    console: Console,
    *,
    to: str | None = None,
    overwrite: bool = False,
    text_format: str | None = None,
    columns: Sequence[str] | None = None,
    max_rows: int | None = None,
    drop_removed: bool = False,
    image_ids: Sequence[str] | None = None,
) -> None:
    """Run a query, and print its result or save it.

    Args:
        output: path or URI of the output.
        sql: one SELECT statement over the views of `open_database`.
        console: where to print.
        to: path or URI of a new file for the whole result, in the format of its extension; by default it is printed.
        overwrite: whether the file may be replaced.
        text_format: one of FORMATS for what is printed; by default a table on a terminal, and CSV elsewhere.
        columns: those wanted of the result, in this order; by default all.
        max_rows: number of rows to print; by default as many of a table as are read at a glance, and all of the others.
        drop_removed, image_ids: as for open_database.

    Raises:
        QueryError: the query is invalid, or a format or column is not known.
        PlanError: the output has no run.
        StorageError: the output cannot be read, or the file exists or cannot be written.
    """
    statement = read_statement(sql)
    target = None
    if text_format is not None and (to is not None or text_format not in FORMATS):
        told = "leave it out: the extension of --to tells the format" if to else f"give one of {', '.join(FORMATS)}"
        raise QueryError(f"--format is {quoted(text_format)}; {told}")
    if to is not None:
        check_format(to)
        target = open_target(to, overwrite=overwrite, output=output)
    text_format = text_format or ("table" if console.is_terminal else "csv")
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
        select = check_select(connection, sql, columns)
        if target is not None and place is not None:
            with console.status(f"writing {to}"):
                whole = place / f"whole{target.suffix}"
                count = save(connection, select, whole)
                target.publish(whole)
            console.print(f"{counted(count, 'row')} written to {literal(str(to))}")
        elif text_format == "table":
            with console.status("reading"):
                rows, is_cut = first_rows(connection, select, max_rows or _MAX_ROWS)
            show_rows(select.columns, rows, console, is_cut=is_cut, max_records=max_rows or _MAX_RECORDS)
        else:
            _print_text(text_pieces(connection, select, text_format, max_rows))


def _print_text(pieces: Iterator[str]) -> None:
    for piece in pieces:
        sys.stdout.write(piece)


def show_rows(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Any]],
    console: Console,
    *,
    is_cut: bool = False,
    max_records: int = _MAX_RECORDS,
) -> None:
    """Print rows as a table; where a terminal is too narrow for its columns, as records: a line for each value.

    A terminal gets long values wrapped, and only their beginning if they are longer than a few lines. Elsewhere the
    table is as wide as it must be, for a program that reads it finds each value whole.

    Args:
        columns: those of the rows.
        rows: the values.
        console: where to print.
        is_cut: whether there are more rows.
        max_records: how many rows to print if as records.
    """
    texts = [[cell_text(value) for value in row] for row in rows]
    printed = [[_cut(text) if console.is_terminal else text for text in row] for row in texts]
    widths = [_width(column.name, [row[place] for row in printed]) for place, column in enumerate(columns)]
    names = [max(map(cell_len, (_MIN_LINE * "-", *column.name.split("\n")))) for column in columns]
    narrowest = [min(width, name) for width, name in zip(widths, names, strict=True)]
    borders = 3 * len(columns) + 1
    if console.is_terminal and sum(narrowest) + borders > console.width:
        is_cut |= len(printed) > max_records
        printed = printed[:max_records]
        for number, row in enumerate(printed, start=1):
            console.print(_record(columns, row, number), soft_wrap=False)
    else:
        # Rich makes columns narrower until the table fits, the widest first.
        table = Table(width=None if console.is_terminal else sum(widths) + borders)
        for column, width in zip(columns, narrowest, strict=True):
            justify: Any = "right" if _is_number(column.type) else "left"
            table.add_column(literal(column.name), justify=justify, overflow="fold", min_width=width)
        for row in printed:
            table.add_row(*map(literal, row))
        console.print(table, soft_wrap=not console.is_terminal)
    if any(
        cut != text
        for cut_row, row in zip(printed, texts, strict=False)
        for cut, text in zip(cut_row, row, strict=True)
    ):
        console.print(
            f"values cut at {_MAX_CELL} characters; --format csv, json or jsonl and --to FILE have them whole"
        )
    if is_cut:
        console.print(
            f"the first {counted(len(printed), 'row')}; --rows shows more, --format csv all, --to FILE saves all"
        )


def _record(columns: Sequence[Column], row: Sequence[str], number: int) -> Table:
    table = Table(title=f"row {number:,}", title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for column, text in zip(columns, row, strict=True):
        table.add_row(f"[dim]{literal(column.name)}[/]", literal(text))
    return table


def _width(name: str, texts: Sequence[str]) -> int:
    return max(cell_len(line) for text in (name, *texts) for line in text.split("\n"))


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
