"""Gathers the plans of finished runs and what they planned for each image, so that an update need not read each run.

``_runs/.history-000001``, ``_runs/.history-000002``, ... are create-only; each holds what the one before it holds, and
more runs. Nothing depends on them: they are made from the plans, and where none can be used the plans are read.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError, PlanError, StorageError
from pipelines.layout import erasure_name, history_name, history_number, plan_name
from pipelines.planning.erasures import read_forgotten
from pipelines.planning.external_sort import sort_batches
from pipelines.planning.plan import DRIVER_ID, Plan, PlanPart, plan_of
from pipelines.planning.plan_files import PLANNED, planned_batches
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store

_FORMAT = 1
_RUN = pa.field("run", pa.int32(), nullable=False)  # its place among the runs
_SCHEMA = pa.schema([_RUN, *PLANNED])
_ROWS_PER_PART = 2**18
_ROWS_PER_GROUP = 2**13


class DamagedHistoryError(DamagedError):
    """A file of a history is damaged: what it gathered is to be read from the plans."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Finished runs of an output, the first of all that it has.

    Attributes:
        number: that of its object, from 1.
        documents: the parsed plan of each run by run id, in the order in which they were gathered.
        names_sha256: of each run but retries, what TableSize says of its files when it was verified as complete.
        parts: the files with what was planned for each image, sorted by image id over all of them.
        erasures: how many requests to forget images had come when it was gathered.
    """

    number: int
    documents: Mapping[str, dict[str, Any]]
    names_sha256: Mapping[str, str]
    parts: tuple[PlanPart, ...]
    erasures: int

    def __contains__(self, run_id: object) -> bool:
        """Return whether it holds a run."""
        return run_id in self.documents

    @property
    def sequence(self) -> int:
        """The sequence number of its last run."""
        return max(int(document.get("sequence", 0)) for document in self.documents.values())

    def batches(self, store: Store) -> Iterator[pa.RecordBatch]:
        """Read what was planned for each image, in image_id order, part by part: rows of PLANNED and ``run``.

        ``run`` is the place of the run that planned it in ``documents``.

        Raises:
            PlanError: images were forgotten meanwhile.
            DamagedHistoryError: a part does not match what was gathered.
        """
        for part in self.parts:
            name = f"{store.uri}/_runs/{part.name}"
            try:
                data = store.read(f"_runs/{part.name}")
            except FileNotFoundError as error:
                raise PlanError(f"{name}: gone while it was read; run the same command again") from error
            if hashlib.sha256(data).hexdigest() != part.sha256:
                raise DamagedHistoryError(f"{name}: damaged; remove it, it is made again from the plans")
            yield from pq.ParquetFile(io.BytesIO(data)).iter_batches(_ROWS_PER_GROUP, columns=_SCHEMA.names)


def newest_history(store: Store) -> History | None:
    """Return the newest usable history of an output, None if there is none.

    One that is damaged or incomplete, of another version, from before images were forgotten, or that holds a run which
    was removed since is passed over.

    Raises:
        StorageError: the store does not answer.
    """
    numbers = sorted(_numbered(store), reverse=True)
    folders = set(store.folders("_runs") if numbers else ())
    for number in numbers:
        with suppress(FileNotFoundError, DamagedError, KeyError, TypeError, ValueError):
            document = store.read_json(history_name(number))
            if document["format"] != _FORMAT:
                continue
            found = History(
                number=number,
                documents={str(one["run_id"]): one for one in document["runs"]},
                names_sha256=dict(document["names_sha256"]),
                parts=tuple(PlanPart(num_shards=0, **part) for part in document["parts"]),
                erasures=int(document["erasures"]),
            )
            is_whole = all(store.size(f"_runs/{part.name}") == part.num_bytes for part in found.parts)
            # A listing that lags does not show every run.
            is_whole = is_whole and all(store.exists(plan_name(run)) for run in found.documents.keys() - folders)
            if is_whole and not store.exists(erasure_name(found.erasures + 1)):
                return found
    return None


def gather(
    store: Store, held: History | None, documents: Sequence[Mapping[str, Any]], names_sha256: Mapping[str, str]
) -> bool:
    """Write a history of an output: what one holds, and further finished runs.

    Args:
        store: the output.
        held: the history to go on with.
        documents: the parsed plans of these runs.
        names_sha256: of these runs, see History.

    Returns:
        Whether it was written; not if images are being forgotten, or if another driver was first.

    Raises:
        StorageError: the output cannot be read or written.
        DamagedError: a plan is damaged; a DamagedHistoryError if it is the one to go on with.
    """
    erasures = read_forgotten(store).erasures
    if any(erasure.done is None for erasure in erasures) or (held is not None and held.erasures != len(erasures)):
        return False
    number = max(_numbered(store), default=0) + 1
    # Those before stay in their places: rows tell of a run by its place.
    documents = [*(held.documents.values() if held else ()), *documents]
    plans = [plan_of(store, document) for document in documents]
    parts = list[PlanPart]()
    try:
        with tempfile.TemporaryDirectory(prefix="xsam-history-", ignore_cleanup_errors=True) as temporary:
            rows = sort_batches(_rows(store, held, plans), "image_id", Path(temporary))
            for data in _files(rows):
                name = Path(history_name(number, f"{DRIVER_ID}-{secrets.token_hex(4)}-{len(parts):05d}")).name
                store.write(f"_runs/{name}", data)
                digest = hashlib.sha256(data).hexdigest()
                parts.append(PlanPart(name=name, num_shards=0, num_bytes=len(data), sha256=digest))
        document = {
            "format": _FORMAT,
            "runs": [{name: value for name, value in one.items() if name not in BLANK} for one in documents],
            "names_sha256": {**(held.names_sha256 if held else {}), **names_sha256},
            "parts": [{"name": part.name, "num_bytes": part.num_bytes, "sha256": part.sha256} for part in parts],
            "erasures": len(erasures),
            "by": secrets.token_hex(8),
            **BLANK,
        }
        is_ours = store.create(history_name(number), seal(document))
    except BaseException:
        _delete(store, [f"_runs/{part.name}" for part in parts])
        raise
    if not is_ours:
        _delete(store, [f"_runs/{part.name}" for part in parts])
        return False
    # A request to forget images that came meanwhile has not seen this one, which may name them.
    is_late = store.exists(erasure_name(len(erasures) + 1))
    # The one before stays for whoever has just begun to read it. None is left that cannot be used: it may be unusable
    # because it names images that were forgotten.
    kept = set[int]() if is_late else {number, held.number if held else number}
    _delete(store, [name for name in history_files(store) if history_number(name) not in kept])
    return not is_late


def history_files(store: Store) -> list[str]:
    """Return the names of all objects of histories, relative to the output: what names the others first."""
    names = [f"_runs/{name}" for name in store.files("_runs")]
    found = [name for name in names if history_number(name) is not None]
    return sorted(found, key=lambda name: (name.endswith(".parquet"), name))


def _numbered(store: Store) -> set[int]:
    """Return the numbers of the histories that a listing shows."""
    return {number for name in history_files(store) if (number := history_number(name)) and "parquet" not in name}


def _rows(store: Store, held: History | None, plans: Sequence[Plan]) -> Iterator[pa.RecordBatch]:
    yield pa.RecordBatch.from_pylist([], _SCHEMA)  # so that there is one
    if held is not None:
        yield from held.batches(store)
    for place, plan in enumerate(plans):
        # A retry asks what was asked before: it covers nothing that its run does not. An import asks nothing.
        if (held is not None and plan.run_id in held) or not plan.lists_source:
            continue
        for part in plan.parts:
            with plan.open_part(store, part) as data:
                for batch in planned_batches(data):
                    run = pa.array([place] * batch.num_rows, _RUN.type)
                    yield pa.RecordBatch.from_arrays([run, *batch.columns], schema=_SCHEMA)


def _files(rows: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    """Write sorted rows to files of a limited size."""
    chunks, count = list[pa.RecordBatch](), 0
    for batch in rows:
        chunks.append(batch)
        count += batch.num_rows
        if count >= _ROWS_PER_PART:
            yield _file(chunks)
            chunks, count = [], 0
    if count:
        yield _file(chunks)


def _file(chunks: Sequence[pa.RecordBatch]) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_batches(chunks, _SCHEMA)
    pq.write_table(table, buffer, compression="zstd", row_group_size=_ROWS_PER_GROUP, write_statistics=False)
    return buffer.getvalue()


def _delete(store: Store, names: Sequence[str]) -> None:
    """Remove files of a history; what cannot be removed does no harm, and is removed with a later one."""
    for name in names:
        with suppress(StorageError):
            store.delete(name)
