"""Survive the loss of standard output and error: a closed pipe, a full disk, a lost connection."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

_PIPE_CLOSED = 128 + signal.SIGPIPE  # the exit code of a tool that SIGPIPE ends
_CANNOT_WRITE = 2


class OutputGoneError(BaseException):
    """Standard output can no longer be written; a BaseException, like Terminated."""


class _Stream:
    """A standard stream that drops everything written to it after the first failure.

    Attributes:
        failure: the first error; None until then.
    """

    def __init__(self, stream: TextIO, on_failure: Callable[[OSError], None] | None = None) -> None:
        self._stream, self._on_failure = stream, on_failure
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the stream."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it after a failure."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, or drop them after a failure."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Flush the stream, or do nothing after a failure."""
        self._do(self._stream.flush)

    def _do(self, action: Callable[[], object]) -> None:
        if self.failure is None:
            try:
                action()
            except OSError as error:
                self.failure = error
                self._drop()
        if self.failure is not None and self._on_failure is not None:
            self._on_failure(self.failure)

    def _drop(self) -> None:
        """Redirect the descriptor to the null device, so that flushing buffers, here or in a library, succeeds."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


class _Output:
    """Decides what happens to a command whose standard output fails."""

    def __init__(self) -> None:
        self.is_outlived = False
        self._is_told = False

    def on_failure(self, error: OSError) -> None:
        """Once, end the command from its main thread, or warn that it goes on without standard output.

        Raises:
            OutputGoneError: the command only prints, so there is no point in going on.
        """
        if self._is_told or not (self.is_outlived or threading.current_thread() is threading.main_thread()):
            return
        self._is_told = True
        if not self.is_outlived:
            raise OutputGoneError
        print(
            f"warning: standard output cannot be written ({error.strerror or error}); the command goes on without it",
            file=sys.stderr,
            flush=True,
        )


_output = _Output()


def outlive_terminal() -> None:
    """Let this command finish even if its standard output is lost, because it does more than print."""
    _output.is_outlived = True


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Guard the standard streams within this block, which ends in SystemExit.

    If standard output fails, a command that only prints ends: with exit code 141, like a tool that SIGPIPE ends, if a
    pipe was closed, or else with a message and 2. A command that has called ``outlive_terminal`` goes on and keeps its
    own exit code.
    """
    global _output  # streams belong to the process
    _output, before = _Output(), (sys.stdout, sys.stderr)
    out = _Stream(sys.stdout or _nowhere(), _output.on_failure)
    errors = _Stream(sys.stderr or _nowhere())
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, errors)
    try:
        try:
            yield
        finally:
            out.flush()
            errors.flush()
    except OutputGoneError:
        sys.exit(_say_failure(out.failure))
    finally:
        sys.stdout, sys.stderr = before


def _nowhere() -> TextIO:
    """Return a null stream for a descriptor that was closed from the start; its number is then taken, too."""
    return open(os.devnull, "w")


def _say_failure(error: OSError | None) -> int:
    """Print why a command ends, unless its reader closed the pipe, and return its exit code."""
    if error is not None and error.errno == errno.EPIPE:
        return _PIPE_CLOSED
    print(f"error: standard output cannot be written: {error}", file=sys.stderr, flush=True)
    return _CANNOT_WRITE
