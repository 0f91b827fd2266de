"""Find committed shards that are broken: a file of theirs is missing or damaged, or the commit itself is.

A run labels them again and commits the result as a repair, which supersedes the earlier commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.errors import DamagedError
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store
from pipelines.table.commits import data_files, held_commits, last_repair, read_commit
from pipelines.table.file_checks import content_problem, size_problem
from pipelines.table.shard_commit import ShardCommit

# Fewer at once where whole data files are read: each may be close to 100 MiB.
_READERS, _READERS_OF_CONTENTS = 16, 4


@dataclass(frozen=True, slots=True)
class BrokenShard:
    """A committed shard that has to be labeled again.

    Attributes:
        shard_id: the shard.
        repair: number of the repair that is due.
        problem: a description of what is wrong.
    """

    shard_id: str
    repair: int
    problem: str


@dataclass(frozen=True, slots=True)
class Due:
    """The shards that a run has to label.

    Attributes:
        commits: for each shard id, in order, the commit that is due: 0 for the first, K for the K-th repair.
        broken: those of the shards that were committed before.
    """

    commits: Mapping[str, int]
    broken: tuple[BrokenShard, ...] = ()


def due_shards(store: Store, plan: Plan, *, hashes: bool = False) -> Due:
    """Return the shards that are not committed, and those that are committed but broken."""
    held = held_commits(store, plan.run_id)
    broken = tuple(find_broken(store, plan, hashes=hashes)) if held else ()
    repairs = {one.shard_id: one.repair for one in broken}
    commits = {s: repairs.get(s, 0) for s in plan.shard_ids() if s not in held or s in repairs}
    return Due(commits, broken)


def find_broken(store: Store, plan: Plan, *, hashes: bool = False) -> Iterator[BrokenShard]:
    """Find the broken shards of a run, in order.

    Sizes are compared: one listing of the data files tells which shards need a closer look, and files that it lacks are
    looked up by name. With ``hashes`` every file is read, too.
    """
    held, sizes = held_commits(store, plan.run_id), data_files(store, plan.run_id)
    planned = [shard_id for shard_id in plan.shard_ids() if shard_id in held]
    with ThreadPoolExecutor(_READERS_OF_CONTENTS if hashes else _READERS) as readers:
        found = readers.map(lambda s: _broken(store, plan.run_id, s, held[s], sizes, hashes=hashes), planned)
        yield from (broken for broken in found if broken is not None)


def _broken(
    store: Store, run_id: str, shard_id: str, repair: int, sizes: Mapping[str, int], *, hashes: bool
) -> BrokenShard | None:
    try:
        commit = read_commit(store, run_id, shard_id, repair)
        if not hashes and all(sizes.get(file.name) == file.num_bytes for file in commit.files()):
            return None
    except (DamagedError, FileNotFoundError):
        pass
    # The listings may lag: before the shard is called broken, look up its latest commit and that one's files by name.
    repair = last_repair(store, run_id, shard_id, repair) or 0
    try:
        problem = file_problem(store, read_commit(store, run_id, shard_id, repair), hashes=hashes)
    except DamagedError as error:
        problem = str(error)
    except FileNotFoundError as error:
        problem = f"{error} is gone"
    return BrokenShard(shard_id, repair + 1, problem) if problem else None


def file_problem(store: Store, commit: ShardCommit, *, hashes: bool = False) -> str | None:
    """Describe what is wrong with a commit's files, each looked up by name; None if nothing is."""
    find = content_problem if hashes else size_problem
    return next((problem for file in commit.files() if (problem := find(store, file))), None)
