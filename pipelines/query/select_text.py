"""Check users' SQL by its syntax tree: that it is a single statement that only reads, and which files it names.

DuckDB's own parser does the parsing, so that nothing can mean one thing here and another when it runs. Nothing is run
or looked up: unknown names are reported when the statement is bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from pipelines.errors import QueryError

# Semicolons at the end, with blanks and comments between and after them.
_END = re.compile(r";(\s|;|--[^\n]*(\n|$))*$")
# Names that DuckDB reads as a file if they stand in place of a table.
_TABLE_FILE = re.compile(r"\.(csv|tsv|parquet|json|jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)
_SELECTS = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_FILE_READERS = frozenset(
    {
        *("read_csv", "read_csv_auto", "sniff_csv", "read_json", "read_json_auto", "read_ndjson", "read_ndjson_auto"),
        *("read_json_objects", "read_json_objects_auto", "read_ndjson_objects", "read_parquet", "parquet_scan"),
        *("parquet_schema", "parquet_metadata", "parquet_file_metadata", "parquet_kv_metadata"),
    }
)
# The table functions that only read values, files or the catalog. A list of what is allowed, not of what is forbidden:
# a new version of DuckDB may bring functions that do more.
_READING_FUNCTIONS = _FILE_READERS | {
    *("range", "generate_series", "repeat", "repeat_row", "unnest", "json_each", "json_tree", "histogram"),
    *("histogram_values", "summary", "duckdb_columns", "duckdb_functions", "duckdb_settings", "duckdb_tables"),
    *("duckdb_types", "duckdb_views", "pragma_table_info", "pragma_version", "icu_calendar_names"),
    *("pg_timezone_names",),
}
# Positions in the text, which differ between two spellings of the same statement.
_PLACES = ("query_location", "query_location_length")


@dataclass(frozen=True, slots=True)
class Statement:
    """One SELECT statement that only reads.

    Attributes:
        sql: its text, without a semicolon at the end.
        own_files: names and patterns of the local files that it reads, as written in it.
    """

    sql: str
    own_files: tuple[str, ...]


def read_statement(sql: str) -> Statement:
    """Check that a text is one statement that only reads.

    Raises:
        QueryError: it is not SQL, is several statements, would change or write something, or reads files that are not
            local.
    """
    with duckdb.connect(config={"threads": 1}) as parser:
        try:
            statements = parser.extract_statements(sql)
        except duckdb.Error as error:
            raise QueryError(str(error).strip()) from error
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise QueryError(
                f"a query must be one SELECT statement, this is {_kinds(statements)}; nothing was run. To keep a "
                "result, save it to a file (--to)"
            )
        text = _END.sub("", statements[0].query)
        (node,) = _trees(parser, text)
    return Statement(text, _own_files(node))


def read_condition(option: str, text: str) -> tuple[str, ...]:
    """Check that a text is exactly one condition, so that it can be put into a statement in parentheses.

    Args:
        option: its name in errors, e.g. ``--where``.
        text: the user's condition. Subqueries are subject to the rules of read_statement.

    Returns:
        Names and patterns of the local files that its subqueries read.

    Raises:
        QueryError: it is anything else.
    """
    with duckdb.connect(config={"threads": 1}) as parser:
        (bare,) = _trees(parser, "SELECT 1 WHERE true")
        try:
            # It must be all of a WHERE clause on its own, and mean the same in parentheses. A text that closes the
            # parenthesis, adds clauses or begins a comment fails one of the two.
            alone = _trees(parser, f"SELECT 1 WHERE {text}\n")
            within = _trees(parser, f"SELECT 1 WHERE (\n{text}\n)")
            is_one = len(alone) == 1 and alone == within
            is_one = is_one and {**alone[0], "where_clause": None} == {**bare, "where_clause": None}
        except QueryError as error:
            raise QueryError(f"{option} is no SQL condition that can be used: {error}") from error
    if not is_one:
        raise QueryError(f"{option} is no SQL condition that can be used: it goes on after a condition: {text!r}")
    try:
        return _own_files(alone[0])
    except QueryError as error:
        raise QueryError(f"{option} is no SQL condition that can be used: {error}") from error


def without_values(condition: str) -> str:
    """Return an SQL condition with ? for each value, and without comments: values may name an image or a person."""
    text = condition.encode()  # tokens begin at bytes, not at characters
    tokens, parts = duckdb.tokenize(condition), list[str]()
    ends = [start for start, _ in tokens[1:]] + [len(text)]
    for (start, kind), end in zip(tokens, ends, strict=True):
        if kind in (duckdb.token_type.string_const, duckdb.token_type.numeric_const):
            parts.append("? ")
        elif kind != duckdb.token_type.comment:
            parts.append(text[start:end].decode())
    return " ".join("".join(parts).split())


def _kinds(statements: list[Any]) -> str:
    if len(statements) > 1:
        return f"{len(statements)} statements"
    if statements and statements[0].type == duckdb.StatementType.MULTI:
        return "a PIVOT that must find its values first: list them, PIVOT ... ON column IN ('a', 'b')"
    return statements[0].type.name if statements else "empty"


def _trees(parser: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Return the syntax tree of each statement, without text positions."""
    ((text,),) = parser.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchall()
    try:
        found = json.loads(
            text, object_hook=lambda part: {name: value for name, value in part.items() if name not in _PLACES}
        )
    except RecursionError:
        raise QueryError(
            "it is nested too deeply to be checked: write it in fewer operations, one in another"
        ) from None
    if found["error"]:
        raise QueryError(found["error_message"])
    return [statement["node"] for statement in found["statements"]]


