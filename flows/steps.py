"""The steps of a run as plain functions: cut into waves, label a wave, finish. The Prefect flow calls these."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace

from actors.pool import PoolEvent, ShardFailure, ShardRunner
from flows.breaker import CircuitBreaker
from flows.config import RunConfig
from flows.observer import RunObserver, Several
from flows.planning import open_output, planned_run
from flows.report import leave_report
from flows.signals import Termination, finishing_first
from flows.summary import RunSummary, summarise, summary_name, told_summary
from flows.updates import configs_to_run
from pipelines.integrity import remove_own_leftovers, table_size, verify
from pipelines.manifest import DRIVER_ID, Plan
from pipelines.storage import Store
from pipelines.table import committed_shards

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
    shard_ids: Iterable[str],
    observer: RunObserver,
    breaker: CircuitBreaker,
) -> tuple[list[ShardFailure], int]:
    """Label the shards of a wave that are not committed yet, until too many images cannot be labelled.

    Returns:
        The failures, and how many shards were not tried because the budget was spent or the run was to stop.
        Their images stay unlabelled until the run is resumed.
    """
    todo = sorted(set(shard_ids) - committed_shards(store, plan.run_id))
    failures: list[ShardFailure] = []
    num_left = len(todo)
    for result in runner.map(plan.shards(store, todo), on_event=observer.on_event):
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
    """Remove leftovers, verify, and write the summary; a run that had nothing to do writes nothing.

    What an earlier invocation has verified and told is not read again as long as the listings of the run's data files
    and commits add up to the same.

    Args:
        config: the run's config.
        plan: its plan.
        failures: shards that were given up.
        stopped: why the run was ended before its end; empty if it was not.
        committed_before: shards that were committed when this invocation began.
        started: time.monotonic() at its beginning.
    """
    store = open_output(config)
    told = told_summary(store, plan.run_id) if committed_before == plan.num_shards else None
    if told and told.tells_all_of(plan, table_size(store, plan.run_id)):
        return replace(told, output=store.uri, labelled_now=0, elapsed_s=round(time.monotonic() - started, 3))
    remove_own_leftovers(store, plan.run_id, DRIVER_ID)
    report = verify(store, plan.run_id, deep=False)
    summary = summarise(
        store,
        plan,
        report,
        failures=failures,
        stopped=stopped,
        committed_before=committed_before,
        elapsed_s=time.monotonic() - started,
    )
    if summary.labelled_now or not summary.ends_as(told_summary(store, plan.run_id)):
        store.write(summary_name(plan.run_id), json.dumps(summary.to_dict(), indent=1).encode())
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
    store = open_output(config)
    observer = Several(observer)
    failures: list[ShardFailure] = []
    breaker = CircuitBreaker(config.limits)
    with ExitStack() as stack:
        plan, runner, update = stack.enter_context(planned_run(config))
        committed = committed_shards(store, plan.run_id)
        if update is not None:
            observer.on_update(update)
        observer.on_plan(plan, len(committed))
        sigterm = Termination()
        if runner is not None:
            sigterm = stack.enter_context(finishing_first(runner.stop, config.pool.drain_grace_s))
            failures, _ = label_shards(runner, store, plan, plan.shard_ids(), observer, breaker)
            runner.close()  # its machines are free while the table is verified
        summary = finish_run(
            config,
            plan,
            failures=failures,
            stopped=breaker.reason or sigterm.reason,
            committed_before=len(committed),
            started=started,
        )
        leave_report(config, summary, observer)
        return summary
