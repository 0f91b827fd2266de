#!/usr/bin/env bash
# pyarrow 26.0.1: binary_join_element_wise with null_handling="skip" gives fewer rows than it is given.
# A row of which every value to join is null is left out of the result, instead of becoming empty or null: all later rows
# move up. Put beside the other columns, the URIs of a table then belong to other images; only the length tells.
# The default, "emit_null", and "replace" keep every row.
# Seen 2026-11-30, of the rows ("a", "1.jpg"), (null, null), (null, "3.jpg"): skip ['a/1.jpg', '3.jpg'],
#   emit_null ['a/1.jpg', None, None], replace ['a/1.jpg', '/', '/3.jpg']
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - <<'PY'
import pyarrow as pa
import pyarrow.compute as pc

folders, names = pa.array(["a", None, None]), pa.array(["1.jpg", None, "3.jpg"])
joined = {
    how: pc.binary_join_element_wise(folders, names, "/", null_handling=how).to_pylist()
    for how in ("skip", "emit_null", "replace")
}
for how, rows in joined.items():
    print(f"{how}: {rows}")
assert joined == {
    "skip": ["a/1.jpg", "3.jpg"],
    "emit_null": ["a/1.jpg", None, None],
    "replace": ["a/1.jpg", "/", "/3.jpg"],
}, "changed: rows of nulls are joined otherwise"
PY
echo "as described: pyarrow 26.0.1"
