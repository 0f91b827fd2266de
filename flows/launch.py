"""Start a run from the command line: plan first, so that mistakes show at once, then the flow under live progress."""

from __future__ import annotations

from rich.console import Console

from flows import steps
from flows.config import RunConfig
from flows.console import ConsoleObserver, show_summary
from flows.observer import observed_by
from flows.summary import RunFailedError, RunSummary


def launch(config: RunConfig, console: Console, *, prefect: bool) -> RunSummary:
    """Run or resume, show progress and the summary, and return it.

    Args:
        config: the run.
        console: where to show it.
        prefect: as a Prefect flow, or the same steps directly.

    Raises:
        ConfigError, SourceError, PlanError, StorageError, ReplicaStartError: the run could not start.
    """
    with console.status("planning"):
        steps.plan_run(config)
    with ConsoleObserver(console) as observer, observed_by(observer):
        summary = _flow(config, console) if prefect else steps.run_directly(config, observer)
    show_summary(console, summary)
    return summary


def _flow(config: RunConfig, console: Console) -> RunSummary:
    with console.status("starting Prefect"):
        from flows.label_collection import label_collection
    try:
        return RunSummary(**label_collection(config))
    except RunFailedError as error:
        return error.summary
