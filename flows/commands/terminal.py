"""What all commands share: the two streams of a terminal, the output that they name, lists of names."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console

OutputArgument = Annotated[str, typer.Argument(help="Folder or bucket prefix that holds the table.")]

console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 120)
errors = Console(highlight=False, soft_wrap=True, stderr=True)


def split_names(text: str | None) -> list[str] | None:
    """Return names that are separated by commas; None if none were given."""
    return None if text is None else [name.strip() for name in text.split(",")]


def checked_run_id(run_id: str | None) -> str | None:
    """Return the name of a run as it was given.

    Raises:
        typer.BadParameter: no run can have it; a path would lead out of the output.
    """
    from flows.config import check_run_id

    try:
        check_run_id("the name", run_id)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return run_id
