"""Committed shards that are not whole: a file that their commit names is gone or cut short, or the commit is damaged.

A run labels them again, and commits that as a repair, which takes the place of the commit before.
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

_READERS, _READERS_OF_CONTENTS = 16, 4


@dataclass(frozen=True, slots=True)
class BrokenShard:
    """A committed shard that is to be labelled again.

    Attributes:
        shard_id: the shard.
        repair: the number of the commit that is due.
        problem: what is wrong, in words.
    """

    shard_id: str
    repair: int
    problem: str


@dataclass(frozen=True, slots=True)
class Due:
    """What a run has to label.

    Attributes:
        commits: by shard id, in order, the number of the commit that is due: 0 for the first, K for the K-th repair.
        broken: those of them that were committed before.
    """

    commits: Mapping[str, int]
    broken: tuple[BrokenShard, ...] = ()


def due_shards(store: Store, plan: Plan, *, hashes: bool = False) -> Due:
    """Return the shards that are not committed, and those that are and are not whole."""
    held = held_commits(store, plan.run_id)
    broken = tuple(find_broken(store, plan, hashes=hashes)) if held else ()
    repairs = {one.shard_id: one.repair for one in broken}
    commits = {s: repairs.get(s, 0) for s in plan.shard_ids() if s not in held or s in repairs}
    return Due(commits, broken)


def find_broken(store: Store, plan: Plan, *, hashes: bool = False) -> Iterator[BrokenShard]:
    """Find the committed shards of a run that are not whole, in their order.

    Sizes are compared: one listing of the data files says which shards to look at, and what it does not show is asked
    for by name. With ``hashes`` every file is read, too.
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
    # The listings may be late: the commit that holds, and what it names, by name.
    repair = last_repair(store, run_id, shard_id, repair) or 0
    try:
        problem = file_problem(store, read_commit(store, run_id, shard_id, repair), hashes=hashes)
    except DamagedError as error:
        problem = str(error)
    except FileNotFoundError as error:
        problem = f"{error} is gone"
    return BrokenShard(shard_id, repair + 1, problem) if problem else None


def file_problem(store: Store, commit: ShardCommit, *, hashes: bool = False) -> str | None:
    """Say what is wrong with a commit's files, each asked for by name; None if nothing is."""
    find = content_problem if hashes else size_problem
    return next((problem for file in commit.files() if (problem := find(store, file))), None)
