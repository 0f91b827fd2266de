"""Erase forgotten images from committed shards: new files without them, committed as a repair is; then the old ones."""

from __future__ import annotations

import io
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, Kind, commit_name, data_name, split_data_name
from pipelines.planning.erasures import Forgotten, salted, tombstone
from pipelines.planning.plan import DRIVER_ID
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store
from pipelines.table.commits import data_files, find_commit, parquet_bytes, read_commit, write_missing
from pipelines.table.file_checks import hash_problem
from pipelines.table.schema import VERSION_KEY
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import Status

_FACT = b"xsam_label."
# What a tombstone keeps of an image's row; of its id a salted hash.
_KEPT = ("image_id", "image_version", "run_id", "shard_id", "attempt")


def forget_in_shard(store: Store, run_id: str, shard_id: str, forgotten: Forgotten) -> int:
    """Commit a shard again without forgotten images; its other rows stay as they are, but for who wrote them.

    Returns:
        The number of files that were written: 0 if the shard holds none of them any more.

    Raises:
        DamagedError: the shard is damaged; nothing is written.
    """
    written = 0
    while True:
        commit = find_commit(store, run_id, shard_id)
        if commit is None:
            raise DamagedError(f"{store.uri}: {shard_id} of run {run_id} is not committed any more")
        tables = {kind: read_table(store, file) for kind, file in zip(KINDS, commit.files(), strict=True)}
        if not any(image_id in forgotten for image_id in tables["images"]["image_id"].to_pylist()):
            return written
        erased, contents = _erased(commit, tables, forgotten)
        for name, data in contents.items():
            store.write(name, data)
        if store.create(commit_name(run_id, shard_id, erased.repair), erased.to_json()):
            write_missing(store, contents)
            written += len(contents)
        else:
            for name in contents:
                store.delete(name)


def clean_shards(store: Store, run_id: str, shard_ids: Iterable[str]) -> Iterator[str]:
    """Remove what the commits that hold do not name of some shards, and what the commits before them tell of images.

    Yields:
        The name of each file that was removed.
    """
    ids, sizes = set(shard_ids), data_files(store, run_id)
    by_shard: dict[str, set[str]] = {shard_id: set() for shard_id in ids}
    for name in sizes:
        if (found := split_data_name(name)) is not None and found[0] in ids:
            by_shard[found[0]].add(name)
    for shard_id in sorted(ids):
        commit = find_commit(store, run_id, shard_id)
        if commit is None:
            continue
        before = [_redacted(store, run_id, shard_id, repair) for repair in range(commit.repair)]
        named = {file.name for file in commit.files()}
        # By name, too: a listing may lag.
        for name in sorted((by_shard[shard_id] | {name for names in before for name in names}) - named):
            if name in sizes or store.size(name) is not None:
                store.delete(name)
                yield name


def _redacted(store: Store, run_id: str, shard_id: str, repair: int) -> list[str]:
    """Take the rejected prompts, which name images, from a superseded commit, and return the names of its files.

    The bytes follow from the commit alone, so that it does not matter who writes them, how often, and how late.
    """
    name = commit_name(run_id, shard_id, repair)
    try:
        commit = read_commit(store, run_id, shard_id, repair)
    except (DamagedError, FileNotFoundError):
        # Whatever it holds: all that counts is that its name stays taken.
        store.write(name, seal({"superseded": True, **BLANK}))
        return []
    if commit.rejected_prompts:
        store.write(name, replace(commit, rejected_prompts=()).to_json())
    return [file.name for file in commit.files()]


