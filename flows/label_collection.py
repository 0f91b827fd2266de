"""The Prefect flow: plan, label waves of shards, verify, summarise.

Prefect shows progress and retries waves. What is done is decided by the commits in the output alone: Prefect's states,
caches and results are never relied on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from actors.pool.runner import ShardFailure, ShardRunner
from flows.config import RunConfig
from flows.prefect_server.redacted_logs import redact_run_logs
from flows.prefect_server.reports import PrefectObserver, PrefectReporter, current_reporter, orchestrated, publish
from flows.process.signals import Termination
from flows.run import engine, planning
from flows.run.breaker import CircuitBreaker
from flows.run.observer import RunObserver, Several, current_observer
from flows.run.summary import RunFailedError, RunSummary
from flows.run.updates import configs_to_run
from pipelines.planning.plan import Plan
from pipelines.redaction import counted

redact_run_logs()


@flow(
    name="label-collection",
    description="Labels a collection, or resumes it: the same call after any crash ends in the same rows.",
    flow_run_name="{config.output.uri}",
    validate_parameters=True,
    persist_result=False,
)
def label_collection(config: RunConfig) -> dict[str, Any]:
    """Label a collection, or resume it: the same call after any crash ends in the same rows.

    With ``config.incremental`` runs of the output that are not finished come first, and then one of all that is new.

    Args:
        config: what to label, with which prompts and model, to where.

    Returns:
        The summary of the run, of the last if there are several, as plain values (see RunSummary).

    Raises:
        RunFailedError: an image is not accounted for; everything committed is kept, and the same call resumes. Or not
            one image of a run could be labelled.
        TerminationSignal: SIGTERM came; what was in flight had config.pool.drain_grace_s to commit.
        ConfigError, SourceError, PromptTableError, PlanError, StorageError, ReplicaStartError: the run cannot start;
            nothing was written.
    """
    told = current_reporter()
    told.begin()
    fruitless: RunSummary | None = None
    for one in configs_to_run(config, planning.open_output(config)):
        summary = _label_run(one, told)
        if not summary.ok:
            raise RunFailedError(summary)
        fruitless = fruitless or (summary if summary.fruitless else None)
    if fruitless is not None:  # only now: one bad image of last night must not keep tonight's from being labelled
        raise RunFailedError(fruitless)
    return summary.to_dict()


def _label_run(config: RunConfig, told: PrefectReporter) -> RunSummary:
    """Label one run, or resume it."""
    started = time.monotonic()
    with ExitStack() as stack:
        planned: list[planning.PlannedRun] = []

        def plan() -> planning.PlannedRun:
            """Plan only once, even if Prefect's bookkeeping fails afterwards and the step is called again."""
            if not planned:
                planned.append(stack.enter_context(planning.planned_run(config)))
            return planned[0]

        run = orchestrated(told, partial(plan_run, plan), plan)
        committed = run.plan.num_shards - len(run.due.commits)
        return engine.run_once(
            config,
            run,
            Several(current_observer(), PrefectObserver(told, run.plan, committed)),
            label=partial(_label_in_waves, told=told),
            finish=partial(_verify, told),
            started=started,
            publish=partial(publish, told),
        )


def _label_in_waves(
    config: RunConfig,
    run: planning.PlannedRun,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
    *,
    told: PrefectReporter,
) -> list[ShardFailure]:
    """Label the due shards wave by wave; no wave is begun once the run is to stop."""
    failures: list[ShardFailure] = []
    waves = engine.cut_waves(list(run.due.commits), config)
    for number, shard_ids in enumerate(waves, start=1):
        if breaker.reason or sigterm.reason:
            break
        due = {shard_id: run.due.commits[shard_id] for shard_id in shard_ids}
        failures += _run_wave(told, f"{number}/{len(waves)}", config, run.plan, runner, observer, breaker, due)
    return failures


# No task caches or persists results: whether work is done is decided by the commits alone.
@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_run(plan: Callable[[], planning.PlannedRun]) -> planning.PlannedRun:
    """Freeze the plan, or read the frozen one."""
    return plan()


class WaveFailedError(RuntimeError):
    """Shards of a wave were not labelled; raised so that Prefect shows it, and retries the wave if that can help."""

    def __init__(self, failures: list[ShardFailure], num_left: int) -> None:
        first = [f"{f.shard_id}: {f.error.splitlines()[0]}" for f in failures[:5]]
        left = [
            f"{counted(num_left, 'shard was', 'shards were')} not tried: the budget is spent or the run was asked "
            "to stop"
        ] * (num_left > 0)
        super().__init__("; ".join(first + left))
        self.failures = failures
        self.can_retry = not num_left and any(failure.kind != "unfinished" for failure in failures)


def _is_wave_failure(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether retrying a wave can help; replicas that cannot start were retried often enough by the pool."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WaveFailedError) and error.can_retry


@task(name="label-wave", cache_policy=NO_CACHE, persist_result=False)
def label_wave(
    config: RunConfig,
    plan: Plan,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    due: Mapping[str, int],
) -> int:
    """Label the shards of a wave that are not committed yet.

    Raises:
        WaveFailedError: some could not be labelled.
    """
    # A retried wave looks at the commits again, so it labels only what is left.
    store = planning.open_output(config)
    failures, num_left = engine.label_shards(runner, store, plan, due, observer, breaker)
    if failures or num_left:
        raise WaveFailedError(failures, num_left)
    return len(due)


def _run_wave(told: PrefectReporter, label: str, config: RunConfig, *work: Any) -> list[ShardFailure]:
    """Run a wave with its retries; a wave that fails for good does not prevent the following ones."""
    wave = label_wave.with_options(
        task_run_name=f"wave {label}",
        retries=config.waves.retries,
        retry_delay_seconds=config.waves.retry_delay_s,
        retry_condition_fn=_is_wave_failure,
    )
    try:
        orchestrated(told, partial(wave, config, *work), partial(label_wave.fn, config, *work))
    except WaveFailedError as error:
        return error.failures
    return []


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE, persist_result=False)
def verify_run(
    config: RunConfig, plan: Plan, *, failures: list[ShardFailure], stopped: str, committed_before: int, started: float
) -> RunSummary:
    """Remove losers, check that every image is accounted for, and write the summary."""
    return engine.finish_run(
        config, plan, failures=failures, stopped=stopped, committed_before=committed_before, started=started
    )


def _verify(told: PrefectReporter, *run: Any, **ended: Any) -> RunSummary:
    return orchestrated(told, partial(verify_run, *run, **ended), partial(verify_run.fn, *run, **ended))
