"""Find the shards that hold some images without reading the whole plan, whose ids are sorted; read their rows alone."""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import DamagedError
from pipelines.layout import KINDS, Kind
from pipelines.planning.plan import Plan, planned_runs, require_plan
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit
from pipelines.table.file_checks import hash_problem
from pipelines.table.schema import SCHEMAS
from pipelines.table.shard_commit import DataFile, ShardCommit

# Greater than every id.
_AFTER_ALL = "\U0010ffff"
# A file up to this size is read as a whole: one request, where its footer and its columns would take several.
_READ_WHOLE_BYTES = 8 << 20


class ImageIndex:
    """Reads the rows of single images, again and again, with few requests for each.

    It remembers which image ids the shards of the plans begin with, some 50 bytes a shard, and reads a file of a plan
    (256 shards or more) the first time that it is needed. Then an image takes three requests for each run: is the
    shard's commit superseded, the commit, and the file; shards of more than 8 MiB take some more. Commits are looked
    up every time, so rows are as current as those of ``open_table``; only runs planned later are not seen.

    Not to be shared by threads.
    """

    def __init__(self, store: Store, run_id: str | None = None) -> None:
        """Open an output.

        Args:
            store: the output.
            run_id: one run; by default every run that is planned now.

        Raises:
            PlanError: there is no such run.
            DamagedError: a plan is damaged.
        """
        self._store = store
        runs = planned_runs(store) if run_id is None else [run_id]
        self._shards = [_Shards(store, require_plan(store, run, oldest=1)) for run in runs]

    def read(self, kind: Kind, image_ids: Collection[str]) -> pa.Table:
        """Return the committed rows of some images: those of ``open_table(store, kind, image_ids=image_ids)``.

        Args:
            kind: "annotations" or "images".
            image_ids: of the images; of one that no run has there are no rows.

        Returns:
            A table with the schema SCHEMAS[kind], run by run in the order of their names.

        Raises:
            DamagedError: a file of a plan, a commit or a file that it names is damaged or missing.
        """
        chosen = pc.field("image_id").isin(pa.array(list(image_ids), pa.string()))
        tables = [SCHEMAS[kind].empty_table()]
        for shards in self._shards:
            for shard_id in shards.of(image_ids):
                tables += self._rows(shards.run_id, shard_id, kind, chosen)
        return pa.concat_tables(tables)

    def _rows(self, run_id: str, shard_id: str, kind: Kind, chosen: pc.Expression) -> Iterator[pa.Table]:
        missing: DataFile | None = None
        while (commit := find_commit(self._store, run_id, shard_id)) is not None:
            file = commit.files()[KINDS.index(kind)]
            # A file that is gone has just been superseded, or is lost.
            if file == missing:
                raise DamagedError(f"{self._store.uri}/{file.name} is missing; verify names all that is damaged")
            try:
                if file.rows:
                    yield _filtered(self._store, kind, file, chosen)
                return
            except FileNotFoundError:
                missing = file


def _filtered(store: Store, kind: Kind, file: DataFile, chosen: pc.Expression) -> pa.Table:
    """Read those rows of a committed file that fit a condition, with null in columns that its version did not have."""
    if file.num_bytes > _READ_WHOLE_BYTES:
        import pyarrow.dataset as ds  # imports pandas wherever that is installed

        rows = ds.dataset([store.path(file.name)], schema=SCHEMAS[kind], filesystem=store.fs, format="parquet")
        return rows.to_table(filter=chosen)
    data = store.read(file.name)
    if problem := hash_problem(data, file):
        raise DamagedError(f"{store.uri}/{problem}; verify names all that is damaged")
    found = pq.read_table(io.BytesIO(data), filters=chosen)
    columns = [
        found[field.name] if field.name in found.column_names else pa.nulls(len(found), field.type)
        for field in SCHEMAS[kind]
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS[kind])