def _own_files(tree: dict[str, Any]) -> tuple[str, ...]:
    """Return the local files that a statement reads, from its syntax tree.

    Raises:
        QueryError: the statement does anything but read.
    """
    parts = list(_parts(tree))
    # Names of WITH clauses: a table of such a name is no file, even if it looks like one.
    common = {entry["key"] for part in parts if "cte_map" in part for entry in part["cte_map"]["map"]}
    names: list[str] = []
    for part in parts:
        # A node with a WITH map that is no query is an INSERT, UPDATE or the like inside a WITH clause.
        if "cte_map" in part and part["type"] not in _SELECTS:
            raise QueryError(f"a query only reads, and {part['type'].partition('_')[0]} does more; nothing was run")
        if part.get("type") == "BASE_TABLE":
            name = ".".join(part["qualified_name"]["path"])
            names += [name] if name not in common and _TABLE_FILE.search(name) else []
        elif part.get("type") == "TABLE_FUNCTION":
            names += _read_by(part["function"])
    for name in names:
        if "://" in name and not name.lower().startswith("file://"):
            raise QueryError(f"{name}: only files of this machine can be joined; copy it here, and name the copy")
    return tuple(dict.fromkeys(names))


def _read_by(function: dict[str, Any]) -> list[str]:
    """Return the files that a table function reads if they are string literals; computed names stay locked out."""
    name = str(function["qualified_name"]["path"][-1]).lower()
    if name not in _READING_FUNCTIONS:
        raise QueryError(
            f"the function {name} is not available here, for a query only reads: tables, the views of the output, and "
            "files by read_csv, read_json and read_parquet; nothing was run"
        )
    if name not in _FILE_READERS:
        return []
    return [text for argument in function["arguments"] for text in _texts(argument["expression"])]


def _texts(expression: dict[str, Any]) -> list[str]:
    """Return the string literals of an expression: a single one, or those of a list."""
    if expression["class"] == "CONSTANT":
        return [expression["literal"]["text"]] if expression["literal"]["kind"] == "STRING" else []
    if expression["class"] == "FUNCTION" and expression["function_name"] == "list_value":
        return [text for argument in expression["arguments"] for text in _texts(argument["expression"])]
    return []


def _parts(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every node of a tree, the tree itself included."""
    left: list[Any] = [tree]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
