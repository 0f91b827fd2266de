"""The commit protocol: two Parquet files for a shard, and the create-only object that makes them visible.

A shard exists if and only if its commit object exists; what no commit names is a leftover. Commits are never changed or
removed: one whose files are gone is superseded by a repair, a commit of its own beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
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
from pipelines.storage.sealed import misfit
from pipelines.storage.store import Store
from pipelines.table.schema import SCHEMAS, VERSION_KEY, annotations_table, images_table
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import ImagePrediction, ImageRef, Shard, ShardReceipt

_ROW_GROUP_ROWS = 65_536
_READERS = 16


def data_files(store: Store, run_id: str) -> dict[str, int]:
    """List a run's data files, committed or not: {name: bytes}. Files of other names are nobody's business."""
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
    """Write a shard's two files and its commit: the shard exists once the commit does.

    Args:
        store: the output.
        run_id: the run.
        shard: the planned shard.
        predictions: exactly one outcome for each of its images, in its order.
        attempt: id of this try, unique in the run.
        started: time.monotonic() when the attempt began.
        model_s: seconds spent in the predictor.
        predictor: its facts, for provenance.

    Returns:
        The receipt of the commit that holds; another attempt's if that one was first.

    Raises:
        RuntimeError: an image has no outcome, or an unplanned one has: a bug, nothing is written.
        StorageError: the output cannot be written.
        DamagedError: another attempt was first, and its commit cannot be read.
    """
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
        files[kind] = DataFile(
            name=name, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), rows=table.num_rows
        )
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
    )
    if store.create(commit_name(run_id, shard.shard_id, shard.repair), commit.to_json()):
        _restore_missing(store, contents)
        return commit.receipt(committed_here=True)
    _discard(store, contents)
    return read_commit(store, run_id, shard.shard_id, shard.repair).receipt(committed_here=False)


def _write_all(store: Store, contents: Mapping[str, bytes]) -> None:
    """Write an attempt's files; if one fails none stays, as far as that can be had: no commit will ever name them."""
    try:
        for name, data in contents.items():
            store.write(name, data)
    except StorageError:
        _discard(store, contents)
        raise


def _discard(store: Store, names: Iterable[str]) -> None:
    """Remove files that no commit names; what cannot be removed is a leftover, which does no harm."""
    for name in names:
        with contextlib.suppress(StorageError):
            store.delete(name)


def _restore_missing(store: Store, contents: Mapping[str, bytes]) -> None:
    """Write again what a commit names and is not there: vacuum may have taken it for abandoned before the commit.

    The shard is committed, whatever the store says to this: what is missing after all is found by verify.
    """
    with contextlib.suppress(StorageError):
        for name, data in contents.items():
            if store.size(name) != len(data):
                store.write(name, data)


def _check_complete(shard: Shard, predictions: Sequence[ImagePrediction]) -> None:
    planned: list[ImageRef] = list(shard.images)
    if [p.ref for p in predictions] != planned:
        raise RuntimeError(
            f"{shard.shard_id}: {len(predictions)} outcomes for {len(planned)} planned images, or in another order"
        )


def parquet_bytes(table: pa.Table, kind: Kind, facts: Mapping[str, str]) -> bytes:
    """Encode one of the two tables: zstd, dictionary for the repeated columns, page index, bloom filter on image_id."""
    repeated = {
        "annotations": ["task", "prompt_id", "prompt", "category_name", "run_id", "shard_id", "attempt", "source"],
        "images": ["status", "reason", "stage", "run_id", "shard_id", "attempt"],
    }[kind]
    # Statistics on run lengths only cost space.
    statistics = [name for name in table.column_names if name != "segmentation"]
    metadata = {f"xsam_label.{key}": str(value) for key, value in facts.items()}
    metadata[VERSION_KEY.decode()] = str(SCHEMA_VERSION)
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        SCHEMAS[kind].with_metadata(metadata),
        compression="zstd",
        compression_level=3,
        use_dictionary=repeated,
        write_statistics=statistics,
        write_page_index=True,
        bloom_filter_options={"image_id": {"ndv": max(1, table.num_rows), "fpp": 0.01}},
    ) as writer:
        writer.write_table(table.replace_schema_metadata(metadata), row_group_size=_ROW_GROUP_ROWS)
    return buffer.getvalue()