def commits_of_images(store: Store, plan: Plan, image_ids: Iterable[str]) -> list[ShardCommit]:
    """Return the commits of the shards in which images would be, in order; errors as for ``shards_of_images``.

    Raises:
        DamagedError: a commit is damaged.
    """
    found = (find_commit(store, plan.run_id, shard_id) for shard_id in shards_of_images(store, plan, image_ids))
    return [commit for commit in found if commit is not None]


def shards_of_images(store: Store, plan: Plan, image_ids: Iterable[str]) -> list[str]:
    """Return the ids of the shards in which images would be, in order; whether they are there their rows tell.

    Of the plan's files, each with some 256 shards, as many are read as a binary search asks for.

    Raises:
        DamagedError: a file of the plan does not match it.
    """
    return _Shards(store, plan).of(image_ids)


class _Shards:
    """Knows with which image ids the shards of a plan begin, as far as it was asked."""

    def __init__(self, store: Store, plan: Plan) -> None:
        self.run_id = plan.run_id
        self._store, self._plan, self._parts = store, plan, list(plan.shards_by_part())
        # Of each file of the plan: what its first shard begins with, and what all do, None where a shard is forgotten.
        self._heads, self._held = dict[int, str | None](), dict[int, list[str | None]]()
        self._opened = dict[int, pq.ParquetFile]()

    def of(self, image_ids: Iterable[str]) -> list[str]:
        """Return the ids of the shards in which images would be, in order; errors as for ``shards_of_images``."""
        parts, found = self._parts, set[tuple[int, int]]()
        for image_id in set(image_ids):
            part = bisect_right(range(len(parts)), image_id, key=lambda part: self._first_id(part, 0)) - 1
            if part < 0:
                continue
            self._first_ids(part)
            shards = range(len(parts[part][1]))
            shard = bisect_right(shards, image_id, key=functools.partial(self._first_id, part)) - 1
            found.add((part, shard))
        self._opened.clear()
        return [parts[part][1][shard] for part, shard in sorted(found)]

    def _first_id(self, part: int, shard: int) -> str:
        if part not in self._held and not shard and (head := self._head(part)) is not None:
            return head
        for place in range(part, len(self._parts)):
            for first in self._first_ids(place)[shard if place == part else 0 :]:
                if first is not None:
                    return first
        return _AFTER_ALL

    def _head(self, part: int) -> str | None:
        """Return the first id of a plan's file, whose other shards are not read for that."""
        if part not in self._heads:
            with self._open(part) as file:
                (self._heads[part],) = _first_ids(file, [0])
        return self._heads[part]

    def _first_ids(self, part: int) -> list[str | None]:
        if part not in self._held:
            with self._open(part) as file:
                self._held[part] = _first_ids(file, range(file.num_row_groups))
        return self._held[part]

    @contextmanager
    def _open(self, part: int) -> Iterator[pq.ParquetFile]:
        held = self._parts[part][0]
        if part in self._opened:
            yield self._opened[part]
            return
        with self._plan.open_part(self._store, held) as data:
            file = pq.ParquetFile(io.BytesIO(data))
            # Without a checksum, as of earlier versions, only reading shows damage: open_part tells of it.
            if held.sha256 is not None:
                self._opened[part] = file
            yield file


def _first_ids(file: pq.ParquetFile, shards: Sequence[int]) -> list[str | None]:
    """Return the first id of some consecutive shards of a plan's file; None for one that is forgotten as a whole."""
    columns = [name for name in ("image_id", "is_forgotten") if name in file.schema_arrow.names]
    table, place, found = file.read_row_groups(list(shards), columns=columns), 0, list[str | None]()
    for number in shards:
        # Of a shard that is forgotten as a whole only the hashes of its ids are left, in no order. They come last.
        is_gone = "is_forgotten" in columns and table["is_forgotten"][place].as_py()
        found.append(None if is_gone else str(table["image_id"][place]))
        place += file.metadata.row_group(number).num_rows
    return found