def read_table(store: Store, file: DataFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a committed file, by default all its columns.

    Raises:
        DamagedError: it is missing, or not what was committed.
    """
    try:
        data = store.read(file.name)
    except FileNotFoundError as error:
        raise DamagedError(f"{store.uri}/{file.name} is missing") from error
    # Damage must not be committed again with a hash that fits it, nor hide an image.
    if problem := hash_problem(data, file):
        raise DamagedError(f"{store.uri}/{problem}")
    return pq.read_table(io.BytesIO(data), columns=columns)


def _erased(
    commit: ShardCommit, tables: dict[Kind, pa.Table], forgotten: Forgotten
) -> tuple[ShardCommit, dict[str, bytes]]:
    """Return the commit of a shard without forgotten images, and its files by name."""
    images, annotations = tables["images"], tables["annotations"]
    gone = pa.array([one for one in images["image_id"].to_pylist() if one in forgotten], pa.string())
    is_gone = pc.is_in(images["image_id"], gone)
    attempt, repair = f"{DRIVER_ID}-{secrets.token_hex(4)}", commit.repair + 1
    lost = images.filter(is_gone).to_pylist()
    masks = annotations.filter(pc.invert(pc.is_in(annotations["image_id"], gone)))
    left: dict[Kind, pa.Table] = {"annotations": masks, "images": _with_tombstones(images, is_gone, forgotten)}
    contents, files = {}, {}
    for kind, table in left.items():
        facts = {
            key.removeprefix(_FACT).decode(): value.decode()
            for key, value in (table.schema.metadata or {}).items()
            if key.startswith(_FACT) and key != VERSION_KEY
        }
        place = table.schema.get_field_index("attempt")
        own = table.set_column(place, table.schema.field(place), pa.repeat(attempt, table.num_rows))
        version = int((table.schema.metadata or {}).get(VERSION_KEY, 0))
        data = parquet_bytes(own, kind, {**facts, "attempt": attempt}, version)
        name = data_name(kind, commit.run_id, commit.shard_id, attempt, repair)
        contents[name] = data
        files[kind] = DataFile.of(name, data, table.num_rows)
    statuses = Counter(commit.status_counts)
    statuses.subtract(row["status"] for row in lost)
    statuses[Status.FORGOTTEN.value] += len(lost)
    reasons = Counter(commit.reason_counts)
    reasons.subtract(row["reason"] for row in lost if row["reason"])
    erased = replace(
        commit,
        attempt=attempt,
        repair=repair,
        annotations=files["annotations"],
        images=files["images"],
        status_counts={name: count for name, count in statuses.items() if count},
        reason_counts={name: count for name, count in reasons.items() if count},
        num_noted=commit.num_noted and commit.num_noted - sum(bool(row.get("pixel_notes")) for row in lost),
        rejected_prompts=tuple(row for row in commit.rejected_prompts if not forgotten.names(str(row["image"]))),
    )
    return erased, contents


def _with_tombstones(images: pa.Table, is_gone: pa.ChunkedArray, forgotten: Forgotten) -> pa.Table:
    """Return the rows of a shard's images with a tombstone for each of some, at the end as in the plan."""
    kept = images.select([name for name in _KEPT if name in images.schema.names])
    rows = kept.filter(is_gone).to_pylist()
    before = pc.equal(images["status"], Status.FORGOTTEN.value)
    left = images.filter(pc.invert(pc.or_(before, is_gone)))
    tombstones = [*images.filter(before).to_pylist(), *(_tombstone(row, images.schema, forgotten) for row in rows)]
    tombstones.sort(key=lambda row: row["image_id"])
    return pa.concat_tables([left, pa.Table.from_pylist(tombstones, schema=images.schema)])


def _tombstone(row: dict[str, Any], schema: pa.Schema, forgotten: Forgotten) -> dict[str, Any]:
    """Return what is left of an image's row: the same as a shard gets that is labeled again after the erasure."""
    empty: dict[str, list[object]] = {name: [] for name in ("per_prompt", "tasks", "captions") if name in schema.names}
    return {
        **row,
        **empty,
        "image_id": tombstone(salted(forgotten.salt, row["image_id"])),
        "uri": "",
        "status": Status.FORGOTTEN.value,
        "attempts": 0,
        "num_annotations": 0,
    }
