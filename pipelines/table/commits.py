"""The commit protocol: an attempt writes a shard's two Parquet files, then a create-only object that names them.

A shard is part of the table if and only if its commit exists; data files that no commit names are leftovers. Commits
are never changed or removed. If files of a commit are lost or damaged, a repair supersedes it: a commit of its own,
beside the first.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError, StorageError
from pipelines.layout import (
    KINDS,
    SCHEMA_VERSION,
    Kind,
    commit_name,
    data_name,
    run_folder,
    split_commit_name,
    split_data_name,
)
from pipelines.storage.checksummed_json import misfit
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS, VERSION_KEY, annotations_table, images_table, schema_of
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import ImagePrediction, ImageRef, Shard, ShardReceipt

# In measurements with 200,000 masks, groups of 50,000 to 100,000 rows served filters and look-ups best.
_ROW_GROUP_ROWS = 65_536
# Commits are small objects: reading them takes latency, not bandwidth.
_READERS = 16


def data_files(store: Store, run_id: str) -> dict[str, int]:
    """List a run's data files, committed or not, as {name: bytes}; files with names of others are left out."""
    return {
        name: size
        for kind in KINDS
        for name, size in store.find(f"{kind}/{run_id}").items()
        if split_data_name(name) is not None
    }


def commit_shard(
    store: Store,
    run_id: str,
    shard: Shard,
    predictions: Sequence[ImagePrediction],
    *,
    attempt: str,
    started: float,
    model_s: float,
    predictor: Mapping[str, str],
) -> ShardReceipt:
    """Write a shard's two files, then its commit, which makes the shard part of the table.

    Args:
        store: the output.
        run_id: the run.
        shard: the planned shard.
        predictions: exactly one outcome for each of its images, in its order.
        attempt: id of this attempt, unique in the run.
        started: time.monotonic() when the attempt began.
        model_s: seconds spent in the predictor.
        predictor: its facts, for provenance.

    Returns:
        The receipt of the commit that holds; another attempt's if that one was first.

    Raises:
        RuntimeError: a planned image has no outcome, or an unplanned one has: a bug; nothing is written.
        StorageError: the output cannot be written.
        DamagedError: another attempt was first, and its commit cannot be read.
    """
    # Before anything is written: a commit holds for good, with whatever it says.
    _check_complete(shard, predictions)
    ids = {"run_id": run_id, "shard_id": shard.shard_id, "attempt": attempt}
    tables: dict[Kind, pa.Table] = {
        "annotations": annotations_table(predictions, **ids),
        "images": images_table(predictions, **ids),
    }
    files, contents = {}, {}
    for kind, table in tables.items():
        data = parquet_bytes(table, kind, {**predictor, **ids})
        name = data_name(kind, run_id, shard.shard_id, attempt, shard.repair)
        contents[name] = data
        files[kind] = DataFile.of(name, data, table.num_rows)
    _write_all(store, contents)
    commit = ShardCommit(
        run_id=run_id,
        shard_id=shard.shard_id,
        attempt=attempt,
        annotations=files["annotations"],
        images=files["images"],
        status_counts=dict(Counter(p.status.value for p in predictions)),
        reason_counts=dict(Counter(p.reason.value for p in predictions if p.reason)),
        rejected_prompts=tuple(
            {"row": r.row, "prompt_id": r.prompt_id, "image": r.image, "reason": r.reason}
            for p in predictions
            for r in p.rejected
        ),
        elapsed_s=round(time.monotonic() - started, 3),
        model_s=round(model_s, 3),
        committed_at=round(time.time(), 3),
        predictor=dict(predictor),
        repair=shard.repair,
        schema_version=SCHEMA_VERSION,
        num_noted=sum(bool(p.notes) for p in predictions),
    )
    # If this raises, nothing is discarded: the put may still arrive, and would then name files that are gone.
    if store.create(commit_name(run_id, shard.shard_id, shard.repair), commit.to_json()):
        # The shard is committed in any case: a file that is still missing is found by verify and by the next run.
        with contextlib.suppress(StorageError):
            write_missing(store, contents)
        return commit.receipt(committed_here=True)
    # Damaged, it may be this attempt's, of whose creation no answer came, and names these files; then this raises.
    held = read_commit(store, run_id, shard.shard_id, shard.repair)
    if held.attempt == attempt:
        return held.receipt(committed_here=True)
    # The commit that holds is another attempt's, for good: no commit will ever name these files.
    _discard(store, contents)
    return held.receipt(committed_here=False)


