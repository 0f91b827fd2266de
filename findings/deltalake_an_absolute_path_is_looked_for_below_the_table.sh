#!/usr/bin/env bash
# deltalake 1.6.6, Polars 2.1.0: a data file that a Delta log names by an absolute URI is looked for below the table's folder.
# The protocol allows add.path to be one, and tables that share files with others are made of that (shallow clones).
# QueryBuilder reads such a table; to_pyarrow_table, file_uris and Polars join the URI to the folder, and find no file.
# Seen 2026-12-01: sum 6 by QueryBuilder; .../clone/file:/.../part-00000... is not found by the others
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check deltalake==1.6.6 polars==2.1.0 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'PY'
import json
import pathlib
import sys

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake

owner, clone = (pathlib.Path(sys.argv[1]) / name for name in ("owner", "clone"))
write_deltalake(owner, pa.table({"n": [1, 2, 3]}))
(clone / "_delta_log").mkdir(parents=True)
(log,) = (owner / "_delta_log").glob("*.json")
actions = [json.loads(line) for line in log.read_text().splitlines()]
for action in actions:
    if "add" in action:
        action["add"]["path"] = f"file://{owner}/{action['add']['path']}"
(clone / "_delta_log" / log.name).write_text("\n".join(map(json.dumps, actions)) + "\n")


def query(sql):
    return pa.table(QueryBuilder().register("t", DeltaTable(clone)).execute(sql).read_all()).to_pydict()


def outcome(read):
    try:
        return read()
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(str(clone.parent), "...")


seen = {
    "QueryBuilder, count(*)": outcome(lambda: query("SELECT count(*) AS c FROM t")),
    "QueryBuilder, sum(n)": outcome(lambda: query("SELECT sum(n) AS s FROM t")),
    "to_pyarrow_table": outcome(lambda: DeltaTable(clone).to_pyarrow_table().to_pydict()),
    "Polars": outcome(lambda: pl.scan_delta(str(clone)).collect().to_dict(as_series=False)),
    "Polars, len": outcome(lambda: pl.scan_delta(str(clone)).select(pl.len()).collect().item()),
    "file_uris": outcome(lambda: DeltaTable(clone).file_uris()),
}
for name, told in seen.items():
    print(f"{name}: {told}")
assert seen["QueryBuilder, sum(n)"] == {"s": [6]}, "changed: QueryBuilder"
for name in ("to_pyarrow_table", "Polars"):
    assert isinstance(seen[name], str), f"changed: {name} reads it"
assert "/clone/file:" in seen["file_uris"][0], "changed: where the file is said to be"
PY
echo "as described: deltalake 1.6.6, polars 2.1.0"
