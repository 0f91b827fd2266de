"""The Prefect flow: plan, label, verify, summarize.

Prefect shows progress in waves of shards, and retries waves; shards are handed out without regard to them. What is done
is decided by the commits in the output alone: Prefect's states, caches and results are never relied on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

from prefect import flow, get_run_logger
from prefect.states import Completed

from flows.config import RunConfig
from flows.prefect_server.redacted_logs import redact_run_logs
from flows.prefect_server.reports import FlowRecord, PrefectReporter, current_reporter, orchestrated, publish_one
from flows.prefect_server.tasks import plan_run, verify_run, watch_wave
from flows.prefect_server.told import PrefectObserver, artifacts, ended_text
from flows.run import engine, planning
from flows.run.observer import Several, current_observer
from flows.run.planning import PlannedRun
from flows.run.summary import RunFailedError, RunSummary
from flows.run.updates import configs_to_run
from flows.run.waves import Wave

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
        summary, text = _label_run(one, told)
        if not summary.ok:
            raise RunFailedError(summary)
        fruitless = fruitless or (summary if summary.fruitless else None)
    if fruitless is not None:  # only now: one bad image of last night must not keep tonight's from being labeled
        raise RunFailedError(fruitless)
    # Prefect keeps the message, and its caller gets the data.
    return cast("dict[str, Any]", Completed(message=text, data=summary.to_dict()))


def _label_run(config: RunConfig, told: PrefectReporter) -> tuple[RunSummary, str]:
    """Label one run, or resume it; return its summary, also in words."""
    with ExitStack() as stack:
        planned: list[PlannedRun] = []

        def plan() -> PlannedRun:
            """Plan only once, even if Prefect's bookkeeping fails afterwards and the step is called again."""
            if not planned:
                planned.append(stack.enter_context(planning.planned_run(config)))
            return planned[0]

        run = orchestrated(told, partial(plan_run, plan), plan)
        committed = run.plan.num_shards - len(run.due.commits)
        summary = engine.run_once(
            config,
            run,
            Several(current_observer(), PrefectObserver(FlowRecord(told), config.output.uri, run.plan, committed)),
            label=partial(engine.label_in_waves, watch=partial(_watch_wave, told, config)),
            finish=partial(_verify, told),
            publish=partial(_publish, told),
        )
        return summary, ended_text(run, summary)


def _watch_wave(told: PrefectReporter, config: RunConfig, wave: Wave) -> None:
    watch_wave(told, wave.label, wave.problem, config.waves.retries, config.waves.retry_delay_s)


def _verify(told: PrefectReporter, *run: Any, **ended: Any) -> RunSummary:
    verify: Callable[[], RunSummary] = partial(engine.finish_run, *run, **ended)
    summary: RunSummary = orchestrated(told, partial(verify_run, verify), verify)
    return summary


def _publish(told: PrefectReporter, run: PlannedRun, summary: RunSummary, report: str | None) -> None:
    for artifact in artifacts(run, summary, report):
        publish_one(told, *artifact)
    told.finish()
    if told.missed:
        get_run_logger().warning("Prefect could not be told of all of this run (%s)", told.missed)
