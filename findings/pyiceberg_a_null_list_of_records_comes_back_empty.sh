#!/usr/bin/env bash
# pyiceberg 0.12.0: append() turns a null list of structs into an empty list. Lists of plain values stay null beside it.
# "Nobody has asked" and "asked, and nothing is there" are two answers of a labeling, and one after the append, without a
# word: it is the data file that holds [], so no later version of the library brings the nulls back. A table that is tried
# out with a list of strings shows nothing of it.
# Seen 2026-11-29: phrases (list of structs): null -> []; tags (list of strings): null -> null
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyiceberg==0.12.0 sqlalchemy==2.1.9 pyarrow==26.0.1
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import pathlib
import sys
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

folder = pathlib.Path(sys.argv[1])
(folder / "warehouse").mkdir()
catalog = SqlCatalog("local", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
catalog.create_namespace("labels")
phrases = pa.list_(pa.struct([pa.field("phrase", pa.string()), pa.field("start", pa.int32())]))
given = pa.table(
    {
        "phrases": pa.array([[{"phrase": "a cat", "start": 0}], None, []], phrases),
        "tags": pa.array([["cat"], None, []], pa.list_(pa.string())),
    }
)
table = catalog.create_table("labels.images", schema=given.schema)
table.append(given)
read = table.scan().to_arrow().to_pydict()
(task,) = table.scan().plan_files()
stored = pq.read_table(urlparse(task.file.file_path).path).to_pydict()
print("given: ", given.to_pydict())
print("read:  ", read)
print("stored:", stored)
assert given["phrases"].to_pylist()[1] is None
assert read["phrases"][1] == [] and stored["phrases"][1] == [], "changed: the null list of structs"
assert read["tags"] == [["cat"], None, []], "changed: the null list of strings"
PY
echo "as described: pyiceberg 0.12.0"
