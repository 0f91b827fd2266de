"""A person's SELECT: what is let through, what is saved, and that nothing is ever written over."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest

from pipelines.query import open_database
from pipelines.storage import StorageError
from pipelines.user_sql import QueryError, check_select, first_rows, save
from tests.labelled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")


@pytest.fixture
def database(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    found = {"a": [mask(CAT, box(0, 0, 2, 2), 0.9), mask(DOG, box(1, 1, 2, 2), 0.4)], "b": []}
    store, _ = write_output(tmp_path / "output", found, common=[CAT, DOG])
    return open_database(store)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM annotations",
        "SELECT count(*) FROM images;",
        "SELECT 1; -- done",
        "-- first\nSELECT 1 -- last",
        "WITH a AS (FROM annotations) FROM a ORDER BY score",
        "DESCRIBE coverage",
        "SHOW TABLES",
        "SUMMARIZE runs",
        "VALUES (1, ';')",
    ],
)
def test_what_only_reads_is_run(database: duckdb.DuckDBPyConnection, sql: str) -> None:
    rows, is_cut = first_rows(database, check_select(database, sql), 1000)
    assert rows
    assert not is_cut


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing",
        "SELECT 1; SELECT 2",
        "COPY annotations TO '{file}'",
        "WITH a AS (COPY annotations TO '{file}') FROM a",
        "WITH a AS (INSERT INTO runs VALUES (1) RETURNING *) FROM a",
        "FROM json_execute_serialized_sql(json_serialize_sql($$WITH a AS (COPY images TO '{file}') FROM a$$))",
        "FROM query($$WITH a AS (COPY images TO '{file}') FROM a$$)",
        "EXPLAIN ANALYZE COPY annotations TO '{file}'",
        "EXPORT DATABASE '{file}'",
        "ATTACH '{file}' AS other",
        "CREATE TABLE t AS FROM annotations",
        "DROP VIEW annotations",
        "DELETE FROM runs",
        "SET memory_limit = '1GB'",
        "INSTALL httpfs",
        "CALL pragma_version()",
    ],
)
def test_what_would_change_or_write_something_is_refused(
    database: duckdb.DuckDBPyConnection, sql: str, tmp_path: Path
) -> None:
    target = tmp_path / "target.csv"
    before = sorted(database.sql("FROM annotations").fetchall(), key=str)
    with pytest.raises(QueryError):
        first_rows(database, check_select(database, sql.replace("{file}", str(target))), 10)
    assert not target.exists()
    assert sorted(database.sql("FROM annotations").fetchall(), key=str) == before


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT scor FROM annotations", r'(?s)"scor" not found.*LINE 1: SELECT scor.*coverage: image_id, prompt_id'),
        ("FROM anotations", r"(?s)anotations does not exist.*\nimages: image_id, uri"),
        ("SELECT image_id::INT FROM images", "Could not convert string 'a' to INT32"),
        ("FROM 'missing.csv'", 'No files found that match the pattern "missing.csv"'),
        ("SELECT 1; SELECT 2", "must be one SELECT statement, this is 2 statements"),
        ("CREATE TABLE t (i INT)", "must be one SELECT statement, this is CREATE"),
        ("", "must be one SELECT statement, this is empty"),
    ],
)
def test_mistakes_are_told_as_they_are(database: duckdb.DuckDBPyConnection, sql: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        first_rows(database, check_select(database, sql), 10)


def test_no_more_rows_are_held_than_shown(database: duckdb.DuckDBPyConnection) -> None:
    rows, is_cut = first_rows(database, check_select(database, "FROM range(4_000_000_000_000)"), 3)
    assert (rows, is_cut) == ([(0,), (1,), (2,)], True)


def test_a_variable_of_the_program_is_no_table(database: duckdb.DuckDBPyConnection) -> None:
    select = named  # noqa: F841
    with pytest.raises(QueryError, match="does not exist"):
        check_select(database, "FROM select_")


def test_every_kind_of_file_holds_all_rows(database: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    select = check_select(database, "SELECT image_id, score, segmentation FROM annotations ORDER BY score DESC -- best")
    expected = database.sql(select.sql).fetchall()
    for extension in ("csv", "json", "jsonl", "parquet", "CSV"):
        assert save(database, select, tmp_path / f"it's.{extension}") == 2
    with open(tmp_path / "it's.csv", newline="") as file:
        rows = [(row["image_id"], float(row["score"]), json.loads(row["segmentation"])) for row in csv.DictReader(file)]
    assert [(a, pytest.approx(b), c) for a, b, c in rows] == expected
    documents = json.loads((tmp_path / "it's.json").read_text())
    assert [json.loads(line) for line in (tmp_path / "it's.jsonl").read_text().splitlines()] == documents
    assert [document["segmentation"] for document in documents] == [row[2] for row in expected]
    assert [tuple(row.values()) for row in pq.read_table(tmp_path / "it's.parquet").to_pylist()] == expected
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_file_is_never_written_over_and_never_left_half_written(
    database: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    held = tmp_path / "held.csv"
    held.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        save(database, check_select(database, "FROM images"), held)
    assert held.read_text() == "mine"
    failing = check_select(database, "SELECT CASE WHEN range > 500000 THEN error('broken') END FROM range(1000000)")
    with pytest.raises(QueryError, match="broken"):
        save(database, failing, tmp_path / "failing.csv")
    with pytest.raises(StorageError, match="not a folder"):
        save(database, check_select(database, "FROM images"), tmp_path / "nowhere" / "a.csv")
    with pytest.raises(QueryError, match=r"extension '\.txt' is not known; name a file \.csv, \.json"):
        save(database, check_select(database, "FROM images"), tmp_path / "a.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"held.csv", "output"}


def test_columns_of_one_name_are_all_saved(database: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    save(database, check_select(database, "SELECT 1 AS a, 2 AS a, [3] AS A"), tmp_path / "a.csv")
    save(database, check_select(database, "SELECT 1 AS a, 2 AS a, [3] AS A"), tmp_path / "a.json")
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "1,2,[3]"
    assert list(json.loads((tmp_path / "a.json").read_text())[0].values()) == [1, 2, [3]]


def test_ones_own_tables_are_joined(database: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    (tmp_path / "meta.csv").write_text("image_id,site\na,harbour\nb,yard\n")
    sql = f"SELECT site, count(*) FROM annotations JOIN '{tmp_path}/meta.csv' USING (image_id) GROUP BY 1"
    assert first_rows(database, check_select(database, sql), 10)[0] == [("harbour", 2)]


_MANY = """
import resource, sys
from pathlib import Path
from pipelines.query import open_database
from pipelines.storage import open_store
from pipelines.storage import StorageError
from pipelines.user_sql import check_select, save
database = open_database(open_store(sys.argv[1]), memory_limit="200MB")
many = "SELECT a.*, range AS number, repeat('x', 500) || range AS text FROM annotations AS a, range(500000)"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert save(database, check_select(database, many), Path(sys.argv[2])) == 1_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("extension", ["csv", "parquet"])
def test_a_result_of_a_million_rows_is_streamed(
    database: duckdb.DuckDBPyConnection, extension: str, tmp_path: Path
) -> None:
    file = tmp_path / f"many.{extension}"
    command = [sys.executable, "-c", _MANY, str(tmp_path / "output"), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) < 400  # MB; the rows alone are 700
