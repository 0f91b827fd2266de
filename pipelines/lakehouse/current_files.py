"""Find the committed files whose rows are all current, and the current rows of those of which some are not.

Formats with a log add and remove whole files. A file without a current row is left out; of one with some, the rows are
written once more, which is what every reader can read (docs/lakehouse.md says what was tried).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import duckdb
import numpy as np
import pyarrow as pa

from pipelines.layout import SCHEMA_VERSION, Kind, split_data_name
from pipelines.query.database import Snapshot
from pipelines.query.fence import sql_literal
from pipelines.table.schema import SCHEMAS
from pipelines.table.shard_commit import DataFile
from pipelines.types import Status

# In an image's row several runs may be combined, so that any column may differ; a mask's row is there or not.
_HASHED: dict[Kind, Sequence[str]] = {"annotations": ["annotation_id"], "images": SCHEMAS["images"].names}
_ORDER: dict[Kind, str] = {"annotations": "image_id, rank", "images": "image_id"}
_SHARING = "SELECT DISTINCT run_id FROM all_images SEMI JOIN internal.several USING (image_id)"
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class CurrentFile:
    """A committed file with current rows.

    Attributes:
        source: the file.
        run_id, shard_id: whose it is.
        digest: of its current rows, which have to be written to a file of their own; None if all of the file's are
            current, just as they are there.
    """

    source: DataFile
    run_id: str
    shard_id: str
    digest: str | None


def find_current(database: duckdb.DuckDBPyConnection, snapshot: Snapshot, kind: Kind) -> list[CurrentFile]:
    """Find the committed files of a table that have current rows.

    Rows are read only of runs that share images with others, or whose files do not have the rows of the view as such.

    Args:
        database: the output's, as open_database opened it for the snapshot.
        snapshot: what is committed.
        kind: which table.
    """
    doubtful = _doubtful_runs(database, snapshot, kind)
    shown = _digests(database, kind, kind, doubtful)
    # Rows of annotations are never changed, so that their number tells whether all are there.
    as_written = _digests(database, f"all_{kind}", kind, doubtful) if kind == "images" else shown
    found = list[CurrentFile]()
    for run_id, files in snapshot.files.items():
        for version, of_version in files.files[kind].items():
            for file in of_version:
                shard_id = _shard_of(file)
                if run_id not in doubtful:
                    found.append(CurrentFile(file, run_id, shard_id, None))
                    continue
                digest = shown.get((run_id, shard_id))
                if digest is None:
                    continue
                # Rows of earlier versions lack what the view has worked out.
                is_as_shown = kind == "annotations" or version == SCHEMA_VERSION
                is_whole = is_as_shown and digest[0] == file.rows and digest == as_written[run_id, shard_id]
                found.append(CurrentFile(file, run_id, shard_id, None if is_whole else f"{digest[0]}-{digest[1]}"))
    return found


def read_parts(
    database: duckdb.DuckDBPyConnection, kind: Kind, parts: Sequence[CurrentFile]
) -> Iterator[tuple[CurrentFile, pa.Table]]:
    """Read the current rows of files, of one after the other, in the order of image ids."""
    if not parts:
        return
    schema = SCHEMAS[kind]
    wanted = pa.table(
        {
            "run_id": pa.array([part.run_id for part in parts], pa.string()),
            "shard_id": pa.array([part.shard_id for part in parts], pa.string()),
            "part": pa.array(range(len(parts)), pa.int32()),
        }
    )
    database.register("parts_to_read", wanted)
    try:
        rows = database.sql(
            f"SELECT {', '.join(schema.names)}, part FROM {kind} JOIN parts_to_read USING (run_id, shard_id) "
            f"WHERE {_of_runs({part.run_id for part in parts})} ORDER BY part, {_ORDER[kind]}"
        ).to_arrow_reader(_ROWS_AT_ONCE)
        held, number = list[pa.RecordBatch](), -1
        for batch in rows:
            numbers = batch["part"].to_numpy()
            starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(numbers)]
            for start, end in pairwise(starts):
                if start == end:
                    continue
                if held and numbers[start] != number:
                    yield parts[number], _table(held, schema)
                    held = []
                number = int(numbers[start])
                held.append(batch.slice(start, end - start))
        if held:
            yield parts[number], _table(held, schema)
    finally:
        database.unregister("parts_to_read")


def _doubtful_runs(database: duckdb.DuckDBPyConnection, snapshot: Snapshot, kind: Kind) -> set[str]:
    """Return the runs of whose files some may hold rows that are not current, or not as the view shows them."""
    runs = {run_id for (run_id,) in database.execute(_SHARING).fetchall()}
    if kind == "images":
        for run_id, files in snapshot.files.items():
            if files.status_counts.get(Status.FORGOTTEN) or any(one < SCHEMA_VERSION for one in files.files[kind]):
                runs.add(run_id)
    return runs


def _digests(
    database: duckdb.DuckDBPyConnection, view: str, kind: Kind, runs: Collection[str]
) -> dict[tuple[str, str], tuple[int, int]]:
    """Return the number of rows, and a sum of their hashes, of each run's shards in a view."""
    if not runs:
        return {}
    # HUGEINT, since 64-bit hashes times millions of rows overflow a BIGINT.
    hashed = f"sum(hash({', '.join(_HASHED[kind])})::HUGEINT)"
    found = database.execute(
        f"SELECT run_id, shard_id, count(*), {hashed} FROM {view} WHERE {_of_runs(runs)} GROUP BY ALL"
    )
    return {(run_id, shard_id): (count, int(total)) for run_id, shard_id, count, total in found.fetchall()}


def _of_runs(runs: Collection[str]) -> str:
    return f"run_id IN ({', '.join(map(sql_literal, sorted(runs)))})"


def _table(batches: Sequence[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches(batches).select(schema.names).cast(schema)


def _shard_of(file: DataFile) -> str:
    split = split_data_name(file.name)
    assert split is not None, "a commit names no other files"
    return split[0]
