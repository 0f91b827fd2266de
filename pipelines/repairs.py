"""Committed shards that are not whole: a file that their commit names is gone or cut short, or the commit is damaged.

A run labels them again, and commits that as a repair, which takes the place of the commit before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipelines.manifest import Plan
from pipelines.storage import DamagedError, Store
from pipelines.table import ShardCommit, data_files, held_commits, last_repair, read_commit

_READERS = 16


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


def due_shards(store: Store, plan: Plan) -> Due:
    """Return the shards that are not committed, and those that are and are not whole."""
    held = held_commits(store, plan.run_id)
    broken = tuple(find_broken(store, plan)) if held else ()
    repairs = {one.shard_id: one.repair for one in broken}
    commits = {s: repairs.get(s, 0) for s in plan.shard_ids() if s not in held or s in repairs}
    return Due(commits, broken)


def find_broken(store: Store, plan: Plan) -> Iterator[BrokenShard]:
    """Find the committed shards of a run that are not whole, in their order. Sizes are compared, contents not read.

    One listing of the data files says which shards to look at; what it does not show is asked for by name.
    """
    held, sizes = held_commits(store, plan.run_id), data_files(store, plan.run_id)
    planned = [shard_id for shard_id in plan.shard_ids() if shard_id in held]
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda shard_id: _broken(store, plan.run_id, shard_id, held[shard_id], sizes), planned)
        yield from (broken for broken in found if broken is not None)


def _broken(store: Store, run_id: str, shard_id: str, repair: int, sizes: Mapping[str, int]) -> BrokenShard | None:
    try:
        commit = read_commit(store, run_id, shard_id, repair)
        if all(sizes.get(file.name) == file.num_bytes for file in commit.files()):
            return None
    except DamagedError:
        pass
    # The listings may be late: the commit that holds, and what it names, by name.
    repair = last_repair(store, run_id, shard_id) or 0
    try:
        problem = file_problem(store, read_commit(store, run_id, shard_id, repair))
    except DamagedError as error:
        problem = str(error)
    return BrokenShard(shard_id, repair + 1, problem) if problem else None


def file_problem(store: Store, commit: ShardCommit) -> str | None:
    """Say what is wrong with the sizes of a commit's files, each asked for by name; None if nothing is."""
    for file in commit.files():
        size = store.size(file.name)
        if size is None:
            return f"{file.name} is missing"
        if size != file.num_bytes:
            return f"{file.name} has {size} bytes, committed {file.num_bytes}"
    return None
