#!/usr/bin/env bash
# pyiceberg 0.12.0: two jobs add the same data file by add_files at once, both succeed, and every row is there twice.
# add_files looks for files that the table has already (check_duplicate_files, on by default) once, when it is called. A commit
# that comes second is made again on top of the first (commit.retry.num-retries, 4 by default), without a second look. So the
# check holds for jobs one after the other, and not for a job that a scheduler starts twice. Nothing is said. With the
# property 0 the second gets CommitFailedException. (append of rows is retried likewise, as it should: its files are new.)
# Seen 2026-12-01, rows of a file of 3: by turns 3, and ValueError for the second; at once 6; at once without retries 3,
# and CommitFailedException for the second
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyiceberg==0.12.0 sqlalchemy==2.1.9 pyarrow==26.0.1
"$folder/venv/bin/python" -W ignore - "$folder" <<'PY'
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

folder = pathlib.Path(sys.argv[1])
(folder / "warehouse").mkdir()
options = {"uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}/warehouse"}
one, other = (SqlCatalog("local", **options) for _ in range(2))
one.create_namespace("labels")
rows = pa.table({"n": [1, 2, 3]})
pq.write_table(rows, folder / "rows.parquet")
files = [f"file://{folder}/rows.parquet"]


def outcome(name, *, at_once, **properties):
    one.create_table(name, rows.schema, properties=properties)
    first, second = one.load_table(name).transaction(), None
    if at_once:
        second = other.load_table(name).transaction()
        second.add_files(files)
    first.add_files(files)
    first.commit_transaction()
    try:
        if second is None:
            second = other.load_table(name).transaction()
            second.add_files(files)
        second.commit_transaction()
        told = "nothing"
    except Exception as error:
        told = type(error).__name__
    return one.load_table(name).scan().to_arrow().num_rows, told


seen = {
    "by turns": outcome("labels.turns", at_once=False),
    "at once": outcome("labels.once", at_once=True),
    "at once, no retries": outcome("labels.single", at_once=True, **{"commit.retry.num-retries": "0"}),
}
for name, (count, told) in seen.items():
    print(f"{name}: {count} rows of {rows.num_rows}, the second job is told: {told}")
assert seen["by turns"] == (3, "ValueError"), "changed: one after the other"
assert seen["at once"] == (6, "nothing"), "changed: at once"
assert seen["at once, no retries"] == (3, "CommitFailedException"), "changed: without retries"
PY
echo "as described: pyiceberg 0.12.0"
