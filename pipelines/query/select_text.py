"""SQL that a person wrote, as DuckDB's own parser reads it: that it only reads, which files it names, what it is.

Nothing is run here, and nothing is looked up: what is not there is found when it is bound.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from pipelines.errors import QueryError

_END = re.compile(r";(\s|;|--[^\n]*(\n|$))*$")
_TABLE_FILE = re.compile(r"\.(csv|tsv|parquet|json|jsonl|ndjson)(\.(gz|zst))?$", re.IGNORECASE)
_SELECTS = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
_FILE_READERS = frozenset(
    {
        *("read_csv", "read_csv_auto", "sniff_csv", "read_json", "read_json_auto", "read_ndjson", "read_ndjson_auto"),
        *("read_json_objects", "read_json_objects_auto", "read_ndjson_objects", "read_parquet", "parquet_scan"),
        *("parquet_schema", "parquet_metadata", "parquet_file_metadata", "parquet_kv_metadata"),
    }
)
# Of all functions that give tables, those that read values, files or the catalog and do nothing else.
_READING_FUNCTIONS = _FILE_READERS | {
    *("range", "generate_series", "repeat", "repeat_row", "unnest", "json_each", "json_tree", "histogram"),
    *("histogram_values", "summary", "duckdb_columns", "duckdb_functions", "duckdb_settings", "duckdb_tables"),
    *("duckdb_types", "duckdb_views", "pragma_table_info", "pragma_version", "icu_calendar_names"),
    *("pg_timezone_names",),
}
# Where something was written is not what was written.
_PLACES = ("query_location", "query_location_length")


@dataclass(frozen=True, slots=True)
class Statement:
    """One SELECT statement that only reads.

    Attributes:
        sql: its text, without a semicolon.
        own_files: names and patterns of the files that it reads, as they stand in it.
    """

    sql: str
    own_files: tuple[str, ...]


def read_statement(sql: str) -> Statement:
    """Check that a text is one statement that only reads.

    Raises:
        QueryError: it is not SQL, is several statements, would change or write something, or reads what lies elsewhere
            than on this machine.
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
    """Check that a text is one condition, and no more than that, wherever it is put between parentheses.

    Args:
        option: what to call it in errors, e.g. ``--where``.
        text: what a person wrote. Subqueries are held to the rules of a query.

    Returns:
        Names and patterns of the files that its subqueries read.

    Raises:
        QueryError: it is anything else.
    """
    with duckdb.connect(config={"threads": 1}) as parser:
        (bare,) = _trees(parser, "SELECT 1 WHERE true")
        try:
            # Alone it is all of a WHERE clause, and in parentheses it means the same: so it ends nothing that we began.
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


def _kinds(statements: list[Any]) -> str:
    if len(statements) > 1:
        return f"{len(statements)} statements"
    if statements and statements[0].type == duckdb.StatementType.MULTI:
        return "a PIVOT that must find its values first: list them, PIVOT ... ON column IN ('a', 'b')"
    return statements[0].type.name if statements else "empty"


def _trees(parser: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    """Return the syntax tree of each statement, without places."""
    ((text,),) = parser.execute("SELECT json_serialize_sql($sql)", {"sql": sql}).fetchall()
    try:
        found = json.loads(text, object_hook=_without_places)
    except RecursionError:
        raise QueryError(
            "it is nested too deeply to be checked: write it in fewer operations, one in another"
        ) from None
    if found["error"]:
        raise QueryError(found["error_message"])
    return [statement["node"] for statement in found["statements"]]


def _without_places(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name not in _PLACES}


def _own_files(tree: dict[str, Any]) -> tuple[str, ...]:
    """Return the files that a tree reads.

    Raises:
        QueryError: it does anything else than to read.
    """
    parts = list(_parts(tree))
    common = {entry["key"] for part in parts if "cte_map" in part for entry in part["cte_map"]["map"]}
    names: list[str] = []
    for part in parts:
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
    """Return the files that a table function reads, as far as they are named by texts: others stay locked."""
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
    """Return a text that is written out, or those of a list of such."""
    if expression["class"] == "CONSTANT":
        return [expression["literal"]["text"]] if expression["literal"]["kind"] == "STRING" else []
    if expression["class"] == "FUNCTION" and expression["function_name"] == "list_value":
        return [text for argument in expression["arguments"] for text in _texts(argument["expression"])]
    return []


def _parts(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every object of a tree, itself too."""
    left: list[Any] = [tree]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left.extend(part.values())
        elif isinstance(part, list):
            left.extend(part)
