#!/usr/bin/env bash
# Hugging Face datasets 5.2.0, pyarrow 26.0.1: one Parquet file without rows makes load_dataset("parquet") fail for all files.
# What pyarrow writes for an empty table has one row group of 0 rows. datasets takes the size of the first row group as its
# batch size, and pyarrow refuses one of 0: "BatchSize must be greater than 0". In a table that is written shard by shard, one
# shard in which nothing was found is enough, and the message names a setting that nobody has made. A file without any
# row group, which a ParquetWriter leaves that is closed unused, is read; so is the first with batch_size=1000.
# Seen 2026-11-29: a row group of 0 rows: ArrowInvalid: BatchSize must be greater than 0, got 0;
#   no row group: 2 rows; batch_size=1000: 2 rows
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check datasets==5.2.0 pyarrow==26.0.1 numpy==2.4.6
HF_HOME="$folder/home" HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - "$folder" <<'PY'
import logging
import pathlib
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

folder = pathlib.Path(sys.argv[1])
datasets.disable_progress_bars()
logging.disable(logging.ERROR)
table = pa.table({"image_id": ["a.png", "b.png"], "score": pa.array([0.5, 0.75], pa.float32())})
pq.write_table(table, folder / "shard-0.parquet")
empty = folder / "shard-1.parquet"


def rows(**options):
    try:
        return len(list(datasets.load_dataset("parquet", data_files=f"{folder}/*.parquet", split="train", **options)))
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        cause = error.__cause__ or error
        return f"{type(cause).__name__}: {cause}"


def outcomes():
    return pq.read_metadata(empty).num_row_groups, rows(), rows(streaming=True), rows(batch_size=1000)


pq.write_table(table.slice(0, 0), empty)
with_group = outcomes()
with pq.ParquetWriter(empty, table.schema):
    pass
without = outcomes()
print("row groups of the empty file, load_dataset, streaming, with batch_size=1000:", with_group, without, sep="\n  ")
refused = "ArrowInvalid: BatchSize must be greater than 0, got 0"
assert with_group == (1, refused, refused, 2), "changed: a row group of 0 rows"
assert without == (0, 2, 2, 2), "changed: a file without row groups"
PY
echo "as described: datasets 5.2.0, pyarrow 26.0.1"
