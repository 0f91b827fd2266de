#!/usr/bin/env bash
# DuckDB 2.0.0, external access off: a file on the list of allowed paths that does not exist is not "not found".
# DuckDB then looks for a folder of that name (FILE/**/*.csv), which is not on the list, and answers with a permission
# error that names a pattern nobody wrote. Without the lock the same statement says that no file matches.
# Who fences a connection has to look for missing files first, or people mistype a name and search for permissions.
# Seen 2026-11-29:
#   open:   IO Error: No files found that match the pattern "FOLDER/missing.csv"
#   fenced: Permission Error: Cannot access file "FOLDER/missing.csv/**/*.csv" - file system operations are disabled ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.0
"$folder/venv/bin/python" - "$folder" <<'PY'
import pathlib
import sys

import duckdb

folder = pathlib.Path(sys.argv[1])
(folder / "there.csv").write_text("a\n1\n")
missing = folder / "missing.csv"


def error_of(connection):
    try:
        connection.execute(f"FROM '{missing}'")
    except duckdb.Error as error:
        return type(error).__name__, str(error).splitlines()[0].replace(str(folder), "FOLDER")
    raise SystemExit("changed: a missing file is read")


connection = duckdb.connect()
unfenced = error_of(connection)
connection.execute(f"SET allowed_paths = ['{folder}/there.csv', '{missing}']")
connection.execute("SET enable_external_access = false")
assert connection.execute(f"FROM '{folder}/there.csv'").fetchall() == [(1,)], "changed: an allowed file is not read"
fenced = error_of(connection)
print(unfenced, fenced, sep="\n")
assert unfenced[0] == "IOException" and "No files found" in unfenced[1], "changed: the error without the lock"
assert fenced[0] == "PermissionException" and "missing.csv/**/*.csv" in fenced[1], "changed: the error under the lock"
PY
echo "as described: duckdb 2.0.0"
