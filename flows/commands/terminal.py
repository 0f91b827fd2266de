"""What all commands share: the consoles for standard output and error, common options, and how those are parsed."""

from __future__ import annotations

import csv
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer
from rich.console import Console

OutputArgument = Annotated[str, typer.Argument(help="Folder or bucket prefix that holds the table.")]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is there: a file, or a folder of nothing but such a result.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]

# Into a pipe or file, 120 columns: rich would assume a terminal of 80 and cut tables to it. Without emoji=False it
# would print `10:100:20` with a picture for the name between the colons.
console = Console(
    highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout and sys.stdout.isatty() else 120
)
errors = Console(highlight=False, emoji=False, soft_wrap=True, stderr=True)


def heard(shown: Console) -> Console:
    """Return where to print what --quiet does not leave out: the standard error where ``console`` is quiet."""
    return errors if shown is console and console.quiet else shown


class Verbosity:
    """How much this command prints, beyond whether ``console`` is quiet."""

    has_details = False
    """Whether errors are shown with their causes and where they came from."""


def command(app: typer.Typer, example: str, name: str | None = None) -> Callable[[Callable[..., None]], Any]:
    """Make a function a command of an app, with the options that all commands have.

    Args:
        app: the app.
        example: how it is typed, for its help.
        name: its name; by default the function's.
    """

    def register(function: Callable[..., None]) -> Any:
        return app.command(name, epilog=f"Example: {example}")(with_options(_set_verbosity)(function))

    return register


def _set_verbosity(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show where an error comes from.")] = False,
) -> None:
    console.quiet, Verbosity.has_details = quiet, verbose


def with_options(options: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command all options of a function, which is called with them first.

    What the function returns, the command gets as its first argument, if it returns anything.
    """

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        added = inspect.signature(options, eval_str=True).parameters
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        has_result = inspect.signature(options, eval_str=True).return_annotation is not None

        @functools.wraps(function)
        def wrapped(**values: Any) -> None:
            made = options(**{name: values.pop(name) for name in added})
            function(*[made] * has_result, **values)

        own = own[1:] if has_result else own
        parts = [*added.values(), *own] if has_result else [*own, *added.values()]
        # typer reads both: each parameter with its annotation.
        wrapped.__signature__ = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in parts])  # type: ignore[attr-defined]
        wrapped.__annotations__ = {one.name: one.annotation for one in parts}
        return wrapped

    return wrap


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
