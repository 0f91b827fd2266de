"""Publish the current rows as Delta tables: a version of each table's log names the files that hold them.

Committed files are named where they are. What is current of a file of which other rows were replaced is written beside,
see current_files. Which rows those are is worked out after the log was read: as a version is written only if it is the
next one, no publisher can undo what another has published meanwhile.
"""

from __future__ import annotations

import contextlib
import io
import secrets
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import duckdb
import pyarrow.parquet as pq

from pipelines.errors import PlanError, StorageError
from pipelines.lakehouse.current_files import CurrentFile, find_current, read_parts
from pipelines.lakehouse.delta_log import DeltaLog, LoggedFile, read_delta_log, schema_string, write_version
from pipelines.layout import KINDS, Kind, current_name
from pipelines.planning.erasures import Erasure, read_forgotten
from pipelines.planning.plan import check_no_plan_lost
from pipelines.query.database import open_database, take_snapshot
from pipelines.query.files import StoreFileSystem, query_errors
from pipelines.storage.store import Store, probe_create_only
from pipelines.table.commits import parquet_bytes

_TRIES = 20
_READERS = 16
_WRITERS = 4  # each holds the rows of a shard


@dataclass(slots=True)
class PublishedTable:
    """What became of a table.

    Attributes:
        kind: which one.
        version: the last version of its log.
        num_files: files that hold its rows.
        added, removed: files that this call has added and removed.
        written: of those added, how many hold the current rows of files of which others were replaced.
        is_new: whether this call wrote a version.
    """

    kind: Kind
    version: int = -1
    num_files: int = 0
    added: int = 0
    removed: int = 0
    written: int = 0
    is_new: bool = False


@dataclass(slots=True)
class _Change:
    """What a version changes: whole files and parts to add, names of files to remove."""

    whole: list[CurrentFile] = field(default_factory=list)
    parts: list[CurrentFile] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


def publish_delta(
    store: Store, *, on_step: Callable[[str], None] = lambda _: None, is_erasing: bool = False
) -> list[PublishedTable]:
    """Write a version of each table's Delta log, unless its last version has the current rows already.

    Runs may be at work meanwhile: what is committed when this begins is in it.

    Args:
        store: the output.
        on_step: called with a description of each step, for progress.
        is_erasing: whether this is part of an erasure, which may otherwise not be under way.

    Returns:
        What became of each table.

    Raises:
        ForeignLogError: a table has a log that others have written; nothing is written.
        PlanError: nothing is committed; images are being forgotten; or others publish all the time.
        DamagedError: a commit, file or log is damaged.
        StorageError: the output cannot be read or written.
    """
    check_no_plan_lost(store)
    done = {kind: PublishedTable(kind) for kind in KINDS}
    for _ in range(_TRIES):
        on_step("reading the logs")
        logs = {kind: read_delta_log(store, kind) for kind in KINDS}
        forgotten = read_forgotten(store)
        if not is_erasing and forgotten.unfinished:
            raise PlanError(f"{store.uri}: images are being forgotten; publish once `forget` has ended")
        known = None if is_erasing else forgotten.erasures
        if _publish_once(store, logs, done, on_step, known):
            return list(done.values())
    raise PlanError(f"{store.uri}: others publish it all the time; run the same command again")


