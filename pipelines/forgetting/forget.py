"""Erase images from an output: first it is written down which, then plans, then shards, then all that names them.

Every object that holds what stays is created before the one that it supersedes is touched, so a crash at any point
loses no row, and the erasure is completed by the next call: nothing of it is kept in memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipelines.compaction.compacted import compacted_files
from pipelines.errors import DamagedError
from pipelines.forgetting.chosen import Found, check_at_rest, choose, labels_of, shards_with
from pipelines.forgetting.plans import forget_in_plan, superseded_files
from pipelines.forgetting.shards import clean_shards, forget_in_shard
from pipelines.history.history import history_files
from pipelines.lakehouse.removal import erase_published
from pipelines.layout import (
    COMPACTED,
    KINDS,
    is_ours,
    plan_name,
    report_name,
    run_folder,
    split_data_name,
    summary_name,
)
from pipelines.planning.erasures import Forgotten, begin_erasure, end_erasure, read_forgotten
from pipelines.planning.plan import plan_documents, require_plan
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.leftovers import VACUUM_GRACE_S, old_enough
from pipelines.table.run_summary import read_summary, summary_bytes
from pipelines.table.verify import verify

_THREADS = 4  # each may hold the two files of a shard, of up to 100 MiB each
_MAX_REJECTED = 1000


@dataclass(slots=True)
class Erased:
    """What an erasure has done.

    Attributes:
        images: forgotten by it.
        written: data files that were written without them.
        removed: names of the files that were removed.
        left: descriptions of what may still hold them, for which the erasure has to be completed later.
        others: names of files in the output that are not its own, and were not looked into.
        problems: what verify finds wrong with the runs, in words.
    """

    images: int = 0
    written: int = 0
    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def forget(
    store: Store, found: Found, *, on_step: Callable[[str], None] = lambda _: None, threads: int = _THREADS
) -> Erased:
    """Erase images, and whatever erasures before have left undone.

    Args:
        store: the output.
        found: the images, as ``choose`` returned them; none to complete what was begun.
        on_step: called with a description of each step, for progress.
        threads: how many shards are written at once.

    Raises:
        PlanError: a run is not finished.
        DamagedError: an object of the output is damaged; once it is mended, the same call completes the erasure.
        StorageError: the output cannot be read or written; the same call completes the erasure.
    """
    check_at_rest(store)
    if found.image_ids:
        labels = labels_of(store, found.image_ids)
        begin_erasure(store, image_ids=found.image_ids, uris=found.uris, labels=labels, condition=found.condition)
    forgotten = read_forgotten(store)
    if not forgotten.unfinished:
        return Erased()
    return _Erasing(store, forgotten, list(plan_documents(store, by_name=True)), on_step).run(threads)


@dataclass
class _Erasing:
    """One call that completes all erasures that were begun.

    Attributes:
        store: the output.
        forgotten: what was forgotten in it, and is to be.
        runs: its runs.
        on_step: called with a description of each step.
        erased: what was done so far.
    """

    store: Store
    forgotten: Forgotten
    runs: list[str]
    on_step: Callable[[str], None]
    erased: Erased = field(default_factory=Erased)

    def run(self, threads: int) -> Erased:
        """Erase everything, in an order in which nothing that stays is ever missing."""
        store, erased, begun = self.store, self.erased, self.forgotten.unfinished
        erased.images = len({name for erasure in begun for name in erasure.names})
        self.on_step("finding their rows")
        holding = {run_id: shards_with(store, run_id, Forgotten(tuple(begun))) for run_id in self.runs}
        # Before the shards: one that has to be labeled again then does not ask the images again.
        for run_id in self.runs:
            self.on_step(f"plan of {run_id}")
            forget_in_plan(store, run_id, holding[run_id], self.forgotten)
        self._write_shards(holding, threads)
        self.on_step("publishing what stays, if it was published")
        removed, foreign_logs = erase_published(store)
        erased.removed += removed
        # Only now that all that stays is committed.
        for run_id in self.runs:
            self.on_step(f"removing what is superseded of {run_id}")
            self._clean(run_id, holding[run_id])
        erased.removed += _delete(store, history_files(store))
        erased.removed += _delete(store, [*compacted_files(store), *store.unfinished(COMPACTED)])
        _clean_unplanned(store, erased)
        if later := sorted(set(plan_documents(store, by_name=True)) - set(self.runs)):
            erased.left.append(f"run {later[0]} was planned meanwhile, and may have been asked these images")
        others = (name for name in store.find("") if not _is_of(name, self.runs))
        erased.others = sorted({*others, *foreign_logs})
        if not erased.left and not erased.problems:
            for erasure in begun:
                end_erasure(store, erasure, {"written": erased.written, "removed": len(erased.removed)})
        return erased

    def _write_shards(self, holding: Mapping[str, Collection[str]], threads: int) -> None:
        places = [(run_id, shard_id) for run_id in self.runs for shard_id in sorted(holding[run_id])]

        def write(place: tuple[str, str]) -> int:
            run_id, shard_id = place
            return forget_in_shard(self.store, run_id, shard_id, self.forgotten)

        with ThreadPoolExecutor(threads) as writers:
            for number, (place, count) in enumerate(zip(places, writers.map(write, places), strict=True), start=1):
                self.erased.written += count
                self.on_step(f"{place[1]} of {place[0]}, {number:,} of {len(places):,}")

    def _clean(self, run_id: str, shard_ids: Collection[str]) -> None:
        store, removed = self.store, self.erased.removed
        removed += clean_shards(store, run_id, shard_ids)
        removed += _delete(store, superseded_files(store, run_id))
        for folder in (*(f"{kind}/{run_id}" for kind in KINDS), run_folder(run_id)):
            removed += _delete(store, store.unfinished(folder))
        removed += _delete(store, [name for name in [report_name(run_id)] if store.exists(name)])
        self._correct_summary(run_id, is_changed=bool(shard_ids))

    def _correct_summary(self, run_id: str, *, is_changed: bool) -> None:
        """Write a run's summary again, as far as it counts or names the images; a damaged one is removed."""
        store, report = self.store, verify(self.store, run_id, deep=False)
        self.erased.problems += [f"run {run_id}: {problem}" for problem in report.problems]
        try:
            summary = read_summary(store, run_id)
        except DamagedError:
            self.erased.removed += _delete(store, [summary_name(run_id)])
            return
        if summary is None:
            return
        planned = require_plan(store, run_id).facts.get("rejected_prompts", ())
        rejected = [*planned, *(dict(row) for commit in report.commits for row in commit.rejected_prompts)]
        rejected.sort(key=lambda row: row["row"])
        noted = {"images_with_pixel_notes": sum(commit.num_noted for commit in report.commits)}
        corrected = {
            **summary,
            "ledger": report.ledger(),
            "reason_counts": dict(report.reason_counts),
            "num_annotations": report.num_annotations,
            "num_files": report.size.num_files,
            "num_bytes": report.size.num_bytes,
            "names_sha256": report.size.names_sha256,
            "problems": report.problems,
            "warnings": [],
            "rejected_prompts": rejected[:_MAX_REJECTED],
            "num_rejected_prompts": len(rejected),
            "facts": {**summary["facts"], **noted, "failures": []},  # tracebacks may name images
        }
        if is_changed or corrected["rejected_prompts"] != summary.get("rejected_prompts"):
            store.write(summary_name(run_id), summary_bytes(corrected))


def _is_of(name: str, runs: Collection[str]) -> bool:
    """Return whether an object is the output's own, and no data file of a run that it does not have."""
    is_data = split_data_name(name) is not None
    return is_ours(name) and (not is_data or name.split("/")[1] in runs)


def _delete(store: Store, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        store.delete(name)
        yield name


def _clean_unplanned(store: Store, erased: Erased) -> None:
    """Remove what dead drivers have left of plans that they never created, unless one may be about to."""
    planned = {run_id: store.exists(plan_name(run_id)) for run_id in store.folders("_runs")}
    names = [
        name
        for run_id, is_planned in planned.items()
        if not is_planned
        for name in (*filter(is_ours, store.find(run_folder(run_id))), *store.unfinished(run_folder(run_id)))
    ]
    old, young = old_enough(store, names, VACUUM_GRACE_S)
    erased.removed += _delete(store, old)
    if young:
        erased.left.append(
            f"{counted(len(young), 'file')} of a run that is being planned, or whose driver has died planning it, "
            "less than a "
            f"day ago ({young[0]})"
        )


__all__ = ["Erased", "Found", "choose", "forget"]
