#!/usr/bin/env bash
# DuckDB 2.0.0: whether COPY ... TO a Parquet file makes a column "required" depends on the rows, not on the query.
# Where the statistics of the source say that a column has no null, the file says that it can have none. The same statement
# over the next file, with a null in it, writes "optional". So a nightly export changes its schema by itself, and what
# takes schemas at their word, such as pyarrow.concat_tables, refuses to put two nights together.
# SET disabled_optimizers = 'statistics_propagation' makes the column optional both times.
# Seen 2026-11-29: full: float not null; with a null: float; concat_tables: ArrowInvalid; without the optimizer: float, float
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.0 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'PY'
import pathlib
import sys

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

folder = pathlib.Path(sys.argv[1])
for name, scores in (("full", [0.5, 0.9]), ("with-null", [0.5, None])):
    pq.write_table(pa.table({"mask_score": pa.array(scores, pa.float32())}), folder / f"{name}.parquet")


def copied(connection):
    tables = []
    for name in ("full", "with-null"):
        target = folder / f"{name}-copy.parquet"
        connection.execute(f"COPY (SELECT mask_score FROM '{folder}/{name}.parquet') TO '{target}'")
        tables.append(pq.read_table(target))
    return tables


connection = duckdb.connect()
tables = copied(connection)
nullable = [table.schema.field("mask_score").nullable for table in tables]
try:
    pa.concat_tables(tables)
    together = "works"
except pa.ArrowInvalid as error:
    together = f"ArrowInvalid: {error}".splitlines()[0]
connection.execute("SET disabled_optimizers = 'statistics_propagation'")
without = [table.schema.field("mask_score").nullable for table in copied(connection)]
print("full, with a null: nullable", nullable)
print("pyarrow.concat_tables:", together)
print("without statistics_propagation: nullable", without)
assert nullable == [False, True], "changed: the schema does not follow the rows"
assert together.startswith("ArrowInvalid: Schema at index 1 was different"), "changed: pyarrow joins the two"
assert without == [True, True], "changed: the optimizer is not what decides"
PY
echo "as described: duckdb 2.0.0, pyarrow 26.0.1"
