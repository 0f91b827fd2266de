"""Run a user's SELECT on an output: check it, return its first rows, or save the whole result to a new file."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import duckdb

from pipelines.errors import QueryError, SourceError, StorageError
from pipelines.query.database import VIEWS, rows_of
from pipelines.query.fence import sql_literal
from pipelines.query.select_text import read_statement
from pipelines.redaction import quoted_names

FILE_FORMATS = {
    ".csv": "FORMAT csv, HEADER true",
    ".json": "FORMAT json, ARRAY true",
    ".jsonl": "FORMAT json, ARRAY false",
    ".parquet": "FORMAT parquet, COMPRESSION zstd",
}
TEXT_FORMATS = ("csv", "json", "jsonl")
"""What ``text_pieces`` writes."""
MASK_COLUMNS = "i.width, i.height, i.num_bytes, i.source_columns"
"""What a condition on masks (--where) may name of the mask's image ``i``, beside the columns of ``annotations``."""

_ROWS_AT_ONCE = 1000
_FLOATS = re.compile(r"\b(FLOAT|DOUBLE|JSON)\b")
# Rewritten only where such a word occurs: what is in quotes stays, so that a text of this name does too.
_PLAIN_JSON = """
CASE WHEN contains({0}, 'NaN') OR contains({0}, 'Infinity') THEN array_to_string(list_transform(
    regexp_extract_all({0}, '"(?:[^"\\\\]|\\\\.)*"|-?NaN|-?Infinity|[^"NI-]+|.'),
    lambda part: CASE WHEN part IN ('NaN', '-NaN', 'Infinity', '-Infinity') THEN 'null' ELSE part END), '')
ELSE {0} END::JSON
"""
_NESTED = re.compile(r"\]$|^(STRUCT|MAP|UNION|LIST)\b")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a result: its name, and DuckDB's name for its type."""

    name: str
    type: str

    @property
    def is_nested(self) -> bool:
        """Whether its values are lists, structs or maps."""
        return _NESTED.search(self.type) is not None


@dataclass(frozen=True, slots=True)
class Select:
    """A statement that has been checked.

    Attributes:
        sql: the statement, without a semicolon at the end.
        columns: the columns of its result.
    """

    sql: str
    columns: tuple[Column, ...]


def check_select(connection: duckdb.DuckDBPyConnection, sql: str, columns: Sequence[str] | None = None) -> Select:
    """Check, without running it, that a text is one statement that only reads and that everything it names exists.

    Args:
        connection: as open_database returns it, with the statement's own files.
        sql: the user's statement.
        columns: those of its result that are wanted, in this order; by default all.

    Raises:
        QueryError: it is not SQL, names something unknown, is several statements, or would change or write something;
            or its result has not all of the columns.
    """
    statement = read_statement(sql)
    with explained_query(connection, statement.sql):
        # As a subquery, in which DuckDB itself allows no statement of a WITH clause to write.
        found = connection.execute(f"DESCRIBE SELECT * FROM (\n{statement.sql}\n)").fetchall()
    held = {row[0]: Column(name=row[0], type=row[1]) for row in found}
    if columns is None:
        return Select(statement.sql, tuple(held.values()))
    if unknown := [name for name in columns if name not in held]:
        raise QueryError(f"--columns: the result has no {quoted_names(unknown)}; it has {', '.join(held)}")
    chosen = ", ".join(map(_quoted, columns))
    return Select(f"SELECT {chosen} FROM (\n{statement.sql}\n)", tuple(held[name] for name in columns))


def first_rows(connection: duckdb.DuckDBPyConnection, select: Select, count: int) -> tuple[list[tuple[Any, ...]], bool]:
    """Return the first rows of a result, and whether there are more; the others are not fetched.

    Raises:
        QueryError, StorageError: the statement fails while it runs.
    """
    with explained_query(connection, select.sql):
        rows = connection.execute(select.sql).fetchmany(count + 1)
    return rows[:count], len(rows) > count


def save(connection: duckdb.DuckDBPyConnection, select: Select, whole: Path) -> int:
    """Write a whole result to a file; rows are streamed.

    In CSV, nested values are written as JSON. JSON is one array of objects, JSON lines one object per line; NaN and
    infinities, which JSON has no word for, are null in it. Parquet has
    the same schema whatever the rows, all columns optional, if the connection is opened with ``is_saved``.

    Args:
        connection: as open_database returns it, with a folder.
        select: the statement.
        whole: the file, in that folder; its extension, one of FILE_FORMATS, determines the format.

    Returns:
        The number of rows written.

    Raises:
        QueryError: the query fails while it runs.
        StorageError: the output cannot be read.
    """
    suffix = whole.suffix.lower()
    rows = select.sql if suffix == ".parquet" else _text_rows(select, suffix)
    with explained_query(connection, select.sql):
        sql = f"COPY (FROM (\n{rows}\n)) TO {sql_literal(str(whole))} ({FILE_FORMATS[suffix]})"
        (count,) = connection.execute(sql).fetchall()[0]
    return int(count)


