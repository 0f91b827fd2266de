"""Start a run from the command line: plan it first, so that mistakes show at once, then run the flow with progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console

from actors.pool.open import importing_ahead
from actors.predictor.labeler import RunLabelerFactory
from flows.commands.console import ConsoleObserver, ListingProgress, literal, show_summary, show_warnings
from flows.config import RunConfig
from flows.prefect_server.reach import may_name_server
from flows.prefect_server.show_process import ShowProcess, show_process
from flows.prefect_server.shown_run import run_shown
from flows.run import engine, planning
from flows.run.observer import Several, observed_by
from flows.run.summary import RunSummary
from flows.run.updates import as_planned, configs_to_run
from pipelines.planning.plan import read_plan
from pipelines.redaction import counted


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
    shows: list[ShowProcess] = []
    with ExitStack() as stack:
        # In an output without runs there is something to label, unless the run is refused.
        if not planning.open_output(config).folders("_runs"):
            stack.enter_context(importing_ahead(config.pool, RunLabelerFactory.preload))
        with console.status("planning") as spinner:

            def begin() -> Callable[[], None]:
                """Begin what shows the run beside the replicas, and check what can be while nothing is written."""
                text = _starting(config, prefect=prefect)
                if console.is_terminal:
                    spinner.update(text)
                else:  # where no spinner turns: this may take minutes, and would be silent
                    console.print(text, highlight=False)
                if not prefect:
                    return lambda: None
                shows.append(show_process())
                return shows[0].check

            run = stack.enter_context(planning.planned_run(config, begin, ListingProgress(console, spinner)))
            # A run with nothing to label starts no server, but is shown by one that is there.
            if prefect and not shows and may_name_server():
                process = show_process(may_start=False)
                shows += [process] * process.has_server()
        observer = Several(stack.enter_context(ConsoleObserver(console)))
        stack.enter_context(observed_by(observer))
        # Everything below takes the run planned here, by its name: planning again could find another.
        stack.enter_context(planning.at_hand(run))
        config = as_planned(run.plan, config) if config.incremental else _named(config, run.plan.run_id)
        if shows:
            summary, untold = run_shown(config, run, observer, shows[0])
        else:
            summary, untold = engine.run_directly(config, observer), ""
    show_summary(console, summary, config.prompts)
    if untold:
        warning = f"Prefect could not be told of all of this run ({untold}); its table does not depend on that"
        show_warnings(console, [warning])
    return summary


def _starting(config: RunConfig, *, prefect: bool) -> str:
    """Say what is started before the first image is labeled."""
    if config.pool.runner == "in_process":
        return f"starting {'Prefect and ' if prefect else ''}the model"
    if config.pool.chosen_runner == "processes":
        num = counted(config.pool.replicas, "replica")
        return f"starting {'Prefect and ' if prefect else ''}{num} on this machine's CPU, without Ray"
    return f"starting {'Prefect, ' if prefect else ''}Ray and the replicas"


def _named(config: RunConfig, run_id: str) -> RunConfig:
    """Return the config with the run's name."""
    return config.replace(output=config.output.replace(run_id=run_id))
