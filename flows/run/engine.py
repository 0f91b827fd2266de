"""The steps of a run as plain functions: cut into waves, label a wave, finish. The Prefect flow calls these."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from actors.pool.runner import ClusterLostError, PoolEvent, ReplicaStartError, ShardFailure, ShardRunner
from flows.config import RunConfig
from flows.process.signals import Termination, finishing_first
from flows.run.breaker import CircuitBreaker
from flows.run.observer import RunObserver, Several, Silent
from flows.run.planning import PlannedRun, open_output, planned_run
from flows.run.report import leave_report
from flows.run.summary import RunSummary, read_run_summary, summarize
from flows.run.updates import configs_to_run
from pipelines.errors import StorageError
from pipelines.layout import summary_name
from pipelines.planning.plan import Plan
from pipelines.storage.store import Store
from pipelines.table.commits import held_commits
from pipelines.table.leftovers import remove_losers
from pipelines.table.run_summary import summary_bytes
from pipelines.table.verify import VerifyReport, table_size, verify
from pipelines.types import ShardReceipt

_SHARDS_PER_SLOT_AND_WAVE = 4


def cut_waves(shard_ids: list[str], config: RunConfig) -> list[list[str]]:
    """Group shards into waves: enough of them to show progress, never more than max_waves."""
    slots = config.pool.replicas * config.pool.shards_in_flight_per_replica
    size = max(math.ceil(len(shard_ids) / config.waves.max_waves), slots * _SHARDS_PER_SLOT_AND_WAVE)
    return [shard_ids[start : start + size] for start in range(0, len(shard_ids), size)]


def label_shards(
    runner: ShardRunner,
    store: Store,
    plan: Plan,
    due: Mapping[str, int],
    observer: RunObserver,
    breaker: CircuitBreaker,
) -> tuple[list[ShardFailure], int]:
    """Label the shards whose due commit is not there yet, until too many images cannot be labelled.

    Args:
        runner: labels them.
        store: the output.
        plan: the run's.
        due: which shards, each with the number of the commit that is due.
        observer: told what becomes of each.
        breaker: counts images that cannot be labelled.

    Returns:
        The failures, and how many shards were not tried because the budget was spent or the run was to stop.
        Their images stay unlabelled until the run is resumed.
    """
    held = held_commits(store, plan.run_id)
    todo = {shard_id: repair for shard_id, repair in due.items() if held.get(shard_id, -1) < repair}
    shards = (replace(shard, repair=todo[shard.shard_id]) for shard in plan.shards(store, todo))
    failures: list[ShardFailure] = []
    num_left = len(todo)
    for result in runner.map(shards, on_event=observer.on_event):
        num_left -= 1
        if isinstance(result, ShardFailure):
            failures.append(result)
            observer.on_failure(result)
        else:
            observer.on_receipt(result)
            if breaker.add(result):
                runner.stop()
                observer.on_event(PoolEvent("draining", breaker.reason))
    return failures, num_left


def finish_run(
    config: RunConfig,
    plan: Plan,
    *,
    failures: list[ShardFailure],
    stopped: str,
    committed_before: int,
    started: float,
) -> RunSummary:
    """Remove losers, verify, and write the summary; a run that had nothing to do writes nothing.

    What an earlier invocation has verified and told is not read again as long as the listings of the run's data files
    and commits add up to the same.

    Args:
        config: the run's config.
        plan: its plan.
        failures: shards that were given up.
        stopped: why the run was ended before its end; empty if it was not.
        committed_before: shards that were committed, and whole, when this invocation began.
        started: time.monotonic() at its beginning.
    """
    store = open_output(config)
    told = read_run_summary(store, plan.run_id) if committed_before == plan.num_shards else None
    if told and told.is_current(plan, table_size(store, plan.run_id)):
        return replace(told, output=store.uri, labelled_now=0, elapsed_s=round(time.monotonic() - started, 3))
    removal = remove_losers(store, plan.run_id)
    report = verify(store, plan.run_id, deep=False)
    summary = summarize(
        store,
        plan,
        report,
        failures=failures,
        stopped=stopped,
        committed_before=committed_before,
        elapsed_s=time.monotonic() - started,
        warnings=[f"a leftover could not be removed, which does no harm: {error}" for error in removal.failed],
    )
    if summary.labelled_now or not summary.same_outcome_as(read_run_summary(store, plan.run_id)):
        try:
            store.write(summary_name(plan.run_id), summary_bytes(summary.to_dict()))
        except StorageError as error:
            return replace(summary, problems=[*summary.problems, f"the summary could not be written: {error}"])
    return summary


def run_directly(config: RunConfig, observer: RunObserver) -> RunSummary:
    """Run without Prefect: the same steps in one go.

    Raises:
        As label_collection does, except that an incomplete run returns its summary with the problems, and that what
        SIGTERM does at the end is up to the handler that was there before.
    """
    for one in configs_to_run(config, open_output(config)):
        summary = _run_one(one, observer)
        if not summary.ok:
            break
    return summary


def _run_one(config: RunConfig, observer: RunObserver) -> RunSummary:
    started = time.monotonic()
    with planned_run(config) as run:
        return run_once(config, run, observer, label=_label_at_once, finish=finish_run, started=started)


def _label_at_once(
    config: RunConfig,
    run: PlannedRun,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    _sigterm: Termination,
) -> list[ShardFailure]:
    return label_shards(runner, open_output(config), run.plan, run.due.commits, observer, breaker)[0]


Label = Callable[[RunConfig, PlannedRun, ShardRunner, RunObserver, CircuitBreaker, Termination], list[ShardFailure]]
"""Labels what is due of a run and returns the failures; hands out no more once the breaker or SIGTERM has a reason."""


def run_once(
    config: RunConfig,
    run: PlannedRun,
    observer: RunObserver,
    *,
    label: Label,
    finish: Callable[..., RunSummary],
    started: float,
    publish: Callable[[RunSummary, str | None], None] = lambda _summary, _report: None,
) -> RunSummary:
    """Label what is due of a planned run, and finish it.

    Once there is a plan, storage that fails ends the run incomplete, to be resumed: what is committed stays committed.

    Args:
        config: the run's config.
        run: its plan, its runner, and what is due.
        observer: told of everything.
        label: labels what is due, and returns the failures.
        finish: finish_run, or a task around it.
        started: time.monotonic() at the beginning.
        publish: told the summary and where the report is, before SIGTERM is heeded.

    Raises:
        ReplicaStartError: no replica can be started, and no shard of the run is committed.
    """
    plan, committed = run.plan, run.plan.num_shards - len(run.due.commits)
    counted = _Counting()
    observer = Several(Several(observer), counted)  # apart: who counts tells nobody that another has failed
    if run.update is not None:
        observer.on_update(run.update)
    observer.on_plan(plan, committed)
    for one in run.due.broken:
        message = f"{one.shard_id}: {one.problem}; it is labelled again (repair {one.repair})"
        observer.on_event(PoolEvent("shard_broken", message))
    failures: list[ShardFailure] = []
    breaker, sigterm, stopped = CircuitBreaker(config.limits), Termination(), ""
    with ExitStack() as stack:
        if run.runner is not None:
            sigterm = stack.enter_context(finishing_first(run.runner.stop, config.pool.drain_grace_s))
            try:
                failures = label(config, run, run.runner, observer, breaker, sigterm)
            except (StorageError, ReplicaStartError, ClusterLostError) as error:
                if isinstance(error, ReplicaStartError) and not committed + counted.shards:
                    raise
                stopped = f"stopped: {_first_line(error)}"
            run.runner.close()  # its machines are free while the table is verified
        stopped = stopped or breaker.reason or sigterm.reason
        try:
            summary = finish(
                config, plan, failures=failures, stopped=stopped, committed_before=committed, started=started
            )
        except StorageError as error:
            report = VerifyReport(plan.run_id, listed=plan.num_images, shards=plan.num_shards)
            report.committed = committed + counted.shards
            report.problems.append(f"the table could not be verified: {_first_line(error)}")
            summary = summarize(
                open_output(config),
                plan,
                report,
                failures=failures,
                stopped=stopped,
                committed_before=committed,
                elapsed_s=time.monotonic() - started,
            )
        publish(summary, leave_report(config, summary, observer))
    return summary


class _Counting(Silent):
    """Counts the shards that were committed."""

    def __init__(self) -> None:
        self.shards = 0

    def on_receipt(self, receipt: ShardReceipt) -> None:  # noqa: ARG002
        """Count one."""
        self.shards += 1


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
