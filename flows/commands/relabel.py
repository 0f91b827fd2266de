"""`xsam-label relabel`: show or label the images of an output that a condition names."""

from __future__ import annotations

from rich.console import Console

from flows.commands.console import literal
from flows.commands.inspect import show_plan
from flows.commands.launch import launch
from flows.config import RunConfig
from pipelines.query.named_images import NothingNamedError


def run_relabel(config: RunConfig, console: Console, *, dry_run: bool, prefect: bool) -> bool:
    """Label images again, or go on with that, and print how it ended.

    Args:
        config: as relabel_config returns it.
        console: where to print.
        dry_run: whether to show only what would be labeled.
        prefect: as for launch.

    Returns:
        Whether all of them are accounted for; also if there are none.

    Raises:
        SourceError: the condition is none.
        Others as for launch.
    """
    try:
        if dry_run:
            show_plan(config, console)
            return True
        return launch(config, console, prefect=prefect).has_succeeded
    except NothingNamedError as error:
        console.print(f"{literal(str(error))}: nothing is labeled again")
        return True
