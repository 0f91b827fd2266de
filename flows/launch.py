"""Start a run from the command line: plan first, so that mistakes show at once, then the flow under live progress."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from tempfile import TemporaryFile

from rich.console import Console

from flows import planning, steps
from flows.config import ConfigError, RunConfig
from flows.console import ConsoleObserver, ListingProgress, show_summary
from flows.observer import Several, observed_by
from flows.signals import start_unharmed
from flows.summary import RunFailedError, RunSummary
from flows.updates import as_planned, configs_to_run


def launch(config: RunConfig, console: Console, *, prefect: bool) -> RunSummary:
    """Run or resume, show progress and the summary, and return it.

    Args:
        config: the run.
        console: where to show it.
        prefect: as a Prefect flow, or the same steps directly.

    Raises:
        ConfigError, SourceError, PlanError, StorageError, ReplicaStartError: the run could not start; nothing was
            written.
    """
    for one in configs_to_run(config, planning.open_output(config)):
        summary = _launch_run(one, console, prefect=prefect)
        if not summary.ok:
            break
    return summary


def _launch_run(config: RunConfig, console: Console, *, prefect: bool) -> RunSummary:
    with ExitStack() as stack:
        with console.status("planning") as spinner:

            def before_writing() -> None:
                if prefect:
                    spinner.update("starting Prefect")
                    _reach_prefect()

            run = stack.enter_context(planning.planned_run(config, before_writing, ListingProgress(console, spinner)))
        observer = Several(stack.enter_context(ConsoleObserver(console)))
        stack.enter_context(observed_by(observer))
        # Listed, compared and planned once: what follows takes this run, by its name, and looks for no other.
        stack.enter_context(planning.at_hand(run))
        config = as_planned(run.plan, config) if config.incremental else _named(config, run.plan.run_id)
        summary = _flow(config) if prefect else steps.run_directly(config, observer)
    show_summary(console, summary)
    return summary


def _named(config: RunConfig, run_id: str) -> RunConfig:
    """Return the same config for just this run."""
    return replace(config, output=replace(config.output, run_id=run_id))


def _reach_prefect() -> None:
    """Reach the Prefect server of PREFECT_API_URL, or start the embedded one.

    Raises:
        ConfigError: it does not answer, or cannot be started.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
        if failure is not None:
            raise ConfigError(
                f"the Prefect server at {settings.api.url} does not answer ({failure}); start it, unset "
                "PREFECT_API_URL to run on an embedded one, or run with --no-prefect"
            )
        return
    try:
        # Tried first: the embedded server would be waited for until its time is up.
        settings.home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=settings.home):
            pass
        start_unharmed(lambda: get_client(sync_client=True))
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the embedded Prefect server cannot be started ({error}); it needs a folder that it can write: set "
            "PREFECT_HOME to one, or run with --no-prefect"
        ) from error


def _flow(config: RunConfig) -> RunSummary:
    from flows.label_collection import label_collection

    try:
        return RunSummary(**label_collection(config))
    except RunFailedError as error:
        return error.summary
