"""The flow: plan, waves of shards, verify, summary. Prefect shows and retries; the commits decide what is done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any
from uuid import UUID

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.states import State

from actors.pool import PoolEvent, ShardFailure, ShardRunner
from flows import planning, steps
from flows.breaker import CircuitBreaker
from flows.config import RunConfig
from flows.console import update_text
from flows.observer import RunObserver, Several, current_observer
from flows.redacted_logs import redact_run_logs
from flows.signals import Termination
from flows.summary import RunFailedError, RunSummary
from flows.updates import configs_to_run
from pipelines.coverage import UpdateCounts
from pipelines.manifest import Plan
from pipelines.types import ShardReceipt

_ARTIFACT_INTERVAL_S = 10.0

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
        RunFailedError: an image is not accounted for; everything committed is kept, and the same call resumes.
        TerminationSignal: SIGTERM came; what was in flight had config.pool.drain_grace_s to commit.
        ConfigError, SourceError, PromptTableError, PlanError, StorageError, ReplicaStartError: the run cannot start;
            nothing was written.
    """
    for one in configs_to_run(config, planning.open_output(config)):
        summary = _label_run(one)
        if not summary.ok:
            raise RunFailedError(summary)
    return summary.to_dict()


def _label_run(config: RunConfig) -> RunSummary:
    """Label one run, or resume it."""
    started = time.monotonic()
    with ExitStack() as stack:
        run = plan_run(config, stack)
        observer = Several(current_observer(), PrefectObserver(run.plan, run.plan.num_shards - len(run.due.commits)))
        return steps.run_once(
            config, run, observer, label=_label_in_waves, finish=verify_run, started=started, publish=publish
        )


def _label_in_waves(
    config: RunConfig,
    run: planning.PlannedRun,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    sigterm: Termination,
) -> list[ShardFailure]:
    """Label what is due wave by wave; none is begun once the run is to stop."""
    failures: list[ShardFailure] = []
    waves = steps.cut_waves(list(run.due.commits), config)
    for number, shard_ids in enumerate(waves, start=1):
        if breaker.reason or sigterm.reason:
            break
        due = {shard_id: run.due.commits[shard_id] for shard_id in shard_ids}
        failures += _run_wave(config, run.plan, runner, observer, breaker, f"{number}/{len(waves)}", due)
    return failures


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_run(config: RunConfig, stack: ExitStack) -> planning.PlannedRun:
    """Freeze the plan, or read the frozen one; the stack holds what the run needs until its shards are labelled."""
    return stack.enter_context(planning.planned_run(config))


class WaveFailedError(RuntimeError):
    """Shards of a wave are not labelled; raised so that Prefect shows it, and tries it again where that can help."""

    def __init__(self, failures: list[ShardFailure], num_left: int) -> None:
        first = [f"{f.shard_id}: {f.error.splitlines()[0]}" for f in failures[:5]]
        left = [f"{num_left} shards were not tried: the budget is spent or the run was asked to stop"] * (num_left > 0)
        super().__init__("; ".join(first + left))
        self.failures = failures
        self.can_retry = not num_left and any(failure.kind != "unfinished" for failure in failures)


def _is_wave_failure(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Say whether trying a wave again can help; replicas that cannot start were tried often enough by the pool."""
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
    """Label the shards of a wave whose due commits are not there yet.

    Raises:
        WaveFailedError: some could not be labelled.
    """
    store = planning.open_output(config)
    failures, num_left = steps.label_shards(runner, store, plan, due, observer, breaker)
    if failures or num_left:
        raise WaveFailedError(failures, num_left)
    return len(due)


def _run_wave(  # noqa: PLR0917  (what a wave is made of)
    config: RunConfig,
    plan: Plan,
    runner: ShardRunner,
    observer: RunObserver,
    breaker: CircuitBreaker,
    label: str,
    due: Mapping[str, int],
) -> list[ShardFailure]:
    """Run a wave under its retries; one that fails for good does not keep the following waves from running."""
    wave = label_wave.with_options(
        task_run_name=f"wave {label}",
        retries=config.waves.retries,
        retry_delay_seconds=config.waves.retry_delay_s,
        retry_condition_fn=_is_wave_failure,
    )
    try:
        wave(config, plan, runner, observer, breaker, due)
    except WaveFailedError as error:
        return error.failures
    return []


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE, persist_result=False)
def verify_run(
    config: RunConfig, plan: Plan, *, failures: list[ShardFailure], stopped: str, committed_before: int, started: float
) -> RunSummary:
    """Remove losers, check the ledger, write the summary."""
    return steps.finish_run(
        config, plan, failures=failures, stopped=stopped, committed_before=committed_before, started=started
    )


class PrefectObserver:
    """Shows a run in Prefect: a progress artifact at most every ten seconds, and log lines."""

    def __init__(self, plan: Plan, committed: int) -> None:
        self._log = get_run_logger()
        self._total, self._done = max(1, plan.num_shards), committed
        self._shown = time.monotonic()
        artifact = create_progress_artifact(
            progress=100 * committed / self._total,
            key="shards-committed",
            description=f"Committed shards of {plan.run_id}",
        )
        assert isinstance(artifact, UUID), "artifacts are created synchronously in a synchronous flow"
        self._artifact = artifact

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Log the plan."""
        self._log.info(
            "%s: %d images in %d shards, %d committed before", plan.run_id, plan.num_images, plan.num_shards, committed
        )

    def on_update(self, update: UpdateCounts) -> None:
        """Log what an update found."""
        self._log.info("update: %s", update_text(update))

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Count a shard."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= _ARTIFACT_INTERVAL_S or self._done >= self._total:
            self._shown = now
            update_progress_artifact(artifact_id=self._artifact, progress=100 * self._done / self._total)
        self._log.debug("%s committed by %s: %s", receipt.shard_id, receipt.attempt, dict(receipt.status_counts))

    def on_failure(self, failure: ShardFailure) -> None:
        """Log a shard that was given up."""
        self._log.error("%s failed after %d attempts: %s", failure.shard_id, failure.attempts, failure.error)

    def on_event(self, event: PoolEvent) -> None:
        """Log what happens to replicas."""
        self._log.info("%s: %s", event.kind, event.message)


def publish(summary: RunSummary, report: str | None) -> None:
    """Leave the run's counts and its problems as artifacts, and a link to its report."""
    if report is not None:
        create_link_artifact(
            link=report, key="label-collection-report", description=f"What {summary.run_id} looks like"
        )
    rows = [{"what": f"images: {name}", "number": number} for name, number in summary.ledger.items()]
    rows += [{"what": f"quarantined: {reason}", "number": number} for reason, number in summary.reason_counts.items()]
    rows.append({"what": "masks", "number": summary.num_annotations})
    create_table_artifact(
        table=rows, key="label-collection-counts", description=f"Images and masks of {summary.run_id}"
    )
    ended = "Complete" if summary.ok else "Incomplete"
    counts = ", ".join(f"{number:,} {name}" for name, number in summary.ledger.items())
    lines = [
        f"# {ended}: {summary.run_id}",
        f"Output: `{summary.output}`",
        f"Images: {counts}. Masks: {summary.num_annotations:,}.",
        f"{summary.committed} of {summary.shards} shards committed, {summary.labelled_now} of them by this flow run, "
        f"in {summary.elapsed_s:.1f} s.",
        *(f"* {problem.splitlines()[0]}" for problem in summary.problems[:50]),
    ]
    description = f"{ended}: {counts}; {summary.num_annotations:,} masks"
    create_markdown_artifact("\n\n".join(lines), key="label-collection-summary", description=description)
