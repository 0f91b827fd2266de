"""What all commands share: the consoles for standard output and error, and the parsing of common arguments."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.console import Console

OutputArgument = Annotated[str, typer.Argument(help="Folder or bucket prefix that holds the table.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

# Into a pipe or file, 120 columns: rich would assume a terminal of 80 and cut tables to it. Without emoji=False it
# would print `10:100:20` with a picture for the name between the colons.
console = Console(
    highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 120
)
errors = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def split_names(given: Iterable[str] | None) -> list[str] | None:
    """Split the values of an option that names things, each one name or several with commas between them.

    Returns:
        The names in order, of which one that holds a comma is in double quotes; None if the option was not given.

    Raises:
        typer.BadParameter: a quote is not closed, or something follows it.
    """
    return [name for text in given for name in _split(text)] if given else None


def _split(text: str) -> list[str]:
    try:
        (names,) = csv.reader([" ".join(text.splitlines()) or " "], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise typer.BadParameter(f'names cannot be read ({error}); write them as: dog, "bowl, glass", cat') from error
    return [name.strip() for name in names] or [""]


def checked_run_id(run_id: str | None) -> str | None:
    """Check a run id given on the command line, and return it.

    Raises:
        typer.BadParameter: it is not a valid run id. A path, for example, would lead out of the output.
    """
    from flows.config import check_run_id

    try:
        check_run_id("the name", run_id)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return run_id
