"""Label a sample of a run first, and go on only if it is what was asked for: the gate before most of the work.

The sample consists of shards of the run like any others, committed once. What is found of it is kept in ``canary.json``
beside the plan; ``approved.json`` there, which `xsam-label approve` writes, lets the run go on whatever that is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from actors.pool.runner import PoolEvent, ShardFailure
from flows.config import CanaryConfig, RunConfig
from flows.run.existing_runs import no_run
from flows.run.observer import RunObserver
from flows.run.summary import read_run_summary
from flows.run.updates import gathered_documents, is_labeled
from pipelines.errors import DamagedError, PlanError, StorageError, UserError, some_texts
from pipelines.history.history import DamagedHistoryError, newest_history
from pipelines.layout import approval_name, canary_name
from pipelines.planning.fingerprint import lists_source
from pipelines.planning.plan import DRIVER_ID, Plan, plan_documents, require_plan
from pipelines.rates.changes import beyond_limits, changed
from pipelines.rates.rates import MOST_SHARDS, Rates, read_rates, spread
from pipelines.redaction import counted
from pipelines.storage.checksummed_json import BLANK, seal
from pipelines.storage.store import Store
from pipelines.table.commits import held_commits, read_commit
from pipelines.table.shard_commit import ShardCommit

RATES = "rates"
"""Among the facts of a summary: the rates of the run, which the next one is held against."""
_LEAST_SHARDS = 4
_LEAST_IMAGES = 64
_RUNS_BACK = 3
_LOOK_EVERY_S = 2.0

LabelSome = Callable[[Mapping[str, int], str], list[ShardFailure]]
"""Labels shards, each with the number of the commit that is due, and returns the failures; also told what part of the
run they are, in words or nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """What was found of the first images of a run.

    Attributes:
        judged_at: ISO 8601.
        images: how many they are.
        alarms: what speaks against the rest; empty if nothing does.
        against: the run that they were held against; None if there was none.
    """

    judged_at: str
    images: int
    alarms: tuple[str, ...] = ()
    against: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__} | {"alarms": list(self.alarms)}


def read_canary(store: Store, run_id: str) -> Canary | None:
    """Read what was found of a run's first images; None if that is not known (yet), or damaged: it is found again."""
    try:
        document = store.read_json(canary_name(run_id))
        return Canary(
            judged_at=str(document["judged_at"]),
            images=int(document["images"]),
            alarms=tuple(map(str, document["alarms"])),
            against=document["against"],
        )
    except (FileNotFoundError, DamagedError, KeyError, TypeError, ValueError):
        return None


def is_approved(store: Store, run_id: str) -> bool:
    """Return whether a run may go on whatever its first images are like."""
    return store.exists(approval_name(run_id))


def approve(store: Store, run_id: str | None = None) -> tuple[str, Canary]:
    """Let a run go on.

    Args:
        store: the output.
        run_id: the run; by default the last one that was stopped, or waits.

    Returns:
        The run, and what was found of its first images.

    Raises:
        PlanError: there is no such run, or it needs no approval.
    """
    plans = plan_documents(store, by_name=True)
    if not plans or (run_id is not None and run_id not in plans):
        raise no_run(store.uri, run_id, plans)
    for name in [run_id] if run_id else reversed(list(plans)):
        found = read_canary(store, name)
        is_alarmed = found is not None and found.alarms and not is_approved(store, name)
        if found is not None and is_alarmed and not is_labeled(store, require_plan(store, name)):
            values = {"run_id": name, "approved_at": _now(), "alarms": list(found.alarms), "by": DRIVER_ID}
            store.create(approval_name(name), seal({**values, **BLANK}))
            return name, found
    raise PlanError(f"{store.uri}: {f'run {run_id} does not wait' if run_id else 'no run waits'} for an approval")


