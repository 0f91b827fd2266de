"""Start a run from the command line: plan first, so that mistakes show at once, then the flow under live progress."""

from __future__ import annotations

from contextlib import ExitStack

from rich.console import Console

from flows import planning, steps
from flows.config import RunConfig
from flows.console import ConsoleObserver, show_summary
from flows.observer import observed_by
from flows.signals import start_unharmed
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
    with ExitStack() as stack:
        with console.status("planning"):
            # Held until the run has ended, so that Ray is started once.
            stack.enter_context(planning.planned_run(config))
        observer = stack.enter_context(ConsoleObserver(console))
        stack.enter_context(observed_by(observer))
        summary = _flow(config, console) if prefect else steps.run_directly(config, observer)
    show_summary(console, summary)
    return summary


def _flow(config: RunConfig, console: Console) -> RunSummary:
    with console.status("starting Prefect"):
        from prefect.client.orchestration import get_client

        from flows.label_collection import label_collection

        # Starts the embedded server, unless there is one to talk to.
        start_unharmed(lambda: get_client(sync_client=True))
    try:
        return RunSummary(**label_collection(config))
    except RunFailedError as error:
        return error.summary