def committed_shards(store: Store, run_id: str) -> set[str]:
    """List the ids of the committed shards of a run: one listing, no object is read."""
    return set(held_commits(store, run_id))


def held_commits(store: Store, run_id: str) -> dict[str, int]:
    """Return by shard id which commit holds, as one listing shows it: 0 for the first, K for the K-th repair."""
    return last_commits(commit_files(store, run_id))


def last_commits(names: Iterable[str]) -> dict[str, int]:
    """Return by shard id which commit holds among those of these names."""
    held: dict[str, int] = {}
    for name in names:
        if found := split_commit_name(name):
            shard_id, repair = found
            held[shard_id] = max(repair, held.get(shard_id, 0))
    return held


def commit_files(store: Store, run_id: str) -> dict[str, int]:
    """List a run's commit objects, repairs and what they took the place of: {name: bytes}."""
    found = store.find(f"{run_folder(run_id)}/commits")
    return {name: size for name, size in found.items() if split_commit_name(name) is not None}


def read_commit(store: Store, run_id: str, shard_id: str, repair: int = 0) -> ShardCommit:
    """Read a shard's first commit, or one of its repairs.

    Raises:
        FileNotFoundError: there is no such commit.
        DamagedError: the object is not what a commit of this shard is.
        StorageError: it cannot be read, or a newer version wrote it.
    """
    name = commit_name(run_id, shard_id, repair)
    document = store.read_json(name)
    try:
        commit = ShardCommit.from_document(document)
        if (commit.run_id, commit.shard_id, commit.repair) != (run_id, shard_id, repair):
            raise ValueError(f"it is that of {commit.shard_id} of run {commit.run_id}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{store.uri}/{name}: no commit of {shard_id} ({misfit(document, error)})") from error
    return commit


def find_commit(store: Store, run_id: str, shard_id: str, listed: int | None = None) -> ShardCommit | None:
    """Read the commit that holds for a shard, None if it is not committed. By name: a listing may be behind.

    Args:
        store: the output.
        run_id, shard_id: whose.
        listed: the commit that a listing has shown.

    Raises:
        DamagedError: the commit that holds cannot be read as one.
        FileNotFoundError: it was removed meanwhile, by hand.
    """
    repair = last_repair(store, run_id, shard_id, listed)
    return None if repair is None else read_commit(store, run_id, shard_id, repair)


def last_repair(store: Store, run_id: str, shard_id: str, listed: int | None = None) -> int | None:
    """Return which commit of a shard holds, by name: 0 for the first, K for the K-th repair; None if there is none."""
    if listed is None and store.size(commit_name(run_id, shard_id)) is None:
        return None
    return next(k for k in itertools.count(listed or 0) if store.size(commit_name(run_id, shard_id, k + 1)) is None)


def read_commits(store: Store, run_id: str, shard_ids: Iterable[str] | None = None) -> Iterator[ShardCommit]:
    """Read the commits that hold, in shard order, several at a time; all of the run by default.

    Raises:
        FileNotFoundError: one of the shards is not committed.
        DamagedError, StorageError: as read_commit.
    """
    held = held_commits(store, run_id)
    ids = sorted(held if shard_ids is None else shard_ids, key=lambda s: (len(s), s))
    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(lambda shard_id: read_commit(store, run_id, shard_id, held.get(shard_id, 0)), ids)


def inspect_commits(
    store: Store, run_id: str, listed: Iterable[str]
) -> Iterator[tuple[str, ShardCommit | DamagedError]]:
    """Read the commits that hold, as read_commits does; of one that cannot be read as one the error.

    Args:
        store: the output.
        run_id: the run.
        listed: names of its commits, as commit_files lists them.

    Yields:
        Each committed shard's id with what there is of its commit.
    """

    def read(held: tuple[str, int]) -> tuple[str, ShardCommit | DamagedError]:
        try:
            return held[0], read_commit(store, run_id, *held)
        except DamagedError as error:
            return held[0], error

    with ThreadPoolExecutor(_READERS) as readers:
        yield from readers.map(read, sorted(last_commits(listed).items(), key=lambda one: (len(one[0]), one)))
