"""A person's SELECT: what is let through, what is saved, and that nothing is ever written over."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import QueryError, StorageError
from pipelines.query.database import open_database
from pipelines.query.select_text import read_statement
from pipelines.query.user_select import check_format, check_select, first_rows
from pipelines.query.user_select import save as save_to
from pipelines.storage.store import open_store
from pipelines.storage.targets import open_target
from tests.support.labeled import box, mask, named, write_output

CAT, DOG = named("ovseg", "cat", "dog")


@pytest.fixture
def database(tmp_path: Path) -> duckdb.DuckDBPyConnection:
    found = {"a": [mask(CAT, box(0, 0, 2, 2), 0.9), mask(DOG, box(1, 1, 2, 2), 0.4)], "b": []}
    store, _ = write_output(tmp_path / "output", found, common=[CAT, DOG])
    return open_database(store)


def rows_of(output: Path, sql: str) -> list[tuple[Any, ...]]:
    """Answer a query with the files that it names."""
    with open_database(open_store(str(output)), own_files=read_statement(sql).own_files) as connection:
        return first_rows(connection, check_select(connection, sql), 1000)[0]


def save(output: Path, sql: str, path: Path) -> int:
    """Save the answer of a query."""
    check_format(str(path))
    target, store = open_target(str(path)), open_store(str(output))
    with target.place() as place, open_database(store, folder=place, is_saved=True) as connection:
        count = save_to(connection, check_select(connection, sql), place / f"whole{path.suffix}")
        target.publish(place / f"whole{path.suffix}")
    return count


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
        "SELECT * FROM (PIVOT annotations ON category_name IN ('cat', 'dog') USING count(*))",
        "FROM range(3), LATERAL (SELECT unnest([range, 7]))",
        "SELECT unnest(per_prompt, recursive := true) FROM images",
        "FROM duckdb_columns() WHERE table_name = 'images'",
        "WITH RECURSIVE r AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM r WHERE i < 3) FROM r",
        'WITH "a.csv" AS (SELECT 1) FROM "a.csv"',
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
        "FROM enable_logging(storage := 'file', storage_path := '{file}')",
        "FROM enable_profiling(save_location := '{file}')",
        "FROM checkpoint()",
        "SELECT (SELECT count(*) FROM query_table(['annotations']))",
        "DESCRIBE FROM system.main.QUERY('SELECT 1')",
        "FROM read_text('{output}/_runs/run-1/plan.json')",
    ],
)
def test_what_would_change_or_write_something_is_refused(
    database: duckdb.DuckDBPyConnection, sql: str, tmp_path: Path
) -> None:
    target = tmp_path / "target.csv"
    before = sorted(database.sql("FROM annotations").fetchall(), key=str)
    sql = sql.replace("{file}", str(target)).replace("{output}", str(tmp_path / "output"))
    with pytest.raises(QueryError):
        first_rows(database, check_select(database, sql), 10)
    assert not target.exists()
    assert sorted(database.sql("FROM annotations").fetchall(), key=str) == before


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("SELECT scor FROM annotations", r'(?s)"scor" not found.*LINE 1: SELECT scor.*annotations: image_id'),
        ("FROM anotations", r"(?s)anotations does not exist.*\nviews: annotations, images, coverage"),
        ("SELECT image_id::INT FROM images", "Could not convert string 'a' to INT32"),
        ("SELECT 1\nFRO annotations a b", r"LINE 2: FRO annotations a b"),
        ("SELECT 1; SELECT 2", "must be one SELECT statement, this is 2 statements"),
        ("CREATE TABLE t (i INT)", "must be one SELECT statement, this is CREATE"),
        ("", "must be one SELECT statement, this is empty"),
        ("PIVOT annotations ON category_name USING count(*)", r"this is a PIVOT .* list them, .* IN \('a', 'b'\)"),
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
    sql = "SELECT image_id, score, segmentation FROM annotations ORDER BY score DESC -- best"
    expected = database.sql(sql).fetchall()
    for extension in ("csv", "json", "jsonl", "parquet", "CSV"):
        assert save(tmp_path / "output", sql, tmp_path / f"it's.{extension}") == 2
    with open(tmp_path / "it's.csv", newline="") as file:
        rows = [(row["image_id"], float(row["score"]), json.loads(row["segmentation"])) for row in csv.DictReader(file)]
    assert [(a, pytest.approx(b), c) for a, b, c in rows] == expected
    documents = json.loads((tmp_path / "it's.json").read_text())
    assert [json.loads(line) for line in (tmp_path / "it's.jsonl").read_text().splitlines()] == documents
    assert [document["segmentation"] for document in documents] == [row[2] for row in expected]
    assert [tuple(row.values()) for row in pq.read_table(tmp_path / "it's.parquet").to_pylist()] == expected
    assert not list(tmp_path.glob(".*"))


@pytest.mark.usefixtures("database")
def test_a_file_is_never_written_over_and_never_left_half_written(tmp_path: Path) -> None:
    output, held = tmp_path / "output", tmp_path / "held.csv"
    held.write_text("mine")
    with pytest.raises(StorageError, match="exists already"):
        save(output, "FROM images", held)
    assert held.read_text() == "mine"
    failing = "SELECT CASE WHEN range > 500000 THEN error('broken') END FROM range(1000000)"
    with pytest.raises(QueryError, match="broken"):
        save(output, failing, tmp_path / "failing.csv")
    assert save(output, "FROM images", tmp_path / "new" / "er" / "a.csv") == 2
    with pytest.raises(QueryError, match=r"extension '\.txt' is not known; name a file \.csv, \.json"):
        save(output, "FROM images", tmp_path / "a.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"held.csv", "new", "output"}


@pytest.mark.usefixtures("database")
def test_parquet_has_one_schema_whatever_the_rows(tmp_path: Path) -> None:
    schemas = []
    for number, condition in enumerate(("true", "score > 0.5", "is_thing IS NULL", "is_thing", "false")):
        sql = f"SELECT *, len(prompt) AS n, [rank] AS ranks FROM annotations WHERE {condition}"
        save(tmp_path / "output", sql, tmp_path / f"{number}.parquet")
        schemas.append(pq.read_schema(tmp_path / f"{number}.parquet"))
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert all(field.nullable for field in schemas[0])
    assert pa.concat_tables([pq.read_table(tmp_path / f"{n}.parquet") for n in range(5)]).num_rows == 5


@pytest.mark.usefixtures("database")
def test_json_has_null_where_a_number_is_none(tmp_path: Path) -> None:
    nan, infinity = "'NaN'::DOUBLE", "'-inf'::FLOAT"
    sql = (
        f"SELECT {nan} AS a, {infinity} AS b"
        f", [1.5, {nan}] AS c, {{'NaN': {infinity}, 't': 'a \"NaN\", -Infinity'}} AS d"
        f", MAP {{'k': {nan}}} AS e, NULL::FLOAT[] AS f, to_json({nan}) AS g, 'NaN' AS h, [-1, 2] AS i,"
        " 0.25 AS j, -2.5::FLOAT AS k, 'FLOAT'::ENUM('FLOAT') AS l"
    )
    nested = {"c": [1.5, None], "d": {"NaN": None, "t": 'a "NaN", -Infinity'}, "e": {"k": None}, "i": [-1, 2]}
    plain = {"a": None, "b": None, "f": None, "g": None, "h": "NaN", "j": 0.25, "k": -2.5, "l": "FLOAT"}
    for name in ("a.json", "a.jsonl", "a.csv"):
        save(tmp_path / "output", sql, tmp_path / name)
    read = [json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail) for name in ("a.json", "a.jsonl")]
    assert read == [[nested | plain], nested | plain]
    with open(tmp_path / "a.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert {name: json.loads(row[name], parse_constant=pytest.fail) for name in nested} == nested
    assert (row["a"], row["h"], row["f"]) == ("nan", "NaN", "")


@pytest.mark.usefixtures("database")
def test_columns_of_one_name_are_all_saved(tmp_path: Path) -> None:
    save(tmp_path / "output", "SELECT 1 AS a, 2 AS a, [3] AS A", tmp_path / "a.csv")
    save(tmp_path / "output", "SELECT 1 AS a, 2 AS a, [3] AS A", tmp_path / "a.json")
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "1,2,[3]"
    assert list(json.loads((tmp_path / "a.json").read_text())[0].values()) == [1, 2, [3]]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    "table",
    [
        "'{folder}/meta.csv'",
        "meta.csv",
        "'file://{folder}/meta.csv'",
        "'me*.csv'",
        "read_csv('meta.csv', header = true)",
        "read_csv(['meta.csv', '{folder}/more.csv'], union_by_name = true)",
        "read_parquet('{folder}/tables')",
        "'tables/*/m?ta.parquet'",
        "'link.parquet'",
        "'it[''s.json'",
        "'~/meta.csv'",
        "(SELECT image_id, site FROM 'meta.csv')",
    ],
)
def test_ones_own_tables_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "meta.csv").write_text("image_id,site\na,harbour\nb,yard\n")
    (tmp_path / "more.csv").write_text("image_id,site\nc,quay\n")
    (tmp_path / "it['s.json").write_text('[{"image_id": "a", "site": "harbour"}]')
    (tmp_path / "tables" / "x").mkdir(parents=True)
    pq.write_table(pa.table({"image_id": ["a"], "site": ["harbour"]}), tmp_path / "tables" / "x" / "meta.parquet")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "tables" / "x" / "meta.parquet")
    table = table.replace("{folder}", str(tmp_path))
    sql = f"SELECT site, count(*) FROM annotations JOIN {table} AS t USING (image_id) GROUP BY 1"
    assert rows_of(tmp_path / "output", sql) == [("harbour", 2)]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("FROM 'missing.csv'", 'No files found that match the pattern "missing.csv"'),
        ("FROM read_csv(concat('me', 'ta.csv'))", "(?s)Cannot access file.*that it names itself, in quotes"),
        ("FROM read_csv((SELECT 'meta.csv'))", "(?i)subquer"),
        ("FROM 'https://host.invalid/meta.csv'", "only files of this machine can be joined"),
        ("FROM read_parquet('s3://bucket/meta.parquet')", "only files of this machine can be joined"),
    ],
)
def test_a_file_that_cannot_be_joined_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meta.csv").write_text("image_id,site\na,harbour\nb,yard\n")
    with pytest.raises(QueryError, match=said):
        rows_of(tmp_path / "output", sql)


def test_what_is_nested_too_deeply_to_be_checked_is_refused(database: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(QueryError, match="nested too deeply"):
        check_select(database, f"SELECT {' + '.join('1' * 900)}")


_MANY = """
import resource, sys
from pathlib import Path
from pipelines.query import open_database
from pipelines.storage import open_store
from pipelines.errors import StorageError
from pipelines.query.user_select import check_select, save
from pipelines.storage.local_files import temporary_beside
many = "SELECT a.*, range AS number, repeat('x', 500) || range AS text FROM annotations AS a, range(500000)"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store, path = open_store(sys.argv[1]), Path(sys.argv[2])
with temporary_beside(path) as place, open_database(store, memory_limit="200MB", folder=place) as database:
    assert save(database, check_select(database, many), place / f"whole{path.suffix}") == 1_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("extension", ["csv", "parquet"])
@pytest.mark.slow
def test_a_result_of_a_million_rows_is_streamed(extension: str, tmp_path: Path) -> None:
    file = tmp_path / f"many.{extension}"
    command = [sys.executable, "-c", _MANY, str(tmp_path / "output"), str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert int(ended.stdout) < 400  # MB; the rows alone are 700
