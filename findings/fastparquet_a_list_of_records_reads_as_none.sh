#!/usr/bin/env bash
# fastparquet 2026.9.0: a column that is a list of structs is None in every row, with and without entries, without a word.
# The column is there under its name, and lists of plain values beside it are right. pandas.read_parquet(engine="fastparquet")
# gives the same. Who asks for the images without an answer (phrases is null) gets all of them.
# Seen 2026-11-29: pyarrow: two phrases, null, []; fastparquet and pandas with it: None, None, None
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check fastparquet==2026.9.0 pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/images.parquet" <<'PY'
import sys

import fastparquet
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

path = sys.argv[1]
phrases = pa.list_(pa.struct([pa.field("phrase", pa.string()), pa.field("start", pa.int32())]))
said = [[{"phrase": "a cat", "start": 0}, {"phrase": "a dog", "start": 9}], None, []]
pq.write_table(pa.table({"phrases": pa.array(said, phrases), "tags": [["cat", "dog"], ["owl"], ["eel"]]}), path)
by_pyarrow = pq.read_table(path)["phrases"].to_pylist()
frame = fastparquet.ParquetFile(path).to_pandas()
by_pandas = pd.read_parquet(path, engine="fastparquet")["phrases"].tolist()
tags = [list(one) for one in frame["tags"]]
print("pyarrow:", by_pyarrow)
print("fastparquet:", frame["phrases"].tolist(), "with pandas:", by_pandas, "tags:", tags)
assert by_pyarrow == said
assert frame["phrases"].tolist() == by_pandas == [None, None, None], "changed: the list of structs"
assert tags == [["cat", "dog"], ["owl"], ["eel"]], "changed: the list of strings"
PY
echo "as described: fastparquet 2026.9.0, pandas 3.1.1"
