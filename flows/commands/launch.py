"""Start a run from the command line: plan it first, so that mistakes show at once, then run the flow with progress."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from rich.console import Console

from flows.commands.console import ConsoleObserver, ListingProgress, literal, show_summary
from flows.config import ConfigError, RunConfig
from flows.prefect_server.embedded import EmbeddedServer, embedded_server
from flows.process.signals import start_unharmed
from flows.run import engine, planning
from flows.run.observer import RunObserver, Several, observed_by
from flows.run.summary import RunFailedError, RunSummary
from flows.run.updates import as_planned, configs_to_run
from pipelines.planning.plan import read_plan


def launch(config: RunConfig, console: Console, *, prefect: bool) -> RunSummary:
    """Run or resume, show progress and the summary, and return it.

    Args:
        config: the run.
        console: where to show progress and summary.
        prefect: whether to run as a Prefect flow, or the same steps directly.

    Raises:
        ConfigError, SourceError, PlanError, StorageError, ReplicaStartError: the run could not start; nothing was
            written.
    """
    store, run_id = planning.open_output(config), config.output.run_id
    if config.incremental and run_id is not None and read_plan(store, run_id) is not None:
        console.print(
            f"run {literal(run_id)} is gone on with as it was planned, and nothing new is looked for: "
            "leave out the run id to label what is new"
        )
    return engine.run_each(configs_to_run(config, store), lambda one: _launch_run(one, console, prefect=prefect))


def _launch_run(config: RunConfig, console: Console, *, prefect: bool) -> RunSummary:
    with ExitStack() as stack:
        with console.status("planning") as spinner:

            def before_writing() -> None:
                # Prefect is started while a failure still leaves nothing written.
                if prefect:
                    spinner.update("starting Prefect")
                    stack.enter_context(_reach_prefect())

            run = stack.enter_context(planning.planned_run(config, before_writing, ListingProgress(console, spinner)))
        observer = Several(stack.enter_context(ConsoleObserver(console)))
        stack.enter_context(observed_by(observer))
        # Everything below takes the run planned here, by its name: planning again could find another.
        stack.enter_context(planning.at_hand(run))
        config = as_planned(run.plan, config) if config.incremental else _named(config, run.plan.run_id)
        summary = _flow(config, observer, console) if prefect else engine.run_directly(config, observer)
    show_summary(console, summary, config.prompts)
    return summary


def _named(config: RunConfig, run_id: str) -> RunConfig:
    """Return the config with the run's name."""
    return config.replace(output=config.output.replace(run_id=run_id))


def _reach_prefect() -> AbstractContextManager[Any]:
    """Check that the Prefect server of PREFECT_API_URL answers, or start an embedded one.

    Returns:
        A context manager with the settings under which the flow is to run.

    Raises:
        ConfigError: the server does not answer, or cannot be started.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import (
        PREFECT_API_URL,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
        get_current_settings,
        temporary_settings,
    )

    settings = get_current_settings()
    if settings.api.url:
        with get_client(sync_client=True) as client:
            failure = client.api_healthcheck()
        if failure is not None:
            raise ConfigError(
                f"the Prefect server at {settings.api.url} does not answer ({failure}); start it, unset "
                "PREFECT_API_URL to run on an embedded one, or run with --no-prefect"
            )
        return nullcontext()
    _check_home(settings.home)
    servers: list[EmbeddedServer] = []
    # Settings made in this process would not reach the server's process otherwise.
    variables = settings.to_environment_variables(exclude_unset=True)
    timeout_s = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    try:
        start_unharmed(lambda: servers.append(embedded_server(variables, timeout_s)))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the embedded Prefect server cannot be started ({error}); its database is in {settings.home}. Give it "
            "longer with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, name a server with PREFECT_API_URL, or run "
            "with --no-prefect"
        ) from error
    return temporary_settings({PREFECT_API_URL: servers[0].api_url})


def _check_home(home: Path) -> None:
    """Check that the embedded server can write to its folder, before waiting for it to start.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        home.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError(
            f"the embedded Prefect server cannot be started ({error}); it needs a folder that it can write: set "
            "PREFECT_HOME to one, or run with --no-prefect"
        ) from error


def _flow(config: RunConfig, observer: RunObserver, console: Console) -> RunSummary:
    """Run as a Prefect flow. If the server goes away meanwhile, Prefect's record is incomplete, but the run goes on."""
    from flows.label_collection import label_collection
    from flows.prefect_server.reports import is_prefects, telling

    with telling() as told:
        try:
            summary = RunSummary(**label_collection(config))
        except RunFailedError as error:
            summary = error.summary
        except Exception as error:
            if not is_prefects(error):
                raise
            told.note(error)
            # The flow may have ended, and only its bookkeeping failed; otherwise it is continued without Prefect.
            summary = told.summary or engine.run_directly(config, observer)
            told.end(summary)
    if told.missed:
        console.print(
            f"[yellow]warning:[/] Prefect could not be told of all of this run ({literal(told.missed)}); its table "
            "does not depend on that",
            highlight=False,
        )
    return summary
