"""Find and remove leftovers: data files that no commit names.

Losers, whose shard another attempt has committed, are removed at the end of a run. Everything else may yet be named by
a commit on its way: from an abandoned thread, from a machine that is cut off, in a delayed request. No process is
trusted to be dead, so only `vacuum` removes such files, and only once they are old.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.errors import DamagedError, StorageError
from pipelines.layout import KINDS, PROBE_PREFIX, due_commit_of, run_folder, split_data_name
from pipelines.planning.plan import require_plan
from pipelines.planning.plan_versions import part_names
from pipelines.storage.store import Store
from pipelines.table.commits import commit_files, data_files, find_commit, held_commits, inspect_commits
from pipelines.table.shard_commit import ShardCommit

VACUUM_GRACE_S = 24 * 3600.0
"""Minimum age, seconds, for vacuum to remove uncommitted files: longer than any attempt takes or request is delayed."""

_READERS = 8


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Data files of a run that no commit names.

    Attributes:
        losers: files of shards that another attempt has committed, with all its files there: their own commits will
            always be refused.
        uncommitted: all others; their attempts may have died, or be about to commit.
    """

    losers: tuple[str, ...]
    uncommitted: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """All of them, sorted."""
        return sorted((*self.losers, *self.uncommitted))


@dataclass(slots=True)
class Removal:
    """The result of removing leftovers.

    Attributes:
        removed: names of the files removed, or in a dry run to be removed.
        kept: names of files that are too young to count as abandoned.
        failed: error messages for files that could not be removed.
        broken: shards whose commit appeared meanwhile and names a removed file; the next run labels them again.
        damaged: error messages for damaged commits; the files of their shards are left alone.
    """

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def remove(self, store: Store, names: Iterable[str], *, dry_run: bool = False) -> None:
        """Remove files, or only note them in a dry run; one that cannot be removed keeps no other from being so."""
        for name in names:
            try:
                if not dry_run:
                    store.delete(name)
                self.removed.append(name)
            except StorageError as error:
                self.failed.append(str(error))


def find_leftovers(store: Store, run_id: str) -> Leftovers:
    """Find the data files of a run that no commit names.

    A listing of commits may lag, so a file counts as a leftover only after its shard's commit was looked up by name.
    If that commit is damaged, no file of the shard counts as one.
    """
    sizes = data_files(store, run_id)
    by_shard: dict[str, list[str]] = {}
    for name in sizes:
        if (found := split_data_name(name)) is not None:
            by_shard.setdefault(found[0], []).append(name)
    if not by_shard:
        return Leftovers((), ())
    committed = held_commits(store, run_id)
    # A shard with one commit and just two files has no leftovers; only the commits of other shards need reading.
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
                    # Written for the commit that holds or an earlier one: its own commit will always be refused.
                    # Written for a later repair: its commit may be on its way.
                    has_lost = is_whole and commit is not None and due_commit_of(name) <= commit.repair
                    (losers if has_lost else uncommitted).append(name)
    return Leftovers(tuple(sorted(losers)), tuple(sorted(uncommitted)))


def _whole_commit(
    store: Store, run_id: str, shard_id: str, listed: int | None, sizes: Mapping[str, int]
) -> tuple[ShardCommit | None, bool | None]:
    """Return the commit that holds for a shard, and whether all its files exist (otherwise a repair is due).

    The second value is None if the commit could not be read as one: it is damaged, or the answer was cut short.
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
    """Remove the losers of a run, and nothing of attempts that have not committed; see the module's docstring."""
    removal = Removal()
    removal.remove(store, find_leftovers(store, run_id).losers)
    return removal


def vacuum(store: Store, run_id: str, *, older_than_s: float = VACUUM_GRACE_S, dry_run: bool = False) -> Removal:
    """Remove what nothing refers to: a run's leftovers and unused plan parts, the output's temporary files and probes.

    Losers go at once, everything else once it is old enough. Drivers may be at work meanwhile: if a commit lands that
    names a file removed here, the next run labels its shard again.

    Args:
        store: the output.
        run_id: the run.
        older_than_s: minimum age in seconds by the store's own clock (in a dry run by this machine's); 0 only while no
            driver works on the output.
        dry_run: whether to find files without removing them.

    Raises:
        PlanError: there is no such run.
        StorageError: the output cannot be read, or the store does not report when an object was written.
    """
    plan = require_plan(store, run_id)
    found = find_leftovers(store, run_id)
    parts = part_names(store, plan.run_id)
    abandoned = [*found.uncommitted, *store.unfinished("")]
    for name in store.find("_runs"):
        is_part = name.startswith(f"{run_folder(run_id)}/plan-") and name.endswith(".parquet")
        if name.startswith(PROBE_PREFIX) or (is_part and name not in parts):
            abandoned.append(name)
    removal = Removal()
    commits = inspect_commits(store, run_id, commit_files(store, run_id))
    removal.damaged += [str(commit) for _, commit in commits if isinstance(commit, DamagedError)]
    old, removal.kept = old_enough(store, abandoned, older_than_s, dry_run=dry_run)
    removal.remove(store, [*found.losers, *old], dry_run=dry_run)
    if dry_run:
        return removal
    # A commit may have landed between the look-up and the removal: name its shard, so that someone runs it again.
    shards = {split[0] for name in old if name in found.uncommitted and (split := split_data_name(name))}
    for shard_id in sorted(shards):
        with contextlib.suppress(DamagedError):  # it does not say which files it names, and its repair is due anyway
            commit = find_commit(store, run_id, shard_id)
            if commit is not None and any(file.name in removal.removed for file in commit.files()):
                removal.broken.append(shard_id)
    return removal


def old_enough(
    store: Store, names: Sequence[str], older_than_s: float, *, dry_run: bool = False
) -> tuple[list[str], list[str]]:
    """Split objects into those that were written that many seconds ago or earlier, and younger ones.

    What is gone meanwhile is in neither list. Ages are by the store's own clock, see ``vacuum``.
    """
    if not names or older_than_s <= 0:
        return list(names), []
    newest, old, young = _now(store, dry_run=dry_run) - older_than_s, list[str](), list[str]()
    for name in names:
        written = store.modified_at(name)
        if written is not None:
            (old if written <= newest else young).append(name)
    return old, young


def _now(store: Store, *, dry_run: bool) -> float:
    """Return the time by the store's clock, found by writing an object and asking when it was written.

    A machine's own clock may be wrong by days, and would make young files look old. A dry run writes nothing, so it has
    to use this machine's clock.
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
