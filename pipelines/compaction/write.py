"""Write a compaction: read every committed file, write their rows to few large files, then the object that names them.

Committed files stay as they are. A reader of the folder of a compaction sees all of its rows or, before they are noted,
has no reason to know of it.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import add, gt

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.compaction.compacted import (
    Compacted,
    CompactedRun,
    compacted_numbers,
    is_from_before_erasure,
    newest_compacted,
)
from pipelines.errors import DamagedError, PlanError, StorageError
from pipelines.layout import KINDS, SCHEMA_VERSION, Kind, compacted_file, compacted_folder, compacted_name
from pipelines.planning.erasures import read_forgotten
from pipelines.planning.plan import check_no_plan_lost, plan_documents
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit, parquet_bytes, read_commits
from pipelines.table.file_checks import hash_problem
from pipelines.table.schema import SCHEMAS, VERSION_KEY
from pipelines.table.shard_commit import DataFile, ShardCommit

# What goes into one file: below 100 MiB it is one request, and its rows are in memory while it is written. These may
# take hundreds of times as much: what a thousand categories came to in an image is nearly the same in each.
_MAX_BYTES = 64 << 20
_MAX_MEMORY = 256 << 20
_MAX_ROWS: Mapping[Kind, int] = {"annotations": 2**19, "images": 2**16}
# Of a committed file so much is not counted: small ones are footer, page index and bloom filter rather than rows.
_FIXED_BYTES = 32 << 10
_READERS = 8


def compact(store: Store, *, on_file: Callable[[str], None] = lambda _: None) -> tuple[Compacted, bool]:
    """Write all rows that are committed now to few large files, unless the newest compaction holds just these.

    Runs may be at work meanwhile: what they commit from now on is not in it. Of each run all columns are kept, of each
    shard all rows. A file's rows are in the order of image ids; of one image those of the run that was planned first
    come first.

    Args:
        store: the output.
        on_file: called with the name of each file that was written.

    Returns:
        The compaction, and whether it was written now.

    Raises:
        PlanError: nothing is committed; images are being forgotten; or another compaction was first, or a shard was
            committed again while it was read: then the same call may be made again.
        DamagedError: a commit or a file that it names is damaged; nothing is left behind.
        StorageError: the output cannot be read or written.
    """
    check_no_plan_lost(store)
    erasures = read_forgotten(store)
    if erasures.unfinished:
        raise PlanError(f"{store.uri}: images are being forgotten; compact once `forget` has ended")
    commits = {run_id: list(read_commits(store, run_id)) for run_id in plan_documents(store)}
    runs = {run_id: CompactedRun.of(held) for run_id, held in commits.items() if held}
    if not runs:
        raise PlanError(f"{store.uri}: no shard is committed; there is nothing to compact")
    held = newest_compacted(store)
    if held is not None and held.runs == runs:
        return held, False
    number = max(compacted_numbers(store), default=0) + 1
    folder, names = compacted_folder(number, secrets.token_hex(8)), list[str]()
    try:
        files = {kind: tuple(_write(store, folder, kind, commits, names, on_file)) for kind in KINDS}
    except BaseException:
        _discard(store, names)
        raise
    compacted = Compacted(
        number=number,
        folder=folder,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
        runs=runs,
        erasures=len(erasures.erasures),
    )
    # If this raises, nothing is discarded: the put may still arrive, and would then name files that are gone.
    if not store.create(compacted_name(number), compacted.to_json()):
        _discard(store, names)
        raise PlanError(
            f"{store.uri}: another compaction has just ended; run the same command again if that is too old"
        )
    _check_noted(store, compacted)
    return compacted, True


def _check_noted(store: Store, compacted: Compacted) -> None:
    """Take a compaction back that must not be read: `forget` or `vacuum` came while it was written."""
    # Who asks to forget images from now on finds it, and removes it.
    if is_from_before_erasure(store, compacted):
        problem = "images were forgotten meanwhile"
    elif any(store.size(file.name) != file.num_bytes for file in compacted.all_files):
        problem = "its files were removed meanwhile, as if abandoned"
    else:
        return
    _discard(store, [compacted_name(compacted.number), *(file.name for file in compacted.all_files)])
    raise PlanError(f"{store.uri}: {problem}; run the same command again")


def _discard(store: Store, names: Iterable[str]) -> None:
    """Remove files that nothing names. What cannot be removed is a leftover for vacuum."""
    for name in names:
        with suppress(StorageError):
            store.delete(name)


def _write(
    store: Store,
    folder: str,
    kind: Kind,
    commits: Mapping[str, Sequence[ShardCommit]],
    names: list[str],
    on_file: Callable[[str], None],
) -> Iterator[DataFile]:
    """Write one of the tables, and add the name of each file to ``names`` before it is written."""
    number = 0
    with ThreadPoolExecutor(_READERS) as readers:
        every = (commit for held in commits.values() for commit in held if commit.files()[KINDS.index(kind)].rows)
        tables = (
            (max(0, commit.files()[KINDS.index(kind)].num_bytes - _FIXED_BYTES), table)
            for some in _several(every)
            for commit, table in zip(some, readers.map(lambda commit: _read(store, kind, commit), some), strict=True)
        )
        for together in _together(kind, tables):
            for version, rows in _sorted_by_version(kind, together):
                name = compacted_file(folder, kind, number)
                names.append(name)
                data = parquet_bytes(rows, kind, {"compaction": folder}, version)
                store.write(name, data)
                on_file(name)
                yield DataFile.of(name, data, rows.num_rows)
                number += 1


def _several(commits: Iterable[ShardCommit]) -> Iterator[list[ShardCommit]]:
    """Yield the shards that are read at once."""
    rest = iter(commits)
    while some := list(islice(rest, _READERS)):
        yield some


def _together(kind: Kind, tables: Iterable[tuple[int, pa.Table]]) -> Iterator[list[pa.Table]]:
    """Yield what goes into one file; at least once, if without any rows, so that no table lacks a file.

    Args:
        kind: which table.
        tables: the rows of each shard, with the bytes that count of its file.
    """
    some, is_first = list[pa.Table](), True
    held: tuple[int, ...] = (0, 0, 0)
    for num_bytes, table in tables:
        own = (table.num_rows, num_bytes, table.nbytes)
        total = tuple(map(add, held, own))
        if some and any(map(gt, total, (_MAX_ROWS[kind], _MAX_BYTES, _MAX_MEMORY))):
            yield some
            some, total, is_first = [], own, False
        some.append(table)
        held = total
    if some or is_first:
        yield some


def _read(store: Store, kind: Kind, commit: ShardCommit) -> pa.Table:
    """Read a committed file whose bytes are those that were committed."""
    file = commit.files()[KINDS.index(kind)]
    try:
        data = store.read(file.name)
    except FileNotFoundError as error:
        if find_commit(store, commit.run_id, commit.shard_id) != commit:
            raise PlanError(
                f"{store.uri}: {commit.shard_id} of run {commit.run_id} was committed again while it was read; run the "
                "same command again"
            ) from error
        raise DamagedError(f"{store.uri}/{file.name} is missing; verify names all that is damaged") from error
    if problem := hash_problem(data, file):
        raise DamagedError(f"{store.uri}/{problem}; verify names all that is damaged")
    table = pq.read_table(io.BytesIO(data))
    if (version := _version(table)) > SCHEMA_VERSION:
        raise StorageError(
            f"{store.uri}/{file.name} was written by a newer version (table schema {version}); upgrade to compact it"
        )
    return table


def _sorted_by_version(kind: Kind, tables: Sequence[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Yield the rows of each schema version in the order of image ids: columns are never added to rows."""
    if not tables:
        yield SCHEMA_VERSION, SCHEMAS[kind].empty_table()
    versions = sorted(((_version(table), place) for place, table in enumerate(tables)))
    for version, found in groupby(versions, key=lambda one: one[0]):
        rows = pa.concat_tables([tables[place].replace_schema_metadata() for _, place in found]).combine_chunks()
        # A stable sort: rows of one image stay in the order of their runs and ranks.
        yield version, rows.take(pc.sort_indices(rows["image_id"]))


def _version(table: pa.Table) -> int:
    return int((table.schema.metadata or {}).get(VERSION_KEY, 0))
