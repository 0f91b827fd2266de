"""Find the images of a run that are still quarantined, its retries considered: what `retry` labels again.

Plans and rows are sorted by image id, so they are merged as streams, and memory does not grow with the run.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import PlanError, StorageError
from pipelines.planning.fingerprint import relabeled
from pipelines.planning.plan import plan_documents, read_plan, retries_by_run
from pipelines.storage.client_errors import storage_errors
from pipelines.storage.store import Store
from pipelines.table.commits import held_commits, read_commit
from pipelines.table.schema import IMAGES
from pipelines.types import ImageRef, Status

_READERS = 16
_SHARDS_AHEAD = 8  # of each run, read while earlier ones are merged


@dataclass(frozen=True, slots=True)
class QuarantinedImages:
    """The images of a run that are quarantined now. Each iteration reads them again.

    Attributes:
        store: the output.
        run_id: a run that is not itself a retry; an image's latest outcome in it or its retries counts.
        reasons: only images with one of these reasons; any by default.
    """

    store: Store
    run_id: str
    reasons: Collection[str] = ()

    def __iter__(self) -> Iterator[ImageRef]:
        """Yield the images with the prompts they were planned with, in the order of their ids.

        Size and etag are left out, since the file may have been fixed meanwhile. An image that a later run has planned
        as changed is left to that run, and one that a later relabel has answered is quarantined no more.

        Raises:
            PlanError: rows are not in the order of the plan, so no run can have written them.
        """
        plan = read_plan(self.store, self.run_id)
        if plan is None:
            return
        tries = (self.run_id, *retries_by_run(self.store).get(self.run_id, ()))
        documents = plan_documents(self.store)
        others = [run_id for run_id in documents if run_id not in tries]
        with ThreadPoolExecutor(_READERS) as pool:
            wanted = _Column(_quarantined(self.store, tries, self.reasons, pool))
            newest = _Column(_changed_since(self.store, others, pool))
            answered = _Column(_answered_by(self.store, _relabels_since(documents, self.run_id), pool))
            for shard in plan.shards(self.store):
                for ref in (ref for ref in shard.images if not ref.is_forgotten):
                    is_current = ref.version >= (newest.at(ref.image_id) or 1)
                    # Prompts of its own are those of the plan: a relabel may have had others.
                    is_current &= answered.at(ref.image_id) is None or bool(ref.prompts)
                    if wanted.at(ref.image_id) is not None and is_current:
                        yield replace(ref, num_bytes=None, etag=None)

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return next(iter(self), None) is not None


def quarantined_images(store: Store, run_id: str, reasons: Collection[str] = ()) -> QuarantinedImages:
    """Return the images of a run that are quarantined now; see QuarantinedImages."""
    return QuarantinedImages(store, run_id, reasons)


def _quarantined(
    store: Store, tries: Sequence[str], reasons: Collection[str], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, str]]:
    """Yield the id and reason of each image whose last try in these runs ended in quarantine."""
    is_quarantined = pc.field("status") == Status.QUARANTINED.value
    columns = ("image_id", "status", "reason")
    # Retries label only what the first run quarantined: its other rows, nearly all of them, need not be merged.
    first = _rows(store, tries[0], columns, pool, is_quarantined)
    later = (_rows(store, run_id, columns, pool) for run_id in tries[1:])
    for image_id, rows in _grouped([first, *later]):
        _, status, reason = rows[-1]
        if status == Status.QUARANTINED and (not reasons or reason in reasons):
            yield image_id, reason


def _changed_since(store: Store, runs: Iterable[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, int]]:
    """Yield the id and newest version of each image that one of these runs has planned as changed."""
    is_changed = pc.field("image_version") > 1
    found = [_rows(store, run_id, ("image_id", "image_version"), pool, is_changed) for run_id in runs]
    for image_id, rows in _grouped(found):
        yield image_id, max(version for _, version in rows)


def _relabels_since(documents: Mapping[str, Mapping[str, Any]], run_id: str) -> list[str]:
    """Return the relabels after a run that have asked all that it asks of every image."""

    def asked(one: Mapping[str, Any]) -> set[str]:
        return {prompt["prompt_id"] for prompt in one.get("facts", {}).get("prompts", ())}

    if run_id not in documents:
        return []
    later = list(documents)[list(documents).index(run_id) + 1 :]
    prompts = asked(documents[run_id])
    return [one for one in later if relabeled(documents[one]) is not None and prompts <= asked(documents[one])]


def _answered_by(store: Store, runs: Iterable[str], pool: ThreadPoolExecutor) -> Iterator[tuple[str, str]]:
    """Yield the id and status of each image that one of these runs has answered."""
    is_answered = pc.field("status") != Status.QUARANTINED.value
    found = [_rows(store, run_id, ("image_id", "status"), pool, is_answered) for run_id in runs]
    for image_id, rows in _grouped(found):
        yield image_id, rows[-1][1]


def _grouped(runs: Sequence[Iterator[tuple[Any, ...]]]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Merge rows by image id, and yield each id with its rows in the order of the runs."""
    # heapq.merge is stable: of one id, rows of an earlier stream come first.
    for image_id, rows in itertools.groupby(heapq.merge(*runs, key=itemgetter(0)), key=itemgetter(0)):
        yield image_id, list(rows)


def _rows(
    store: Store, run_id: str, columns: Sequence[str], pool: ThreadPoolExecutor, kept: pc.Expression | None = None
) -> Iterator[tuple[Any, ...]]:
    """Yield the committed rows of a run in the order of image ids, with a few shards in memory at a time.

    Rows of forgotten images are left out: their ids are in no order.

    Raises:
        StorageError: rows cannot be read; the message includes what the storage client or pyarrow said.
    """
    held = held_commits(store, run_id)
    is_there = pc.field("status") != Status.FORGOTTEN.value
    kept = is_there if kept is None else kept & is_there

    def read(shard_id: str) -> pa.Table:
        import pyarrow.dataset as ds  # see pipelines.table.reader

        name = read_commit(store, run_id, shard_id, held[shard_id]).images.name
        try:
            with storage_errors(f"{store.uri}/{name}"):
                # With the schema given, columns that files of earlier versions lack are read as nulls.
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
    """A sorted stream of (image id, value), looked up by ascending ids."""

    def __init__(self, pairs: Iterator[tuple[str, Any]]) -> None:
        self._pairs = pairs
        self._next = next(pairs, None)

    def at(self, image_id: str) -> Any:
        """Return the value of an id, None if it has none. Ids must not be smaller than those asked for before."""
        while self._next is not None and self._next[0] < image_id:
            self._next = next(self._pairs, None)
        return self._next[1] if self._next is not None and self._next[0] == image_id else None