def _publish_once(
    store: Store,
    logs: dict[Kind, DeltaLog],
    done: dict[Kind, PublishedTable],
    on_step: Callable[[str], None],
    erasures: tuple[Erasure, ...] | None,
) -> bool:
    """Publish what is committed now; return whether nobody came between: no other publisher, and no erasure.

    Args:
        store: the output.
        logs, done: of each table.
        on_step: as of ``publish_delta``.
        erasures: those that were known before; None if this is part of one.
    """
    on_step("reading commits")
    snapshot = take_snapshot(store)
    if not any(run.committed_shards for run in snapshot.files.values()):
        raise PlanError(f"{store.uri}: no shard is committed; there is nothing to publish")
    with query_errors(store), contextlib.closing(open_database(store, snapshot=snapshot)) as database:
        changes = {kind: _change(logs[kind], find_current(database, snapshot, kind)) for kind in KINDS}
        if any(changes.values()) and erasures is not None:  # an erasure has to end wherever it was begun
            probe_create_only(store, "publish a copy of the output in one")
        for kind, change in changes.items():
            log = logs[kind]
            done[kind].version, done[kind].num_files = log.version, len(log.files)
            if change is None:
                continue
            names = list[str]()
            try:
                added = list(_add_whole(store, change.whole, on_step))
                added += _add_parts(store, database, kind, change.parts, names, on_step)
            except BaseException:
                _discard(store, names)
                raise
            if erasures is not None and read_forgotten(store).erasures != erasures:
                _discard(store, names)  # it may show images that were forgotten meanwhile, by who found no table yet
                return False
            runs = {file.run_id for file in (*change.whole, *change.parts)}
            # If this raises, nothing is discarded: the put may still arrive, and would then name files that are gone.
            if not write_version(store, log, added, change.removed, runs):
                _discard(store, names)
                return False
            done[kind].version += 1
            done[kind].num_files += len(added) - len(change.removed)
            done[kind].added += len(added)
            done[kind].removed += len(change.removed)
            done[kind].written += len(names)
            done[kind].is_new = True
    return True


def _change(log: DeltaLog, current: Sequence[CurrentFile]) -> _Change | None:
    """Return what the next version of a log has to change, None if nothing."""
    held = {(file.source or file.name, file.digest): file.name for file in log.files.values()}
    change = _Change()
    for file in current:
        if held.pop((file.source.name, file.digest), None) is None:
            (change.whole if file.digest is None else change.parts).append(file)
    change.removed = sorted(held.values())
    is_there = log.schema == schema_string(log.kind)
    return None if is_there and not (change.whole or change.parts or change.removed) else change


def _add_whole(store: Store, files: Sequence[CurrentFile], on_step: Callable[[str], None]) -> Iterator[LoggedFile]:
    """Yield what a log says of committed files: their statistics are in their footers."""
    objects = StoreFileSystem(store, {file.source.name: file.source.num_bytes for file in files})

    def measured(file: CurrentFile) -> LoggedFile:
        with objects.open(file.source.name) as opened:
            return LoggedFile(file.source.name, file.source.num_bytes).measured(pq.read_metadata(opened))

    with ThreadPoolExecutor(_READERS) as readers:
        for number, file in enumerate(readers.map(measured, files), start=1):
            on_step(f"read the footer of file {number:,} of {len(files):,}")
            yield file


def _add_parts(
    store: Store,
    database: duckdb.DuckDBPyConnection,
    kind: Kind,
    parts: Sequence[CurrentFile],
    names: list[str],
    on_step: Callable[[str], None],
) -> Iterator[LoggedFile]:
    """Write the current rows of files, yield what the log says of them, and add their names before they are written."""
    rows = read_parts(database, kind, parts)

    def write(name: str, data: bytes) -> None:
        store.write(name, data)
        on_step(f"wrote {name}")

    with ThreadPoolExecutor(_WRITERS) as writers:
        while some := list(islice(rows, _WRITERS)):
            written = list[tuple[LoggedFile, bytes]]()
            for part, table in some:
                names.append(current_name(kind, part.run_id, part.shard_id, secrets.token_hex(8)))
                data = parquet_bytes(table, kind, {"run_id": part.run_id, "shard_id": part.shard_id})
                file = LoggedFile(names[-1], len(data), part.source.name, part.digest)
                written.append((file.measured(pq.read_metadata(io.BytesIO(data))), data))
            list(writers.map(lambda one: write(one[0].name, one[1]), written))
            yield from (file for file, _ in written)


def _discard(store: Store, names: Sequence[str]) -> None:
    """Remove files that no version names. What cannot be removed is a leftover for vacuum."""
    for name in names:
        with contextlib.suppress(StorageError):
            store.delete(name)
