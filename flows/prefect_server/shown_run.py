"""A run of the command line as Prefect is told of it: its log, waves, verification and end."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

from flows.config import ConfigError, RunConfig
from flows.prefect_server.show_process import PATIENCE_S, ShowProcess
from flows.prefect_server.told import PrefectObserver, artifacts, ended_text
from flows.run import engine
from flows.run.observer import RunObserver, Several
from flows.run.planning import PlannedRun
from flows.run.summary import RunFailedError, RunSummary
from flows.run.waves import Wave
from pipelines.redaction import redacted


class ShownRun:
    """Tells the process that shows runs of one; nothing here waits for Prefect but the end.

    Args:
        process: shows it.
        config: of the run.
    """

    def __init__(self, process: ShowProcess, config: RunConfig) -> None:
        self._process = process
        values = config.model_dump(mode="json")
        process.say("show", values, config.waves.retries, config.waves.retry_delay_s)

    def log(self, level: int, text: str) -> None:
        """Add a line to the log; see RunRecord."""
        self._process.say("log", level, redacted(text), time.time())

    def progress(self, key: str, percent: float, description: str) -> None:
        """Show the progress; see RunRecord."""
        self._process.say("progress", key, percent, description)

    def event(self, values: dict[str, Any]) -> None:
        """Emit an event; see RunRecord."""
        self._process.say("artifact", "event", "event", values)

    def watch(self, wave: Wave) -> None:
        """Show a wave, and have its failed shards tried again as often as Prefect says."""
        self._process.say("wave", wave.label)
        while True:
            problem, can_retry = wave.problem()
            self._process.say("outcome", wave.label, redacted(problem), can_retry)
            if not problem or not self._process.is_to_try_again(wave.label):
                return

    def finish(self, *run: Any, **ended: Any) -> RunSummary:
        """Verify the run, and show that."""
        self._process.say("verify")
        try:
            summary = engine.finish_run(*run, **ended)
        except BaseException as error:
            self._process.say("verified", redacted(f"{type(error).__name__}: {error}"))
            raise
        self._process.say("verified", "")
        return summary

    def publish(self, run: PlannedRun, summary: RunSummary, report: str | None) -> None:
        """Publish what shows how the run has ended."""
        for artifact in artifacts(run, summary, report):
            self._process.say("artifact", *artifact)

    def end(self, error: BaseException | None, text: str = "") -> str:
        """Tell how the run has ended; wait, though not for long if it was to end at once; return what was not told."""
        name = "" if error is None else type(error).__name__
        self._process.say("end", name, redacted(text if error is None else str(error)))
        return self._process.wait_until_told(math.inf if isinstance(error, Exception | None) else PATIENCE_S)


def run_shown(
    config: RunConfig, run: PlannedRun, observer: RunObserver, process: ShowProcess
) -> tuple[RunSummary, str]:
    """Carry out a planned run, and show it.

    Returns:
        Its summary, and what could not be told of it; empty if all was.

    Raises:
        ConfigError: no Prefect server could be started; the run was stopped.
        The same errors as run_once.
    """
    shown = ShownRun(process, config)
    if run.runner is not None:
        process.on_failure = run.runner.stop
        if process.failure:
            run.runner.stop()
    committed = run.plan.num_shards - len(run.due.commits)
    try:
        summary = engine.run_once(
            config,
            run,
            Several(observer, PrefectObserver(shown, config.output.uri, run.plan, committed)),
            label=partial(engine.label_in_waves, watch=shown.watch),
            finish=shown.finish,
            publish=shown.publish,
        )
    except BaseException as error:
        shown.end(error)
        raise
    failure = None if summary.has_succeeded else RunFailedError(summary)
    untold = shown.end(failure, ended_text(run, summary))
    if process.failure and not summary.ok:
        raise ConfigError(f"{process.failure}. What is committed is kept")
    return summary, untold
