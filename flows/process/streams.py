"""The two streams of a terminal, which may go away: a pipe that nobody reads, a full disk, a connection that is cut."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

_PIPE_CLOSED = 128 + signal.SIGPIPE  # as of a tool that the signal ends
_CANNOT_WRITE = 2


class OutputGoneError(BaseException):
    """Nobody takes what a command prints; as Terminated, no handler of ordinary errors stops it."""


class _Stream:
    """A text stream of this process; from the first failure on what is written to it is dropped.

    Attributes:
        failure: the error of that first one.
    """

    def __init__(self, stream: TextIO, on_failure: Callable[[OSError], None] | None = None) -> None:
        self._stream, self._on_failure = stream, on_failure
        self.failure: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        self._do(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write texts, or drop them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Hand over what was written, or drop it."""
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
        """Let the descriptor lead nowhere, for what still stands in a buffer, here or in a library."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


class _Output:
    """What becomes of a command whose standard output fails."""

    def __init__(self) -> None:
        self.is_outlived = False
        self._is_told = False

    def on_failure(self, error: OSError) -> None:
        """End the command in its main thread, once; or say that it goes on without.

        Raises:
            OutputGoneError: standard output is what the command is for.
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
    """Let this command come to its end without its standard output: it does more than print."""
    _output.is_outlived = True


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Keep a standard stream that fails from ending what goes on in this block, which ends in SystemExit.

    A command that only prints ends then with 141, as one that SIGPIPE ends, or with one message and 2 where it is not
    a pipe that was closed. One that has called ``outlive_terminal`` goes on, and its exit code is its own.
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
    """Return a stream for a descriptor that was closed from the beginning; no other file gets its number then."""
    return open(os.devnull, "w")


def _say_failure(error: OSError | None) -> int:
    """Say why a command ends, unless its reader has had enough; return its exit code."""
    if error is not None and error.errno == errno.EPIPE:
        return _PIPE_CLOSED
    print(f"error: standard output cannot be written: {error}", file=sys.stderr, flush=True)
    return _CANNOT_WRITE
