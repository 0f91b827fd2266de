#!/usr/bin/env bash
# pyarrow 26.0.1: with read_dictionary=, a batch of ParquetFile.iter_batches has in it all values of its row group.
# Small batches are how one reads a column of pictures without holding all of them, and read_dictionary is how one holds a
# picture once that many rows share. Together they do neither: each batch of 10 rows is handed out with the dictionary of
# the whole row group, and nbytes counts it. Who adds the batches up to stay within a budget sees a multiple of the file, and
# who sends batches on (IPC, Flight, Ray) sends all pictures with each of them.
# Seen 2026-11-29, 1,000 rows of 100 values of 1,000 bytes: batch of 10 rows plain 10,040 bytes, with read_dictionary 100,440;
#   as an IPC message 10,336 and 100,928
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder/pictures.parquet" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

values = [bytes([number]) * 1000 for number in range(100)]
pq.write_table(pa.table({"image": pa.array(values * 10, pa.binary())}), sys.argv[1])


def sent_bytes(batch):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue().size


sizes = []
for columns in ([], ["image"]):
    batches = list(pq.ParquetFile(sys.argv[1], read_dictionary=columns).iter_batches(batch_size=10))
    first = batches[0]
    sizes.append((len(batches), first.nbytes, sent_bytes(first), sum(batch.nbytes for batch in batches)))
    print(f"read_dictionary={columns}: batches, bytes of one, sent, of all added up:", *(f"{n:,}" for n in sizes[-1]))
plain, folded = sizes
assert plain[:2] == (100, 10_040), "changed: plain batches"
assert folded[0] == 100 and folded[1] > 100_000 and folded[2] > 100_000, "changed: a batch has its own values alone"
PY
echo "as described: pyarrow 26.0.1"
