"""The command line `xsam-label`: runs a command, and turns errors into messages and exit codes.

torch, ray and prefect take seconds to import, so commands import them when they need them.
"""

from __future__ import annotations

import signal
import sys
import traceback
from importlib.metadata import version as version_of
from typing import Annotated, Any, NoReturn

import typer

from flows.commands import labeling, outputs
from flows.commands.terminal import Verbosity, errors
from flows.process import signals, streams
from flows.process.environment import prepare_environment

app = typer.Typer(
    help="Label image collections with X-SAM: Parquet tables of COCO RLE masks, committed exactly once.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(labeling.app)
app.add_typer(outputs.app)

_INTERRUPTED = 128 + signal.SIGINT


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"xsam-label {version_of('xsam-label')}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Handle the options before a command."""


def console_script() -> None:
    """Run the command line, and make sure that the process ends with it."""
    try:
        main()
    except SystemExit as end:
        signals.end_in_time(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def main() -> None:
    """Run the command line; an error that the user can fix becomes one message and exit code 2, not a traceback."""
    prepare_environment()
    with streams.guarded():
        _run()


def _run() -> NoReturn:
    try:
        with signals.handled():
            code = app(standalone_mode=False)
        if code == _INTERRUPTED:  # typer returns this for Ctrl-C instead of raising
            raise KeyboardInterrupt
        sys.exit(code)
    except signals.Terminated:
        _stopped(signal.SIGTERM)
    except (typer.Abort, KeyboardInterrupt):
        _stopped(signal.SIGINT)
    except Exception as error:  # noqa: BLE001  (shown as a message, or as a traceback without secrets)
        if (usage := _usage_error(error)) is not None:
            usage.show()
            sys.exit(usage.exit_code)
        from pipelines.errors import DamagedError, UserError
        from pipelines.redaction import redacted

        if not isinstance(error, UserError):
            sys.stderr.write(redacted(traceback.format_exc()))
            sys.exit(1)
        from flows.commands.console import literal

        if Verbosity.has_details:
            sys.stderr.write(redacted(traceback.format_exc()))
        # After the first line, a replica's error continues with its traceback.
        text = str(error) if type(error).__name__ != "ReplicaStartError" else str(error).partition("\n")[0]
        if isinstance(error, DamagedError) and "/plan" not in text:  # a plan can only be restored by hand
            text += "; `xsam-label verify` names what is damaged, `run --check` and `retry --check` label it again"
        errors.print(f"[red]error:[/] {literal(redacted(text))}")
        sys.exit(2)


def _stopped(number: signal.Signals) -> NoReturn:
    errors.print(signals.STOPPED[number])
    sys.exit(128 + number)


def _usage_error(error: Exception) -> Any:
    """Return the error if it is a usage error of typer's bundled click or of the click package; None otherwise.

    By its attributes, since the two packages' classes are not related.
    """
    return error if hasattr(error, "show") and hasattr(error, "exit_code") else None


if __name__ == "__main__":
    console_script()
