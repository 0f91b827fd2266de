"""Which images of a run are quarantined, whatever tried them since: what a retry labels again.

Plans and rows are in the order of image ids, so that they pass by beside each other, and nothing grows with the run.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from pipelines.errors import PlanError, StorageError
from pipelines.planning.plan import plan_documents, read_plan, retries_by_run
from pipelines.storage.client_errors import storage_errors
from pipelines.storage.store import Store
from pipelines.table.commits import held_commits, read_commit
from pipelines.table.schema import IMAGES
from pipelines.types import ImageRef, Status

_READERS = 16
_SHARDS_AHEAD = 8  # of one run, read while the ones before them are gone through


@dataclass(frozen=True, slots=True)
class QuarantinedImages:
    """The images of a run that are quarantined now; read anew each time that they are gone through.

    Attributes:
        store: the output.
        run_id: a run that is no retry itself; what its retries made of an image counts.
        reasons: only images with one of these reasons; any by default.
    """

    store: Store
    run_id: str
    reasons: Collection[str] = ()

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield them with the prompts that they were planned with, in the order of their ids.

        Size and etag are left out: the file may have been mended since. An image that a later run has found changed is
        that run's.

        Raises:
            PlanError: rows are not in the order of the plan: they were not written by a run.
        """
        plan = read_plan(self.store, self.run_id)
        if plan is None:
            return
        tries = (self.run_id, *retries_by_run(self.store).get(self.run_id, ()))
        others = [run_id for run_id in plan_documents(self.store) if run_id not in tries]
        with ThreadPoolExecutor(_READERS) as pool:
            wanted = _Column(_quarantined(self.store, tries, self.reasons, pool))
            newest = _Column(_changed_since(self.store, others, pool))
            for shard in plan.shards(self.store):
                for ref in shard.images:
                    is_current = ref.version >= (newest.at(ref.image_id) or 1)
                    if wanted.at(ref.image_id) is not None and is_current:
                        yield replace(ref, num_bytes=None, etag=None)

    def __bool__(self) -> bool:
        """Say whether there are any."""
        return next(iter(self), None) is not None


def quarantined_images(store: Store, run_id: str, reasons: Collection[str] = ()) -> QuarantinedImages:
    """Return the images of a run that are quarantined now; see QuarantinedImages."""
    return QuarantinedImages(store, run_id, reasons)


def _quarantined(
    store: Store, tries: Sequence[str], reasons: Collection[str], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, str]]:
    """Yield the ids of images that the last of these runs to try them has quarantined, with the reason."""
    is_quarantined = ds.field("status") == Status.QUARANTINED.value
    columns = ("image_id", "status", "reason")
    first = _rows(store, tries[0], columns, pool, is_quarantined)
    later = (_rows(store, run_id, columns, pool) for run_id in tries[1:])
    for image_id, rows in _grouped([first, *later]):
        _, status, reason = rows[-1]
        if status == Status.QUARANTINED and (not reasons or reason in reasons):
            yield image_id, reason


def _changed_since(store: Store, runs: Iterable[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, int]]:
    """Yield the ids of images that any of these runs has planned as changed, with their newest version."""
    is_changed = ds.field("image_version") > 1
    found = [_rows(store, run_id, ("image_id", "image_version"), pool, is_changed) for run_id in runs]
    for image_id, rows in _grouped(found):
        yield image_id, max(version for _, version in rows)


def _grouped(runs: Sequence[Iterator[tuple[Any, ...]]]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield each image id with its rows, those of a run before those of the runs behind it."""
    for image_id, rows in itertools.groupby(heapq.merge(*runs, key=itemgetter(0)), key=itemgetter(0)):
        yield image_id, list(rows)


def _rows(
    store: Store, run_id: str, columns: Sequence[str], pool: ThreadPoolExecutor, kept: ds.Expression | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the committed rows of a run in the order of image ids, a few shards in memory at a time.

    Raises:
        StorageError: they cannot be read; what a storage client or pyarrow says is in it.
    """
    held = held_commits(store, run_id)

    def read(shard_id: str) -> pa.Table:
        name = read_commit(store, run_id, shard_id, held[shard_id]).images.name
        try:
            with storage_errors(f"{store.uri}/{name}"):
                rows = ds.dataset(store.path(name), schema=IMAGES, filesystem=store.fs, format="parquet")
                return rows.to_table(columns=list(columns), filter=kept, use_threads=False)
        except pa.ArrowException as error:
            first = str(error).partition("\n")[0]
            raise StorageError(f"{store.uri}/{name}: cannot be read ({first}); verify says what is damaged") from error

    shard_ids = iter(sorted(held, key=lambda shard_id: (len(shard_id), shard_id)))
    ahead: deque[Future[pa.Table]] = deque(pool.submit(read, one) for one in itertools.islice(shard_ids, _SHARDS_AHEAD))
    last = ""
    while ahead:
        table = ahead.popleft().result()
        ahead.extend(pool.submit(read, one) for one in itertools.islice(shard_ids, 1))
        for row in zip(*(table[name].to_pylist() for name in columns), strict=True):
            if row[0] < last:
                raise PlanError(f"{store.uri}: the images of run {run_id} are not in order: {row[0]!r} after {last!r}")
            last = row[0]
            yield row


class _Column:
    """Values by image id, asked for in the order of ids."""

    def __init__(self, pairs: Iterator[tuple[str, Any]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def at(self, image_id: str) -> Any:
        """Return the value of an id; None if it has none."""
        while self._next is not None and self._next[0] < image_id:
            self._next = next(self._pairs, None)
        return self._next[1] if self._next is not None and self._next[0] == image_id else None
