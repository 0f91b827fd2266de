#!/usr/bin/env bash
# deltalake 1.6.6, pyarrow 26.0.1: an unsigned column is written as a signed one of the same width, not of the next one.
# Delta has no unsigned types. uint8 becomes byte, which ends at 127, and uint16 short, which ends at 32767: small labels
# come back under another type, and a table fails as soon as one label is too large. 255 and 65535 are what segmentation uses
# for "ignore", so labels that have worked for a week fail with the first image that has such a pixel. The error speaks of
# a cast from Int8 to UInt8, the other way round. (pyiceberg 0.12.0 makes an int32 of both.)
# Seen 2026-11-29: uint8 127 -> int8, uint8 255 -> DeltaError: ... Can't cast value 255 to type Int8; uint16 likewise
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check deltalake==1.6.6 pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'PY'
import sys

import pyarrow as pa
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError


def outcome(kind, label):
    path = f"{sys.argv[1]}/{kind}-{label}"
    try:
        write_deltalake(path, pa.table({"label": pa.array([1, label], kind)}))
    except DeltaError as error:
        return f"DeltaError: {str(error).rsplit(': ', 1)[-1]}"
    table = DeltaTable(path).to_pyarrow_table()
    return f"{table.schema.field('label').type} {table['label'].to_pylist()}"


seen = [outcome(kind, label) for kind, label in [(pa.uint8(), 127), (pa.uint8(), 255), (pa.uint16(), 65535)]]
print("uint8 127, uint8 255, uint16 65535:", *seen, sep="\n  ")
assert seen[0] == "int8 [1, 127]", "changed: a small label comes back under another type"
assert seen[1] == "DeltaError: Can't cast value 255 to type Int8", "changed: uint8 255"
assert seen[2] == "DeltaError: Can't cast value 65535 to type Int16", "changed: uint16 65535"
PY
echo "as described: deltalake 1.6.6"