@dataclass(slots=True, kw_only=True)
class Gate:
    """Decides whether the rest of a run is labeled.

    Attributes:
        store: the output.
        config: of the run.
        plan: of the run.
        observer: is told of alarms, and of waiting.
        is_stopping: whether the run is to end, so that waiting does.
        shards: those that are labeled first.
    """

    store: Store
    config: RunConfig
    plan: Plan
    observer: RunObserver
    is_stopping: Callable[[], bool]
    shards: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.shards = first_shards(self.plan, self.config.canary)

    def label(self, due: Mapping[str, int], label: LabelSome) -> tuple[list[ShardFailure], str]:
        """Label the due shards: first those of the sample, and the rest if that may go on.

        Returns:
            The failures, and why the run has stopped before the rest; empty if it has not.
        """
        # What was labeled before, and is damaged, is repaired without a question.
        is_new = any(number == 0 for shard_id, number in due.items() if shard_id not in self.shards)
        if not self.shards or not is_new or is_approved(self.store, self.plan.run_id):
            return label(due, ""), ""
        first = {shard_id: number for shard_id, number in due.items() if shard_id in self.shards}
        rest = {shard_id: number for shard_id, number in due.items() if shard_id not in self.shards}
        failures = label(first, "canary ") if first else []
        if self.is_stopping():
            return failures, ""
        if stopped := self._judge():
            return failures, stopped
        return [*failures, *label(rest, "")], ""

    def _judge(self) -> str:
        """Return why the rest is not to be labeled; empty if it is."""
        run_id, canary = self.plan.run_id, self.config.canary
        held = held_commits(self.store, run_id)
        commits = [read_commit(self.store, run_id, one, held[one]) for one in sorted(self.shards & held.keys())]
        if 2 * len(commits) < len(self.shards):
            left = len(self.shards) - len(commits)
            return (
                f"stopped: {left:,} of the {counted(len(self.shards), 'shard')} that were to be labeled first could "
                "not be; the same command tries them again"
            )
        rates = read_rates(self.store, commits, mask_prompts(self.plan))
        last, against = None, None
        if canary.compare and self.plan.lists_source:  # images that are labeled again are no sample of the collection
            try:
                last, against = last_rates(self.store, self.plan)
            except UserError as error:
                self.observer.on_event(PoolEvent("warning", f"there is nothing to compare with: {error}"))
        alarms = beyond_limits(rates, canary, self.config.limits.max_quarantined_share)
        alarms += changed(rates, last, against or "", canary.min_change) if last else []
        found = Canary(judged_at=_now(), images=rates.images, alarms=tuple(alarms), against=against)
        self.store.write(canary_name(run_id), seal({**found.to_dict(), **BLANK}))
        where = f"the first {counted(rates.images, 'image')}, spread over the collection,"
        if not alarms:
            held_against = f"are like those of run {against}" if against else "are within all limits"
            self.observer.on_event(PoolEvent("canary", f"{where} {held_against}: the rest is labeled"))
            return ""
        self.observer.on_event(PoolEvent("alarm", f"{where} are not as expected: {'; '.join(alarms)}"))
        if canary.then == "warn":
            return ""
        advice = f"if they are right, `xsam-label approve {self.store.uri}`"
        if canary.then == "stop":
            why = f"stopped: {where} are not as expected: {'; '.join(alarms)}"
            return f"{why}. Look at them; {advice}, then the same command goes on"
        self.observer.on_event(PoolEvent("waiting", f"the rest waits; {advice} lets it go on, Ctrl-C ends the run"))
        is_free = False
        while not is_free:
            if self.is_stopping():
                return f"stopped: it waited for an approval of its first images: {'; '.join(alarms)}"
            time.sleep(_LOOK_EVERY_S)
            with suppress(StorageError):  # it may answer the next time
                is_free = is_approved(self.store, run_id)
        self.observer.on_event(PoolEvent("canary", "approved: the rest is labeled"))
        return ""


def first_shards(plan: Plan, canary: CanaryConfig) -> frozenset[str]:
    """Return the shards of a run that are labeled first: those of its plan, or of one without them whole ones.

    None where they would be more than half of the run.
    """
    if not canary.images or plan.is_import or plan.retry_of is not None:
        return frozenset()
    if plan.canary_shards:
        return frozenset(plan.canary_shards)
    per_shard = max(1, plan.num_images // max(1, plan.num_shards))
    count = max(_LEAST_SHARDS, math.ceil(canary.images / per_shard))
    return frozenset(spread(plan.shard_ids(), count)) if 2 * count <= plan.num_shards else frozenset()


def mask_prompts(plan: Plan) -> list[str]:
    """Return the ids of the prompts that a run asks of every image."""
    return [prompt["prompt_id"] for prompt in plan.facts.get("prompts", ())]


def last_rates(store: Store, plan: Plan) -> tuple[Rates | None, str | None]:
    """Return the rates of the last run before this one that has left any of enough images, and that run."""
    try:
        history = newest_history(store)
    except DamagedHistoryError:
        history = None
    documents = plan_documents(store, by_name=True, known=gathered_documents(history))
    before = [one for one in documents.values() if one.get("sequence", 0) < plan.sequence]
    labeled = [one["run_id"] for one in before if lists_source(one.get("fingerprint", {}))]
    for run_id in labeled[: -_RUNS_BACK - 1 : -1]:
        summary = read_run_summary(store, run_id)
        rates = None if summary is None else _read(summary.facts.get(RATES))
        if rates is not None and rates.images >= _LEAST_IMAGES:
            return rates, run_id
    return None, None


def final_rates(
    store: Store, plan: Plan, commits: list[ShardCommit], config: CanaryConfig
) -> tuple[dict[str, Any], list[str]]:
    """Read the rates of a finished run from some of its shards, and hold them against the last run's.

    Returns:
        What the summary keeps of them, and warnings of what has changed.
    """
    if not config.compare or not plan.lists_source or not plan.num_images:
        return {}, []
    try:
        rates = read_rates(store, spread(commits, MOST_SHARDS), mask_prompts(plan))
        last, against = last_rates(store, plan)
    except UserError as error:  # nothing depends on it
        return {}, [f"the run could not be held against the last one, which does no harm: {error}"]
    found = changed(rates, last, against or "", config.min_change) if last else []
    return {RATES: rates.to_dict(), "changes": found}, [f"unlike the last run: {one}" for one in found]


def told(found: Canary, *, approved: bool) -> str:
    """Say in a line what was found of a run's first images."""
    if not found.alarms:
        return f"passed by {counted(found.images, 'image')}" + (f", like run {found.against}" if found.against else "")
    end = "approved" if approved else "approve lets the run go on"
    return f"not as expected: {some_texts(found.alarms)} ({end})"


def _read(document: Any) -> Rates | None:
    try:
        return None if document is None else Rates.from_dict(document)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
