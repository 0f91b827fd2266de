#!/usr/bin/env bash
# Polars 2.1.0, pandas 3.1.1, DuckDB 2.0.0: unfolding lists makes one row or none of a null list, and one or none of an empty one.
# Of three images, one with two phrases, one with null (never asked) and one with [] (asked, nothing there), pandas' explode
# keeps all three, Polars' explode those with a list that is null but not the empty one, and DuckDB's unnest only the first.
# None says so. A number of images counted after the unfolding is another one in each tool, and a notebook that is moved from
# pandas to Polars loses the images in which nothing was found, which are the negatives of a data set.
# Seen 2026-11-29, image_id of the rows: pandas a a b c; Polars a a b; DuckDB a a
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check polars==2.1.0 pandas==3.1.1 duckdb==2.0.0 pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/images.parquet" <<'PY'
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
pq.write_table(pa.table({"image_id": ["a", "b", "c"], "phrases": [["a cat", "a dog"], None, []]}), path)
rows = {
    "pandas": pd.read_parquet(path).explode("phrases")["image_id"].tolist(),
    "Polars": pl.read_parquet(path).explode("phrases")["image_id"].to_list(),
    "DuckDB": [one for one, _ in duckdb.execute(f"SELECT image_id, unnest(phrases) FROM '{path}'").fetchall()],
}
for name, ids in rows.items():
    print(f"{name}: {' '.join(ids)}")
assert rows["pandas"] == ["a", "a", "b", "c"], "changed: pandas"
assert rows["Polars"] == ["a", "a", "b"], "changed: Polars"
assert rows["DuckDB"] == ["a", "a"], "changed: DuckDB"
PY
echo "as described: polars 2.1.0, pandas 3.1.1, duckdb 2.0.0"
