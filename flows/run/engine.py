"""The steps of a run as plain functions: label, finish. Used with and without Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

from actors.pool.runner import ClusterLostError, PoolEvent, ReplicaStartError, ShardFailure, ShardRunner
from flows.config import RunConfig
from flows.process.signals import Termination, finishing_first
from flows.run.breaker import CircuitBreaker
from flows.run.canary import Gate, final_rates
from flows.run.observer import RunObserver, Several, Silent
from flows.run.planning import PlannedRun, open_output, planned_run
from flows.run.report import leave_report
from flows.run.summary import RunSummary, read_run_summary, summarize, why_fruitless
from flows.run.updates import configs_to_run, gather_history
from flows.run.waves import ShardStream, Wave, cut_waves
from pipelines.errors import StorageError
from pipelines.layout import summary_name
from pipelines.planning.plan import Plan
from pipelines.table.dataset_card import leave_card
from pipelines.table.leftovers import remove_losers
from pipelines.table.run_summary import summary_bytes
from pipelines.table.verify import VerifyReport, table_size, verify
from pipelines.types import ShardReceipt


def label_shards(
    runner: ShardRunner,
    stream: ShardStream,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
) -> list[ShardFailure]:
    """Label the shards of a stream, and stop if too many images are quarantined.

    Args:
        runner: labels the shards.
        stream: what to label.
        observer: notified of the outcome of each shard.
        breaker: counts quarantined images.
        sigterm: whether SIGTERM has come, which has stopped the runner.

    Returns:
        The failures. Shards that were not tried, because the budget was spent or the run was to stop, are left to the
        next invocation.
    """
    try:
        goes_on = True
        while goes_on:
            for result in runner.map(stream, on_event=observer.on_event):
                stream.settle(result)
                if isinstance(result, ShardFailure):
                    observer.on_failure(result)
                    continue
                observer.on_receipt(result)
                if breaker.add(result):
                    runner.stop()
                    observer.on_event(PoolEvent("draining", breaker.reason))
            goes_on = stream.goes_on(lambda: bool(breaker.reason or sigterm.reason))
    finally:
        stream.close()
    return stream.failures


def finish_run(
    config: RunConfig,
    plan: Plan,
    *,
    failures: list[ShardFailure],
    stopped: str,
    committed_before: int,
    started: float,
) -> RunSummary:
    """Remove losers, verify, and write the summary; if there was nothing to do, nothing is written.

    If an earlier invocation has verified the run, and the listings of its data files and commits have not changed
    since, its summary is used and nothing is read again.

    Args:
        config: the run's config.
        plan: its plan.
        failures: shards that were given up.
        stopped: why the run was stopped early; empty if it was not.
        committed_before: number of shards that were committed and whole when this invocation began.
        started: time.monotonic() when its planning began.
    """
    store = open_output(config)
    told = read_run_summary(store, plan.run_id) if committed_before == plan.num_shards else None
    if told and told.is_current(plan, table_size(store, plan.run_id)):
        told = replace(told, output=store.uri, labelled_now=0, elapsed_s=round(time.monotonic() - started, 3))
        return replace(told, fruitless=why_fruitless(store, plan, told, is_update=config.incremental))
    removal = remove_losers(store, plan.run_id)
    report = verify(store, plan.run_id, deep=False)
    rates, changes = final_rates(store, plan, report.commits, config.canary) if report.ok else ({}, [])
    summary = summarize(
        store,
        plan,
        report,
        failures=failures,
        stopped=stopped,
        committed_before=committed_before,
        elapsed_s=time.monotonic() - started,
        warnings=[
            *(f"a leftover could not be removed, which does no harm: {error}" for error in removal.failed),
            *leave_card(store),
            *changes,
            *(gather_history(store, plan) if config.incremental and plan.retry_of is None else ()),
        ],
    )
    summary = replace(summary, fruitless=why_fruitless(store, plan, summary, is_update=config.incremental))
    summary = replace(summary, facts={**summary.facts, **rates})
    # An unchanged summary is not written again: a finished run that is run again writes nothing.
    if summary.labelled_now or not summary.same_outcome_as(read_run_summary(store, plan.run_id)):
        try:
            store.write(summary_name(plan.run_id), summary_bytes(summary.to_dict()))
        except StorageError as error:
            return replace(summary, problems=[*summary.problems, f"the summary could not be written: {error}"])
    return summary


def run_directly(config: RunConfig, observer: RunObserver) -> RunSummary:
    """Run without Prefect.

    Raises:
        The same errors as label_collection, except that an incomplete run returns its summary with the problems, and
        that SIGTERM is handled, at the end, by whatever handler was installed before.
    """
    return run_each(configs_to_run(config, open_output(config)), lambda one: _run_one(one, observer))


def run_each(configs: Iterable[RunConfig], run: Callable[[RunConfig], RunSummary]) -> RunSummary:
    """Run one config after the other, until one ends incomplete.

    Returns:
        The summary of the last that was run, with what made the first fruitless one so.
    """
    fruitless = ""
    for config in configs:
        summary = run(config)
        fruitless = fruitless or summary.fruitless
        if not summary.ok:
            break
    return replace(summary, fruitless=fruitless)


def _run_one(config: RunConfig, observer: RunObserver) -> RunSummary:
    with planned_run(config) as run:
        return run_once(config, run, observer, label=_label_at_once, finish=finish_run)


def _label_at_once(
    config: RunConfig,
    run: PlannedRun,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
) -> list[ShardFailure]:
    due = run.due.commits
    stream = ShardStream(open_output(config), run.plan, due, [list(due)])
    return label_shards(runner, stream, observer, breaker, sigterm)


def label_in_waves(
    config: RunConfig,
    run: PlannedRun,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
    *,
    watch: Callable[[Wave], object],
) -> list[ShardFailure]:
    """Label the due shards in one stream, and have each wave of them watched, in a thread of its own."""
    due = run.due.commits
    waves = cut_waves(list(due), config)
    stream = ShardStream(open_output(config), run.plan, due, waves, watch, part=run.part)
    return label_shards(runner, stream, observer, breaker, sigterm)


Label = Callable[[RunConfig, PlannedRun, ShardRunner, RunObserver, CircuitBreaker, Termination], list[ShardFailure]]
"""Labels the due shards of a run and returns the failures; starts no more once the breaker or SIGTERM has a reason."""


def run_once(
    config: RunConfig,
    run: PlannedRun,
    observer: RunObserver,
    *,
    label: Label,
    finish: Callable[..., RunSummary],
    publish: Callable[[PlannedRun, RunSummary, str | None], None] = lambda _run, _summary, _report: None,
) -> RunSummary:
    """Label the due shards of a planned run, and finish it.

    Once there is a plan, failing storage ends the run as incomplete, to be resumed; what is committed stays committed.

    Args:
        config: the run's config.
        run: its plan, its runner and its due shards.
        observer: notified of everything that happens.
        label: labels the due shards and returns the failures.
        finish: finish_run, or a task around it.
        publish: called with the run, its summary and the report's URI, before a deferred SIGTERM takes effect.

    Raises:
        ReplicaStartError: no replica can be started, and no shard of the run is committed.
    """
    plan, committed = run.plan, run.plan.num_shards - len(run.due.commits)
    counted = _Counting()
    observer = Several(Several(observer), counted)  # nested, so that the counter is not the one told of a failure
    if run.update is not None:
        observer.on_update(run.update)
    if run.nothing_new:
        observer.on_event(PoolEvent("nothing_new", run.nothing_new))
    observer.on_plan(plan, committed)
    for note in run.notes:
        observer.on_event(PoolEvent("warning", note))
    for one in run.due.broken:
        message = f"{one.shard_id}: {one.problem}; it is labeled again (repair {one.repair})"
        observer.on_event(PoolEvent("shard_broken", message))
    failures: list[ShardFailure] = []
    breaker, sigterm, stopped = CircuitBreaker(config.limits), Termination(), ""
    with ExitStack() as stack:
        if run.runner is not None:
            sigterm = stack.enter_context(finishing_first(run.runner.stop, config.pool.drain_grace_s))
            try:
                failures, stopped = _label_due(config, run, run.runner, label, observer, breaker, sigterm)
            except (StorageError, ReplicaStartError, ClusterLostError) as error:
                # With nothing committed the run could not start (exit code 2); otherwise it ends incomplete (1).
                if isinstance(error, ReplicaStartError) and not committed + counted.shards:
                    raise
                stopped = f"stopped: {_first_line(error)}"
            run.runner.close()  # frees its machines while the table is verified
        stopped = stopped or breaker.reason or sigterm.reason
        try:
            summary = finish(
                config, plan, failures=failures, stopped=stopped, committed_before=committed, started=run.started
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
                elapsed_s=time.monotonic() - run.started,
            )
        # Inside the block: a deferred SIGTERM may end the process as soon as it is left.
        publish(run, summary, leave_report(config, summary, observer))
    return summary


def _label_due(  # noqa: PLR0917  (what Label takes, and it)
    config: RunConfig,
    run: PlannedRun,
    runner: ShardRunner,
    label: Label,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
) -> tuple[list[ShardFailure], str]:
    """Label the due shards, those of the canary first; return the failures, and why the rest was not to be labeled."""
    gate = Gate(
        store=open_output(config),
        config=config,
        plan=run.plan,
        observer=observer,
        is_stopping=lambda: bool(breaker.reason or sigterm.reason or runner.is_stopped),
    )

    def label_some(due: Mapping[str, int], part: str) -> list[ShardFailure]:
        some = run._replace(due=replace(run.due, commits=due), part=part)
        return label(config, some, runner, observer, breaker, sigterm)

    return gate.label(run.due.commits, label_some)


class _Counting(Silent):
    """Counts committed shards."""

    def __init__(self) -> None:
        self.shards = 0

    def on_receipt(self, receipt: ShardReceipt) -> None:  # noqa: ARG002
        """Count a shard."""
        self.shards += 1


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
