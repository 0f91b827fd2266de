"""What no commit names: losers, which a run removes at its end, and what writers that died left, which vacuum removes.

A file of an attempt that has not committed may be named by a commit that is on its way: in a thread that nobody waits
for any more, on a machine that is cut off, in a request that is late. Only a commit that was read says that it is not.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.errors import DamagedError, StorageError
from pipelines.layout import KINDS, PROBE_PREFIX, due_commit_of, run_folder, split_data_name
from pipelines.planning.plan import require_plan
from pipelines.storage.store import Store
from pipelines.table.commits import commit_files, data_files, find_commit, held_commits, inspect_commits
from pipelines.table.shard_commit import ShardCommit

VACUUM_GRACE_S = 24 * 3600.0
"""How old what nobody has committed must be for vacuum: longer than any attempt takes, or any request is late."""

_READERS = 8


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Data files of a run that no commit names.

    Attributes:
        losers: those of shards that another attempt has committed, whole: their own commits are refused for good.
        uncommitted: all others. Their attempts may have died, or be about to commit them.
    """

    losers: tuple[str, ...]
    uncommitted: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted((*self.losers, *self.uncommitted))


@dataclass(slots=True)
class Removal:
    """What became of leftovers.

    Attributes:
        removed: names of those that are gone, or with a dry run would be.
        kept: names of what is too young to be taken for abandoned.
        failed: what could not be removed, in words.
        broken: shards whose commit has appeared meanwhile and names a removed file; the next run labels them again.
        damaged: commits that cannot be read as one, in words; the files of their shards are left alone.
    """

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def find_leftovers(store: Store, run_id: str) -> Leftovers:
    """Find the data files of a run that no commit names.

    What a listing does not show may still be there: only a commit that was read by its name, or looked for in vain,
    says what a file is. Of a shard whose commit could not be read as one, nothing is known to be a leftover.
    """
    sizes = data_files(store, run_id)
    by_shard: dict[str, list[str]] = {}
    for name in sizes:
        if (found := split_data_name(name)) is not None:
            by_shard.setdefault(found[0], []).append(name)
    if not by_shard:
        return Leftovers((), ())
    committed = held_commits(store, run_id)
    # A shard that was committed once, with just its two files, has no leftovers: only the others' commits need reading.
    doubtful = [shard for shard, names in by_shard.items() if committed.get(shard) != 0 or len(names) > len(KINDS)]
    losers, uncommitted = list[str](), list[str]()
    with ThreadPoolExecutor(_READERS) as readers:
        commits = readers.map(lambda one: _whole_commit(store, run_id, one, committed.get(one), sizes), doubtful)
        for shard, (commit, is_whole) in zip(doubtful, commits, strict=True):
            if is_whole is None:
                continue
            named = {file.name for file in commit.files()} if commit else set()
            for name in by_shard[shard]:
                if name not in named:
                    # Written for the commit that holds, or one before it: refused for good. Else for a repair to come.
                    has_lost = is_whole and commit is not None and due_commit_of(name) <= commit.repair
                    (losers if has_lost else uncommitted).append(name)
    return Leftovers(tuple(sorted(losers)), tuple(sorted(uncommitted)))


def _whole_commit(
    store: Store, run_id: str, shard_id: str, listed: int | None, sizes: Mapping[str, int]
) -> tuple[ShardCommit | None, bool | None]:
    """Return the commit that holds for a shard, and whether all that it names is there: else its repair is due.

    None for whether: what was read is no commit, because it is damaged or the answer was cut short.
    """
    try:
        commit = find_commit(store, run_id, shard_id, listed)
    except (DamagedError, FileNotFoundError):
        return None, None
    if commit is None:
        return None, False
    found = (sizes.get(file.name) or store.size(file.name) for file in commit.files())
    return commit, all(size == file.num_bytes for size, file in zip(found, commit.files(), strict=True))


def remove_losers(store: Store, run_id: str) -> Removal:
    """Remove what other attempts at committed shards have left. What an uncommitted attempt wrote stays: see above."""
    removal = Removal()
    _remove(store, find_leftovers(store, run_id).losers, removal)
    return removal


def vacuum(store: Store, run_id: str, *, older_than_s: float = VACUUM_GRACE_S, dry_run: bool = False) -> Removal:
    """Remove all that nothing names: data files and plan parts of a run, and what writers that died left in the output.

    Losers go at once, everything else once it is old enough. Drivers may be at work: a commit that was on its way all
    that time and names what is removed here is superseded by the next run.

    Args:
        store: the output.
        run_id: the run.
        older_than_s: seconds, by the store's own clock (of a dry run by this machine's), since it was written; 0 only
            while no driver works on the output.
        dry_run: whether only to find.

    Raises:
        PlanError: there is no such run.
        StorageError: the output cannot be read, or the store does not say when an object was written.
    """
    plan = require_plan(store, run_id)
    found = find_leftovers(store, run_id)
    parts = {f"{run_folder(run_id)}/{part.name}" for part in plan.parts}
    abandoned = [*found.uncommitted, *store.unfinished("")]
    for name in store.find("_runs"):
        is_part = name.startswith(f"{run_folder(run_id)}/plan-") and name.endswith(".parquet")
        if name.startswith(PROBE_PREFIX) or (is_part and name not in parts):
            abandoned.append(name)
    removal = Removal()
    commits = inspect_commits(store, run_id, commit_files(store, run_id))
    removal.damaged += [str(commit) for _, commit in commits if isinstance(commit, DamagedError)]
    now = _now(store, dry_run=dry_run) if abandoned and older_than_s > 0 else 0.0
    old = list(_old_enough(store, abandoned, now - older_than_s, removal)) if older_than_s > 0 else abandoned
    if dry_run:
        removal.removed += [*found.losers, *old]
        return removal
    _remove(store, [*found.losers, *old], removal)
    shards = {split[0] for name in old if name in found.uncommitted and (split := split_data_name(name))}
    for shard_id in sorted(shards):
        with contextlib.suppress(DamagedError):  # what a damaged commit names, nobody knows; its repair is due anyway
            commit = find_commit(store, run_id, shard_id)
            if commit is not None and any(file.name in removal.removed for file in commit.files()):
                removal.broken.append(shard_id)
    return removal


def _old_enough(store: Store, names: Iterable[str], newest: float, removal: Removal) -> Iterator[str]:
    """Yield those that were written by then, and note the others."""
    for name in names:
        written = store.modified_at(name)
        if written is not None and written <= newest:
            yield name
        elif written is not None:
            removal.kept.append(name)


def _now(store: Store, *, dry_run: bool) -> float:
    """Return the time by the store's clock: when it says that an object was written which is written now.

    A dry run writes nothing, and goes by this machine's clock.
    """
    if dry_run:
        return time.time()
    name = f"{PROBE_PREFIX}{secrets.token_hex(8)}"
    store.write(name, b"")
    try:
        written = store.modified_at(name)
    finally:
        with contextlib.suppress(StorageError):  # with no right to delete it is a leftover like any other
            store.delete(name)
    if written is None:
        raise StorageError(f"{store.uri}/{name}: written, and not there")
    return written


def _remove(store: Store, names: Iterable[str], removal: Removal) -> None:
    for name in names:
        try:
            store.delete(name)
            removal.removed.append(name)
        except StorageError as error:
            removal.failed.append(str(error))
