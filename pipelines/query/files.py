"""Find the files with an output's committed rows, and let DuckDB open them by name, never by pattern or listing."""

from __future__ import annotations

import contextlib
import io
import re
import secrets
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipelines.errors import StorageError
from pipelines.layout import KINDS, Kind, split_data_name
from pipelines.planning.plan import plan_of, planned_runs
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit, read_commits
from pipelines.table.file_checks import check_sizes, content_problem
from pipelines.table.image_lookup import commits_of_images
from pipelines.table.shard_commit import DataFile

_DATA_FILE = re.compile(r"(annotations|images)/(?P<run_id>[^/]+)/shard-\d+-[^/]+?\.parquet")
_MAX_SEARCHED = 2**28  # bytes read at most to find the damaged file when DuckDB does not name it
_WRITTEN_ONCE = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """The committed files and counts of a run.

    Attributes:
        files: data files of each table by schema version, without files that have no rows.
        committed_shards: number of committed shards.
        status_counts: images by status.
        num_annotations: number of masks.
    """

    files: Mapping[Kind, Mapping[int, Sequence[DataFile]]]
    committed_shards: int
    status_counts: Mapping[str, int]
    num_annotations: int


def find_files(store: Store, plan: Mapping[str, Any], image_ids: Collection[str] | None = None) -> RunFiles:
    """Find the files of a run's committed shards.

    Args:
        store: the output.
        plan: the run's, as plan_documents returns it. Its schema version is used where a commit does not state its own.
        image_ids: only the shards that hold these images; by default all.

    Raises:
        DamagedError: a commit is damaged, or a file is missing or differs in size from its commit; with ``image_ids``,
            a file of the plan is damaged.
    """
    run_id, schema_version, counts = plan["run_id"], plan.get("schema_version", 0), Counter[str]()
    if image_ids is None:
        commits = list(read_commits(store, run_id))
        check_sizes(store, run_id, commits)
    else:
        commits = commits_of_images(store, plan_of(store, plan, oldest=1), image_ids)
        check_sizes(store, run_id, commits, by_name=True)
    files: dict[Kind, dict[int, list[DataFile]]] = {kind: {} for kind in KINDS}
    for commit in commits:
        counts.update(commit.status_counts)
        for kind, file in zip(KINDS, commit.files(), strict=True):
            if file.rows:
                files[kind].setdefault(commit.schema_version or schema_version, []).append(file)
    return RunFiles(
        files=files,
        committed_shards=len(commits),
        status_counts=counts,
        num_annotations=sum(commit.annotations.rows for commit in commits),
    )


@contextlib.contextmanager
def query_errors(store: Store) -> Iterator[None]:
    """Raise one StorageError in place of the exceptions of DuckDB and pyarrow about a file of the output.

    Raises:
        StorageError: a file cannot be read.
    """
    try:
        yield
    except (duckdb.Error, pa.ArrowException, UnicodeDecodeError) as error:
        if isinstance(error.__cause__, StorageError):
            raise error.__cause__ from error
        raise _unreadable(store, error) from error


@contextlib.contextmanager
def damage_named(store: Store) -> Iterator[None]:
    """If an error of a user's query is caused by a damaged file of the output, say so and name the file.

    Raises:
        StorageError: a file is damaged. Any other error is raised unchanged.
    """
    try:
        yield
    except ValueError as error:
        cause = error.__cause__
        # DuckDB reports invalid bytes in a file as its base class; mistakes in SQL have classes of their own.
        if type(cause) is not duckdb.Error and not isinstance(cause, duckdb.IOException | duckdb.InternalException):
            raise
        if (problem := _first_problem(store)) is None and not _is_replaced(store, str(cause)):
            raise
        raise StorageError(_told(store, cause, problem)) from error


def _unreadable(store: Store, error: Exception) -> StorageError:
    is_named = f"{store.root}/" in str(error) or isinstance(error, duckdb.OutOfMemoryException)
    return StorageError(_told(store, error, None if is_named else _first_problem(store)))


def _told(store: Store, error: BaseException | None, problem: str | None) -> str:
    first = str(error).strip().partition("\n")[0]
    if problem is None and _is_replaced(store, str(error)):
        return f"{store.uri}: files were replaced while they were read ({first}); run the same command again"
    named = "verify names what is damaged" if problem is None else f"{problem}; verify names all that is damaged"
    return f"{store.uri}: its rows cannot be read ({first}); {named}"


def _is_replaced(store: Store, message: str) -> bool:
    """Return whether a message names a data file that is gone since its shard was committed again without it."""
    found = _DATA_FILE.search(message)
    if found is None or (shard := split_data_name(found[0])) is None or store.size(found[0]) is not None:
        return False
    with contextlib.suppress(StorageError):
        commit = find_commit(store, found["run_id"], shard[0])
        return commit is not None and found[0] not in {file.name for file in commit.files()}
    return False


def _first_problem(store: Store) -> str | None:
    """Return a description of the first file that does not match its commit; None if none is found within the limit."""
    left = _MAX_SEARCHED
    try:
        files = (file for run in planned_runs(store) for commit in read_commits(store, run) for file in commit.files())
        for file in files:
            left -= file.num_bytes
            if left < 0:
                return None
            if problem := content_problem(store, file):
                return problem
    except StorageError as error:
        return str(error)
    return None


def make_readable(
    connection: duckdb.DuckDBPyConnection, store: Store, files: Iterable[DataFile]
) -> tuple[dict[str, str], list[str]]:
    """Give a connection access to files of an output.

    Returns:
        The path under which DuckDB opens each file, by name; and the folders or protocols that contain them all.
    """
    if store.is_local:
        # DuckDB tries a path as a file first, so wildcards in a name do no harm.
        return {file.name: store.path(file.name) for file in files}, [store.path(kind) for kind in KINDS]
    objects = StoreFileSystem(store, {file.name: file.num_bytes for file in files})
    connection.register_filesystem(objects)
    return {name: f"{objects.protocol}://{name}" for name in objects.sizes}, [f"{objects.protocol}://"]


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An output's data files for DuckDB, under a protocol of their own.

    Opening a file takes no request, since its size is known from the commit; a read is one request for exactly its
    bytes. Names are never interpreted as patterns.
    """

    cachable = False

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        """Serve the objects with these names and sizes."""
        super().__init__()
        self.protocol = f"xsam{secrets.token_hex(4)}"
        self.store, self.sizes = store, dict(sizes)

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path itself, since no path is a pattern."""
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether a file is one of the output's."""
        return self._name(path) in self.sizes

    def isdir(self, path: str) -> bool:  # noqa: ARG002
        """Return False: there are no folders."""
        return False

    def size(self, path: str) -> int:
        """Return a file's size in bytes."""
        return self.sizes[self._name(path)]

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        """Return the same time for all files: data files never change, and DuckDB only asks to notice changes."""
        return _WRITTEN_ONCE

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """Open a file for reading.

        Raises:
            PermissionError: the mode is not "rb".
        """
        if mode != "rb":
            raise PermissionError(f"{path}: an output is read, never written")
        return _StoredFile(self.store, self._name(path), self.size(path))

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.protocol}://")


class _StoredFile(io.RawIOBase):
    """A file object over a stored object; every read is one request."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        super().__init__()
        self._store, self._name, self._size, self._place = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = max(0, start + offset)
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._place + size)
        if end <= self._place:
            return b""
        data = self._store.read_range(self._name, self._place, end)
        self._place += len(data)
        return data
