"""The command line inside this process, with a model that is a fake: what a command printed, and how it ended."""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import dataclass

import pytest

from flows import cli
from flows.commands import terminal
from tests.reliability.small_run import as_driver
from tests.support.fakes import BrightPredictor


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code.
        out, errors: what it printed.
    """

    code: int
    out: str
    errors: str

    @property
    def is_refusal(self) -> bool:
        """Whether it said in one message why it could not do it, and that alone."""
        return self.code == 2 and self.errors.startswith("error: ")


def command(*args: object, predictor: BrightPredictor | None = None) -> Ended:
    """Run `xsam-label ...` as a process of its own would. An error that a user would see as a traceback is raised."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        as_driver(predictor or BrightPredictor()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        patch.setattr(sys, "argv", ["xsam-label", *map(str, args)])
        for console in (terminal.console, terminal.errors):
            patch.setattr(console, "_width", 4000)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    return Ended(code if isinstance(code, int) else 0 if code is None else 1, out.getvalue(), errors.getvalue())
