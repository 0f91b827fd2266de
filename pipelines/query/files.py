"""Which files hold an output's committed rows, and how DuckDB opens them: by name, never by a pattern or a listing."""

from __future__ import annotations

import contextlib
import io
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa
from fsspec import AbstractFileSystem

from pipelines.errors import StorageError
from pipelines.layout import KINDS, Kind
from pipelines.planning.plan import planned_runs
from pipelines.storage.store import Store
from pipelines.table.commits import read_commits
from pipelines.table.file_checks import check_sizes, content_problem
from pipelines.table.shard_commit import DataFile

_MAX_SEARCHED = 2**28  # bytes that are read to find which file DuckDB means
_WRITTEN_ONCE = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run has committed.

    Attributes:
        files: its data files of each table, by the version of their schema; those without rows left out.
        committed_shards: how many.
        status_counts: images by status.
        num_annotations: masks.
    """

    files: Mapping[Kind, Mapping[int, Sequence[DataFile]]]
    committed_shards: int
    status_counts: Mapping[str, int]
    num_annotations: int


def find_files(store: Store, run_id: str, schema_version: int) -> RunFiles:
    """Find the files of a run's committed shards.

    Args:
        store: the output.
        run_id: the run.
        schema_version: of the table when the run was planned; what a commit says of its own files comes first.

    Raises:
        DamagedError: a commit is none, or a file is missing or has another size than its commit says.
    """
    commits, counts = list(read_commits(store, run_id)), Counter[str]()
    check_sizes(store, run_id, commits)
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
    """Turn what DuckDB and pyarrow say against a file of an output into one message.

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
    """Tell an error of a user's query that a damaged file of the output has caused as that, and name the file.

    Raises:
        StorageError: a file cannot be read. Any other error is raised as it is.
    """
    try:
        yield
    except ValueError as error:
        cause = error.__cause__
        # What DuckDB says of bytes that make no sense is of no class of its own; mistakes in SQL are.
        if type(cause) is not duckdb.Error and not isinstance(cause, duckdb.IOException | duckdb.InternalException):
            raise
        if (problem := _first_problem(store)) is None:
            raise
        raise StorageError(_told(store, cause, problem)) from error


def _unreadable(store: Store, error: Exception) -> StorageError:
    is_named = f"{store.root}/" in str(error) or isinstance(error, duckdb.OutOfMemoryException)
    return StorageError(_told(store, error, None if is_named else _first_problem(store)))


def _told(store: Store, error: BaseException | None, problem: str | None) -> str:
    first = str(error).strip().partition("\n")[0]
    named = "verify names what is damaged" if problem is None else f"{problem}; verify names all that is damaged"
    return f"{store.uri}: its rows cannot be read ({first}); {named}"


def _first_problem(store: Store) -> str | None:
    """Say which file is not what its commit says, as far as some of them can be read for that; None if none is."""
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
    """Let a connection read files of an output.

    Returns:
        The paths by which DuckDB opens them, by name; and the folders or protocols in which all of them lie.
    """
    if store.is_local:
        # A path that names a file is no pattern to DuckDB, whatever stands in it.
        return {file.name: store.path(file.name) for file in files}, [store.path(kind) for kind in KINDS]
    objects = StoreFileSystem(store, {file.name: file.num_bytes for file in files})
    connection.register_filesystem(objects)
    return {name: f"{objects.protocol}://{name}" for name in objects.sizes}, [f"{objects.protocol}://"]


class StoreFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """An output's data files for DuckDB, under a protocol of their own.

    Opening one asks the store nothing, for its size is known; a read is one request for just its bytes. Names are
    never taken for patterns, whatever stands in them.
    """

    cachable = False

    def __init__(self, store: Store, sizes: Mapping[str, int]) -> None:
        """Serve the objects with these names and sizes."""
        super().__init__()
        self.protocol = f"xsam{secrets.token_hex(4)}"
        self.store, self.sizes = store, dict(sizes)

    def glob(self, path: str, **_: Any) -> list[str]:
        """Return the path: it is no pattern."""
        return [path]

    def exists(self, path: str, **_: Any) -> bool:
        """Say whether a file is one of the output's."""
        return self._name(path) in self.sizes

    def isdir(self, path: str) -> bool:  # noqa: ARG002
        """Say whether something is a folder: nothing is."""
        return False

    def size(self, path: str) -> int:
        """Return a file's bytes."""
        return self.sizes[self._name(path)]

    def modified(self, path: str) -> datetime:  # noqa: ARG002
        """Return when a file was written: all at once, for data files never change."""
        return _WRITTEN_ONCE

    def open(self, path: str, mode: str = "rb", **_: Any) -> io.RawIOBase:
        """Open a file for reading.

        Raises:
            PermissionError: for writing.
        """
        if mode != "rb":
            raise PermissionError(f"{path}: an output is read, never written")
        return _StoredFile(self.store, self._name(path), self.size(path))

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self.protocol}://")


class _StoredFile(io.RawIOBase):
    """An object of which every read is one request."""

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
