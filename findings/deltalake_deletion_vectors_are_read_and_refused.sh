#!/usr/bin/env bash
# deltalake 1.6.6: a table with deletion vectors is read by QueryBuilder, and refused by to_pyarrow_table and to_pyarrow_dataset.
# Polars 2.1.0, which reads through the same package, gives the rows that are left. So whether such a table can be read depends
# on the way that is taken through one wheel: whoever hands the dataset to DuckDB or pandas is told that the reader does not
# support it.
# Seen 2026-12-01: [1, 3] by QueryBuilder and Polars; DeltaProtocolError by the two others
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check deltalake==1.6.6 polars==2.1.0 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/table" <<'PY'
import base64
import json
import pathlib
import string
import struct
import sys

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake

path = pathlib.Path(sys.argv[1])
write_deltalake(path, pa.table({"n": [1, 2, 3]}))
(first,) = (path / "_delta_log").glob("*.json")
actions = [json.loads(line) for line in first.read_text().splitlines()]
(add,) = (action["add"] for action in actions if "add" in action)
# The rows {1} as a 64-bit roaring bitmap of one container, inline in z85: what the protocol calls storage type "i".
bitmap = struct.pack("<IIHHIH", 12346, 1, 0, 0, 16, 1)
vector = struct.pack("<IQI", 1681511377, 1, 0) + bitmap
digits = string.digits + string.ascii_letters
z85 = str.maketrans(
    string.digits + string.ascii_uppercase + string.ascii_lowercase + "!#$%&()*+-;<=>?@^_`{|}~",
    string.digits + string.ascii_lowercase + string.ascii_uppercase + ".-:+=^!/*?&<>()[]{}@%$#",
)
text = base64.b85encode(vector + b"\0" * (-len(vector) % 4)).decode().translate(z85)
with_vector = add | {
    "deletionVector": {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(vector), "cardinality": 1}
}
feature = ["deletionVectors"]
protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": feature, "writerFeatures": feature}
remove = {"path": add["path"], "deletionTimestamp": 1, "dataChange": True}
second = [{"protocol": protocol}, {"remove": remove}, {"add": with_vector}]
(path / "_delta_log" / f"{1:020d}.json").write_text("\n".join(map(json.dumps, second)) + "\n")


def outcome(read):
    try:
        return read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def query():
    return pa.table(QueryBuilder().register("t", DeltaTable(path)).execute("SELECT n FROM t").read_all())["n"].to_pylist()


seen = {
    "QueryBuilder": outcome(query),
    "Polars": outcome(lambda: pl.scan_delta(str(path)).collect()["n"].to_list()),
    "to_pyarrow_table": outcome(lambda: DeltaTable(path).to_pyarrow_table()["n"].to_pylist()),
    "to_pyarrow_dataset": outcome(lambda: DeltaTable(path).to_pyarrow_dataset().to_table()["n"].to_pylist()),
}
for name, told in seen.items():
    print(f"{name}: {told}")
assert seen["QueryBuilder"] == seen["Polars"] == [1, 3], "changed: what is left of three rows"
for name in ("to_pyarrow_table", "to_pyarrow_dataset"):
    assert str(seen[name]).startswith("DeltaProtocolError"), f"changed: {name} reads it"
PY
echo "as described: deltalake 1.6.6, polars 2.1.0"
