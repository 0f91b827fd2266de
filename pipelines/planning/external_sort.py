"""External merge sort of Arrow record batches by one column, in bounded memory: sorted runs on disk, then merged.

Not DuckDB's sort: that needs more memory the more there is to sort, and with 200 MB fails somewhere between 30 and 100
million images.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

# A merge holds MAX_RUNS * PIECE_BYTES = 64 MiB, and has that many files open, within the usual limit of 1,024.
RUN_BYTES = 32 << 20  # sorted at once, in memory
PIECE_BYTES = 256 << 10  # read at a time from each run while they are merged
MAX_RUNS = 256  # merged at once; more are merged in several passes


def sort_batches(batches: Iterable[pa.RecordBatch], by: str, folder: Path) -> Iterator[pa.RecordBatch]:
    """Sort batches that have the same schema.

    Args:
        batches: read once.
        by: a string column without nulls; compared by its UTF-8 bytes, the same order as that of Python's strings.
        folder: for runs on disk; some files stay there.

    Yields:
        All rows in ascending order; the order of rows with equal keys is not defined.

    Raises:
        OSError: the folder is full or cannot be written.
    """
    paths = (folder / f"run-{number:05d}.arrow" for number in itertools.count())
    runs, held, num_bytes = list[Path](), list[pa.RecordBatch](), 0
    for batch in batches:
        held.append(batch)
        num_bytes += batch.nbytes
        if num_bytes >= RUN_BYTES:
            runs.append(_write(_sort(held, by), batch.schema, next(paths)))
            held, num_bytes = [], 0
        # Limits the number of open files; the merged run takes part in the next merge.
        if len(runs) == MAX_RUNS:
            whole = _write(_merge(map(read_spilled, runs), by), batch.schema, next(paths))
            for path in runs:
                path.unlink()
            runs = [whole]
    yield from _merge([*map(read_spilled, runs), _sort(held, by)], by)


def _sort(batches: Sequence[pa.RecordBatch], by: str) -> Iterator[pa.RecordBatch]:
    """Sort batches in memory, and yield the result in pieces of about PIECE_BYTES."""
    if batches:
        table = pa.Table.from_batches(batches).combine_chunks().sort_by(by)
        piece = max(1, table.num_rows * PIECE_BYTES // max(1, table.nbytes))
        yield from filter(len, table.to_batches(max_chunksize=piece))


def _write(pieces: Iterable[pa.RecordBatch], schema: pa.Schema, path: Path) -> Path:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema, options=options) as stream:
        for piece in pieces:
            stream.write_batch(piece)
    return path


def read_spilled(path: Path) -> Iterator[pa.RecordBatch]:
    """Read a temporary file of batches, an Arrow stream, batch by batch."""
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        yield from stream


def _merge(runs: Iterable[Iterator[pa.RecordBatch]], by: str) -> Iterator[pa.RecordBatch]:
    """Merge sorted runs.

    In each step, whatever is not greater than the smallest last key of the pieces in memory is taken from all of them
    and sorted: nothing still on disk can come before it.
    """
    pieces = [(piece, rest) for rest in runs if (piece := next(rest, None)) is not None]
    while pieces:
        last = min(piece[by][-1].as_py() for piece, _ in pieces)
        taken, kept = [], []
        for piece, rest in pieces:
            count = count_up_to(piece[by], last)
            if count:
                taken.append(piece.slice(0, count))
            left = piece.slice(count) if count < piece.num_rows else next(rest, None)
            if left is not None:
                kept.append((left, rest))
        pieces = kept
        yield from taken if len(taken) == 1 else _sort(taken, by)


def count_up_to(keys: pa.StringArray, last: str) -> int:
    """Return how many of sorted keys are not greater than one."""
    return bisect.bisect_right(range(len(keys)), last, key=lambda row: keys[row].as_py())