def text_pieces(
    connection: duckdb.DuckDBPyConnection, select: Select, text_format: str, count: int | None = None
) -> Iterator[str]:
    """Yield a result as text, values as ``save`` writes them; rows are streamed.

    Args:
        connection: as open_database returns it.
        select: the statement.
        text_format: one of TEXT_FORMATS.
        count: how many rows; by default all.

    Raises:
        QueryError, StorageError: the statement fails while it runs.
    """
    rows = _text_rows(select, f".{text_format}")
    columns = "columns(*)::VARCHAR" if text_format == "csv" else 'to_json("the whole row")::VARCHAR'
    limit = "" if count is None else f"LIMIT {count}"
    with explained_query(connection, select.sql):
        found = connection.execute(f'SELECT {columns} FROM (\n{rows}\n) AS "the whole row" {limit}')
        if text_format == "csv":
            yield _csv([[column.name for column in select.columns]])
        yield "[\n" * (text_format == "json")
        is_first = True
        while batch := found.fetchmany(_ROWS_AT_ONCE):
            if text_format == "csv":
                yield _csv(batch)
            elif text_format == "jsonl":
                yield "".join(f"{row}\n" for (row,) in batch)
            else:
                yield ("" if is_first else ",\n") + ",\n".join(row for (row,) in batch)
            is_first = False
        if text_format == "json":
            yield "]\n" if is_first else "\n]\n"


def _csv(rows: Sequence[Sequence[str | None]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text_rows(select: Select, suffix: str) -> str:
    """Return the statement with values as a text file of this extension holds them."""
    values = {column.name: value for column in select.columns if (value := _in_text(column, suffix))}
    if not values:
        return select.sql
    replaced = ", ".join(f"{value} AS {_quoted(name)}" for name, value in values.items())
    return f"SELECT * REPLACE ({replaced}) FROM (\n{select.sql}\n)"


def _in_text(column: Column, suffix: str) -> str:
    """Return the expression of a column's value in a text file; empty if the column is written as it is."""
    name = _quoted(column.name)
    if column.type == "JSON" or (column.is_nested and _FLOATS.search(column.type)):
        return _PLAIN_JSON.format(f"to_json({name})::VARCHAR")
    if suffix == ".csv":
        return f"to_json({name})" if column.is_nested else ""
    return f"CASE WHEN isfinite({name}) THEN {name} END" if column.type in ("FLOAT", "DOUBLE") else ""


def check_format(name: str) -> None:
    """Check that a result can be saved to a file of this name.

    Raises:
        QueryError: the extension is not one of FILE_FORMATS.
    """
    suffix = PurePosixPath(name).suffix
    if suffix.lower() not in FILE_FORMATS:
        raise QueryError(f"{name}: extension {suffix!r} is not known; name a file {', '.join(FILE_FORMATS)}")


@contextlib.contextmanager
def explained_query(connection: duckdb.DuckDBPyConnection, sql: str) -> Iterator[None]:
    """Raise a QueryError with a clear message in place of DuckDB's exceptions about a query."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise QueryError(
            f"{_message(error)}\nOf files, a query reads those of the output and those of this machine that it names "
            "itself, in quotes: JOIN 'meta.csv', read_csv('meta.csv'), read_parquet(['a.parquet', 'b.parquet'])"
        ) from error
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        text = str(error)
        if "Table with name" in text:
            raise QueryError(f"{_message(error)}\nviews: {', '.join(VIEWS)}") from error
        known = describe_views(connection, sql) if isinstance(error, duckdb.BinderException) else ""
        raise QueryError("\n".join(filter(None, [_message(error), known]))) from error
    except duckdb.Error as error:
        if isinstance(error.__cause__, StorageError):
            raise error.__cause__ from error
        raise QueryError(_message(error)) from error


def masks_that_fit(run_id: str | None, where: str) -> str:
    """Return the SQL to put after FROM for the masks of one run, or for the current ones, that fit a condition.

    Args:
        run_id: the run; None for the current rows.
        where: as read_condition has checked it, over the columns of ``annotations`` and MASK_COLUMNS; empty for all.
    """
    masks, images = rows_of("annotations", run_id), rows_of("images", run_id)
    if not where:
        return masks
    with_image = f"SELECT a.*, {MASK_COLUMNS} FROM {masks} AS a JOIN {images} AS i USING (image_id)"
    # The line break ends a comment, in which a condition may end.
    return f"(SELECT * FROM ({with_image}) WHERE ({where}\n))"


@contextlib.contextmanager
def condition_errors(option: str, *, known: str = "") -> Iterator[None]:
    """Raise a SourceError that names an option in place of DuckDB's exceptions about the condition that it gives.

    Errors of the disk, of memory and of files keep their class.

    Args:
        option: its name.
        known: what the condition may name, told where it names something else.
    """
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException):
        raise
    except duckdb.Error as error:
        # Invalid bytes in a file have no class of their own; mistakes in SQL do. A file system's error is the cause.
        if type(error) is duckdb.Error or isinstance(error.__cause__, StorageError):
            raise
        what = str(error).partition("\nLINE ")[0].strip()
        names = f"\n{known}" if known and isinstance(error, duckdb.BinderException) else ""
        raise SourceError(f"{option} is no SQL condition that can be used: {what}{names}") from error


def _message(error: duckdb.Error) -> str:
    """Return DuckDB's message with line numbers as in the user's text, without the line of the opening parenthesis."""
    return re.sub(r"^LINE (\d+):", lambda found: f"LINE {max(1, int(found[1]) - 1)}:", str(error).strip(), flags=re.M)


def describe_views(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """Describe the views that a statement names: each with its columns, one view per line."""
    named = [name for name in VIEWS if re.search(rf"\b{name}\b", sql, re.IGNORECASE)]
    found = connection.execute(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE schema_name = 'main' AND table_name IN $views GROUP BY 1",
        {"views": named},
    )
    columns = dict(found.fetchall())
    return "\n".join(f"{name}: {', '.join(columns[name])}" for name in named)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