def _write_all(store: Store, contents: Mapping[str, bytes]) -> None:
    """Write an attempt's files. If one fails, remove them all as far as possible: no commit will ever name them."""
    try:
        for name, data in contents.items():
            store.write(name, data)
    except StorageError:
        _discard(store, contents)
        raise


def _discard(store: Store, names: Iterable[str]) -> None:
    """Remove files that no commit names. What cannot be removed stays as a leftover, which does no harm."""
    for name in names:
        with contextlib.suppress(StorageError):
            store.delete(name)


def write_missing(store: Store, contents: Mapping[str, bytes]) -> None:
    """Write files again that are gone: vacuum may have taken them for abandoned before a commit named them."""
    for name, data in contents.items():
        if store.size(name) != len(data):
            store.write(name, data)


def _check_complete(shard: Shard, predictions: Sequence[ImagePrediction]) -> None:
    planned: list[ImageRef] = list(shard.images)
    if [p.ref for p in predictions] != planned:
        raise RuntimeError(
            f"{shard.shard_id}: {len(predictions)} outcomes for {len(planned)} planned images, or in another order"
        )


def parquet_bytes(table: pa.Table, kind: Kind, facts: Mapping[str, str], version: int = SCHEMA_VERSION) -> bytes:
    """Encode one of the two tables as Parquet, with the facts as metadata, in a version of its schema.

    zstd, dictionaries for repetitive columns, a page index, and a bloom filter on image_id for look-ups of one image.
    """
    # A dictionary pays only where values repeat: ids, URIs and run lengths differ from row to row.
    repeated = {
        "annotations": ["task", "prompt_id", "prompt", "category_name", "run_id", "shard_id", "attempt", "source"],
        "images": ["status", "reason", "stage", "run_id", "shard_id", "attempt"],
    }[kind]
    # Nobody filters by run lengths: statistics on them, minimum and maximum of whole masks, only cost space.
    statistics = [name for name in table.column_names if name != "segmentation"]
    metadata = {f"xsam_label.{key}": str(value) for key, value in facts.items()}
    metadata[VERSION_KEY.decode()] = str(version)
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        schema_of(SCHEMAS[kind], version).with_metadata(metadata),
        compression="zstd",
        # Level 9 makes files 5 % smaller for three to five times the CPU.
        compression_level=3,
        use_dictionary=repeated,
        write_statistics=statistics,
        write_page_index=True,
        bloom_filter_options={"image_id": {"ndv": max(1, table.num_rows), "fpp": 0.01}},
    ) as writer:
        # A shard without masks is a file without row groups: one of no rows ends datasets' load_dataset for all files.
        if table.num_rows:
            writer.write_table(table.replace_schema_metadata(metadata), row_group_size=_ROW_GROUP_ROWS)
    return buffer.getvalue()


def committed_shards(store: Store, run_id: str) -> set[str]:
    """Return the ids of a run's committed shards: one listing, no object is read."""
    return set(held_commits(store, run_id))


def held_commits(store: Store, run_id: str) -> dict[str, int]:
    """Map each committed shard to the number of its current commit: 0 for the first, K for the K-th repair.

    As one listing shows it, which may lag behind; find_commit asks by name.
    """
    return last_commits(commit_files(store, run_id))


def last_commits(names: Iterable[str]) -> dict[str, int]:
    """Map each shard to the latest of the commits with these names: 0 for the first, K for the K-th repair."""
    held: dict[str, int] = {}
    for name in names:
        if found := split_commit_name(name):
            shard_id, repair = found
            held[shard_id] = max(repair, held.get(shard_id, 0))
    return held


