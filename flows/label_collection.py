"""The Prefect flow: plan, label, verify, summarize.

Prefect shows progress in waves of shards, and retries waves; shards are handed out without regard to them. What is done
is decided by the commits in the output alone: Prefect's states, caches and results are never relied on.
"""

from __future__ import annotations

from collections.abc import Callable
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
from flows.run.waves import ShardStream, Wave, cut_waves
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
            one image of a run could be labeled.
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
    if fruitless is not None:  # only now: one bad image of last night must not keep tonight's from being labeled
        raise RunFailedError(fruitless)
    return summary.to_dict()


def _label_run(config: RunConfig, told: PrefectReporter) -> RunSummary:
    """Label one run, or resume it."""
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
    """Label the due shards in one stream, with a task run that watches each wave of them."""
    due = run.due.commits
    waves, watch = cut_waves(list(due), config), partial(_watch_wave, told, config)
    stream = ShardStream(planning.open_output(config), run.plan, due, waves, watch)
    return engine.label_shards(runner, stream, observer, breaker, sigterm)


# No task caches or persists results: whether work is done is decided by the commits alone.
@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_run(plan: Callable[[], planning.PlannedRun]) -> planning.PlannedRun:
    """Freeze the plan, or read the frozen one."""
    return plan()


class WaveFailedError(RuntimeError):
    """Shards of a wave were not labeled; raised so that Prefect shows it, and retries the wave if that can help."""

    def __init__(self, failures: list[ShardFailure], num_left: int) -> None:
        first = [f"{f.shard_id}: {f.error.splitlines()[0]}" for f in failures[:5]]
        left = [
            f"{counted(num_left, 'shard was', 'shards were')} not labeled: the budget is spent or the run has stopped"
        ] * (num_left > 0)
        super().__init__("; ".join(first + left))
        self.can_retry = not num_left and any(failure.kind != "unfinished" for failure in failures)


def _is_wave_failure(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether retrying a wave can help; replicas that cannot start were retried often enough by the pool."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WaveFailedError) and error.can_retry


@task(name="label-wave", cache_policy=NO_CACHE, persist_result=False)
def label_wave(wave: Wave) -> None:
    """Wait until the shards of a wave are labeled; a retry has those labeled again that could not be.

    Raises:
        WaveFailedError: some could not be labeled.
    """
    failures, num_left = wave.outcome()
    if failures or num_left:
        raise WaveFailedError(failures, num_left)


def _watch_wave(told: PrefectReporter, config: RunConfig, wave: Wave) -> None:
    """Show a wave as a task run, with its retries; whatever becomes of that, labeling goes on."""
    shown = label_wave.with_options(
        task_run_name=f"wave {wave.label}",
        retries=config.waves.retries,
        retry_delay_seconds=config.waves.retry_delay_s,
        retry_condition_fn=_is_wave_failure,
    )
    try:
        orchestrated(told, partial(shown, wave), partial(label_wave.fn, wave))
    except WaveFailedError:
        pass  # the failures are the run's as well
    except Exception as error:  # noqa: BLE001 - Prefect's, since the wave itself raises nothing else
        told.note(error)


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
