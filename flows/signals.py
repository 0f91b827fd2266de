"""Ctrl-C and SIGTERM on the command line: the run closes what it started, and ends in time even if that hangs."""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

GRACE_S = 20.0
STOPPED = {
    signal.SIGINT: "interrupted; what is committed is kept, and the same command resumes the run",
    signal.SIGTERM: "terminated; what is committed is kept, and the same command resumes the run",
}


class Terminated(BaseException):
    """SIGTERM, as an exception that no handler of ordinary errors stops."""


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise Terminated on SIGTERM, and end the process GRACE_S after a signal if closing takes longer.

    Closing can hang where a signal went to the whole process group: Ray or an embedded Prefect server is gone before
    this process has said good-bye to it. To be entered in the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    # Python writes each signal's number there, whoever's handler is installed: Prefect puts its own in place.
    old_writer = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_in_time, args=(reader,), name="end-in-time", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(old_writer)
        signal.signal(signal.SIGTERM, before)
        os.close(writer)


def _raise_terminated(_number: int, _frame: object) -> None:
    raise Terminated


def _end_in_time(reader: int) -> None:
    """Wait for a signal to stop, or for the end of the pipe."""
    while data := os.read(reader, 1):
        if data[0] in STOPPED:
            number = signal.Signals(data[0])
            timer = threading.Timer(GRACE_S, _end_now, [number])
            timer.daemon = True
            timer.start()
    os.close(reader)


def _end_now(number: signal.Signals) -> None:
    print(STOPPED[number], file=sys.stderr, flush=True)
    os._exit(128 + number)


def start_unharmed(start: Callable[[], object]) -> None:
    """Run something that starts processes, so that Ctrl-C in a terminal, which reaches them too, does not end them.

    Raises:
        Exception: what it raised.
    """
    failures: list[Exception] = []

    def run() -> None:
        # Processes inherit the mask of the thread that starts them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            start()
        except Exception as error:  # noqa: BLE001 - raised in the caller's thread
            failures.append(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=lambda: context.run(run), name="start", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failures:
        raise failures[0]