def commit_files(store: Store, run_id: str) -> dict[str, int]:
    """List a run's commits, repairs and the commits they supersede included, as {name: bytes}."""
    found = store.find(f"{run_folder(run_id)}/commits")
    return {name: size for name, size in found.items() if split_commit_name(name) is not None}


def read_commit(store: Store, run_id: str, shard_id: str, repair: int = 0) -> ShardCommit:
    """Read a shard's first commit, or one of its repairs.

    Raises:
        FileNotFoundError: there is no such commit.
        DamagedError: the object is not a valid commit of this shard.
        StorageError: it cannot be read, or a newer version wrote it.
    """
    name = commit_name(run_id, shard_id, repair)
    document = store.read_json(name)
    try:
        commit = ShardCommit.from_document(document)
        # A commit copied from another shard is valid, checksum included.
        if (commit.run_id, commit.shard_id, commit.repair) != (run_id, shard_id, repair):
            raise ValueError(f"it is that of {commit.shard_id} of run {commit.run_id}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{store.uri}/{name}: no commit of {shard_id} ({misfit(document, error)})") from error
    return commit


def find_commit(store: Store, run_id: str, shard_id: str, listed: int | None = None) -> ShardCommit | None:
    """Read a shard's current commit, asked for by name since a listing may lag; None if it is not committed.

    Args:
        store: the output.
        run_id: the run.
        shard_id: the shard.
        listed: number of the latest commit that a listing has shown, to start from.

    Raises:
        DamagedError: the commit that holds is not a valid commit.
        FileNotFoundError: it was removed meanwhile, by hand.
    """
    # Nearly no shard was ever repaired: two requests then, of which the second is the commit.
    if listed is None and store.size(commit_name(run_id, shard_id, 1)) is None:
        try:
            return read_commit(store, run_id, shard_id)
        except FileNotFoundError:
            return None
    repair = last_repair(store, run_id, shard_id, 1 if listed is None else listed)
    return None if repair is None else read_commit(store, run_id, shard_id, repair)


def last_repair(store: Store, run_id: str, shard_id: str, listed: int | None = None) -> int | None:
    """Return the number of a shard's current commit: 0 for the first, K for the K-th repair; None if there is none.

    Asks for one name after the other, from ``listed`` on.
    """
    if listed is None and store.size(commit_name(run_id, shard_id)) is None:
        return None
    # Repairs are numbered without gaps and never removed, so the first number that is missing ends the search.
    return next(k for k in itertools.count(listed or 0) if store.size(commit_name(run_id, shard_id, k + 1)) is None)


def read_commits(store: Store, run_id: str) -> Iterator[ShardCommit]:
    """Read the current commits concurrently, in shard order.

    Raises:
        FileNotFoundError: one was removed meanwhile, by hand.
        DamagedError, StorageError: as for read_commit.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(lambda held: read_commit(store, run_id, *held), _in_order(held_commits(store, run_id)))


def inspect_commits(
    store: Store, run_id: str, listed: Iterable[str]
) -> Iterator[tuple[str, ShardCommit | DamagedError]]:
    """Read the current commits as read_commits does, but yield the error in place of a damaged one.

    Args:
        store: the output.
        run_id: the run.
        listed: names of its commits, as commit_files lists them.

    Yields:
        Each committed shard's id with its commit, or with the error.
    """

    def read(held: tuple[str, int]) -> tuple[str, ShardCommit | DamagedError]:
        try:
            return held[0], read_commit(store, run_id, *held)
        except DamagedError as error:
            return held[0], error

    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read, _in_order(last_commits(listed)))


def _in_order(held: Mapping[str, int]) -> list[tuple[str, int]]:
    # By length first: ids have five digits or more, and shard-100000 comes after shard-99999.
    return sorted(held.items(), key=lambda one: (len(one[0]), one))
