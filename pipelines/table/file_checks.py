"""Check data files against their commits: by size, which costs a listing, or by SHA-256, which reads every file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from pipelines.errors import DamagedError
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import data_files, read_commits
from pipelines.table.shard_commit import DataFile, ShardCommit

_READERS = 8
# How many files a message names: an output may be missing thousands.
_MAX_TOLD = 5


def size_problem(store: Store, file: DataFile, listed: Mapping[str, int] | None = None) -> str | None:
    """Describe how a file's size differs from its commit; None if it does not.

    Args:
        store: the output.
        file: the file as its commit describes it.
        listed: sizes by name from a listing. A listing may lag: a file that it lacks is looked up by name.
    """
    if listed is not None and listed.get(file.name) == file.num_bytes:
        return None
    size = store.size(file.name)
    if size is None:
        return f"{file.name} is missing"
    return None if size == file.num_bytes else f"{file.name} has {size} bytes, committed {file.num_bytes}"


def hash_problem(data: bytes, file: DataFile) -> str | None:
    """Describe that the bytes read do not have the committed SHA-256; None if they do."""
    if hashlib.sha256(data).hexdigest() == file.sha256:
        return None
    return f"{file.name} does not have the committed SHA-256"


def check_sizes(store: Store, run_id: str, commits: Iterable[ShardCommit], *, by_name: bool = False) -> None:
    """Check that the files of a run's commits exist with the committed sizes.

    The commits have to be read before this call: then the listing made here shows all files that they name.

    Args:
        store: the output.
        run_id: the run.
        commits: those of the run, or some of them.
        by_name: whether to look each file up, which for few of many is faster than a listing.

    Raises:
        DamagedError: files are missing or have another size; the message names them.
    """
    listed = {} if by_name else data_files(store, run_id)
    files = [file for commit in commits for file in commit.files() if listed.get(file.name) != file.num_bytes]
    with ThreadPoolExecutor(_READERS) as readers:
        _refuse(store, readers.map(lambda file: size_problem(store, file), files))


def check_runs(store: Store, run_ids: Iterable[str]) -> None:
    """Check that all committed files of some runs exist with the committed sizes.

    Raises:
        DamagedError: files are missing or have another size, or a commit is damaged; the message names them.
    """
    for run_id in run_ids:
        # A list: all commits are read before the files are listed, see check_sizes.
        check_sizes(store, run_id, list(read_commits(store, run_id)))


def check_hashes(store: Store, run_id: str) -> Iterator[str]:
    """Read every committed file of a run, and yield the name of each that matches its commit.

    Raises:
        DamagedError: at the end, if files do not match; the message names them.
    """
    problems: list[str] = []
    with ThreadPoolExecutor(_READERS) as readers:
        for commit in read_commits(store, run_id):
            files = commit.files()
            for file, problem in zip(files, readers.map(lambda one: content_problem(store, one), files), strict=True):
                if problem is None:
                    yield file.name
                else:
                    problems.append(problem)
    _refuse(store, problems)


def content_problem(store: Store, file: DataFile) -> str | None:
    """Read a file and describe how it differs from its commit; None if it does not."""
    try:
        # Size first: a file of the wrong size need not be read.
        return size_problem(store, file) or hash_problem(store.read(file.name), file)
    except FileNotFoundError:
        return f"{file.name} is missing"


def _refuse(store: Store, found: Iterable[str | None]) -> None:
    problems = [problem for problem in found if problem is not None]
    if problems:
        more = f"; and {counted(len(problems) - _MAX_TOLD, 'more file')}" if len(problems) > _MAX_TOLD else ""
        raise DamagedError(f"{store.uri}: {'; '.join(problems[:_MAX_TOLD])}{more}")
