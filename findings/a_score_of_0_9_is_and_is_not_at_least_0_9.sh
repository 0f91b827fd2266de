#!/usr/bin/env bash
# DuckDB 2.0.0, pandas 3.1.1, pyarrow 26.0.1, Polars 2.1.0: a float32 score of 0.9 is >= 0.9 here and < 0.9 there.
# The nearest float32 is 0.89999998. Whoever narrows the threshold to the column's type keeps the row, whoever widens the
# column to double drops it. Two libraries do both: DuckDB keeps it for the literal 0.9, which is a DECIMAL, and drops it
# for 9e-1 and for a parameter, which are DOUBLE; pandas keeps it in a frame, and drops it with filters= and in Arrow types.
# Where scores are rounded to a digit or two, the same cut at 0.9 counts other masks in a notebook than in the pipeline,
# and a query gains or loses rows when its literal becomes a parameter.
# Seen 2026-11-29, rows kept of 0.5, 0.9, 0.95: DuckDB literal 2, 9e-1 1, parameter 1;
#   pandas query 2, filters= 1, Arrow types 1; pyarrow 1; Polars 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6 polars==2.1.0
"$folder/venv/bin/python" - "$folder/scores.parquet" <<'PY'
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

path = sys.argv[1]
table = pa.table({"score": pa.array([0.5, 0.9, 0.95], pa.float32())})
pq.write_table(table, path)


def duckdb_rows(threshold, *values):
    (count,) = duckdb.execute(f"SELECT count(*) FROM '{path}' WHERE score >= {threshold}", values).fetchall()[0]
    return count


kept = {
    "DuckDB, literal 0.9": duckdb_rows("0.9"),
    "DuckDB, literal 9e-1": duckdb_rows("9e-1"),
    "DuckDB, parameter": duckdb_rows("?", 0.9),
    "pandas, query": len(pd.read_parquet(path).query("score >= 0.9")),
    "pandas, filters=": len(pd.read_parquet(path, filters=[("score", ">=", 0.9)])),
    "pandas, Arrow types": len(pd.read_parquet(path, dtype_backend="pyarrow").query("score >= 0.9")),
    "pyarrow": table.filter(pc.field("score") >= 0.9).num_rows,
    "Polars": pl.scan_parquet(path).filter(pl.col("score") >= 0.9).collect().height,
}
for name, count in kept.items():
    print(f"{name}: {count} of {table.num_rows}")
assert list(kept.values()) == [2, 1, 1, 2, 1, 1, 1, 2], "changed: other engines keep the score of 0.9"
PY
echo "as described: duckdb 2.0.0, pandas 3.1.1, pyarrow 26.0.1, polars 2.1.0"
