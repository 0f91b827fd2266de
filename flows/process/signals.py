"""Handle SIGTERM and Ctrl-C: let shards in flight commit first, and end the process in time even if closing hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Together with the 30 s that shards in flight get by default, less than the 60 s recommended for pods.
GRACE_S = 20.0
STOPPED = {
    signal.SIGINT: "interrupted; what is committed is kept, and the same command resumes the run",
    signal.SIGTERM: "terminated; what is committed is kept, and the same command resumes the run",
}


class Terminated(BaseException):
    """Raised on SIGTERM; a BaseException, so that ``except Exception`` does not stop it."""


# Grace period of the finishing_first block that is open now, seconds; 0 if none is.
_finishing_s = 0.0


@dataclass
class Termination:
    """Records whether SIGTERM has come: ``reason`` is the message for the user, empty until then."""

    reason: str = ""


@contextlib.contextmanager
def finishing_first(stop: Callable[[], object], grace_s: float) -> Iterator[Termination]:
    """Defer SIGTERM to the end of this block, and call ``stop`` when it comes; a second SIGTERM takes effect at once.

    At the end of the block the signal is raised again for the handler that was installed before: that of ``handled``,
    Prefect's, or Python's default, which ends the process. Outside of the main thread, and inside another such block,
    this does nothing.

    Args:
        stop: asks the work in the block to finish; called in a signal handler.
        grace_s: seconds that finishing may take.

    Yields:
        The record of whether SIGTERM has come.
    """
    global _finishing_s  # noqa: PLW0603 - signals belong to the process
    termination = Termination()
    if threading.current_thread() is not threading.main_thread() or _finishing_s:
        yield termination
        return

    def on_sigterm(_number: int, _frame: object) -> None:
        termination.reason = "stopped: SIGTERM came; the same command resumes the run"
        signal.signal(signal.SIGTERM, before)  # the next SIGTERM is not deferred
        stop()

    before = signal.signal(signal.SIGTERM, on_sigterm)
    _finishing_s = max(grace_s, 1e-3)
    try:
        yield termination
    finally:
        _finishing_s = 0.0
        signal.signal(signal.SIGTERM, before)
    if termination.reason:
        signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Raise Terminated on SIGTERM, and force the process to end if closing takes longer than GRACE_S after a signal.

    Closing can hang if the signal went to the whole process group: then Ray or the embedded Prefect server is gone
    before this process has disconnected from it. Must be entered in the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    # Python writes each signal's number to this pipe no matter whose handler is installed; Prefect installs its own.
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
    """Start a timer at each signal that stops the process; at the end of the pipe the block has ended: cancel them."""
    timers: list[threading.Timer] = []
    num_sigterms = 0
    while data := os.read(reader, 1):
        if data[0] in STOPPED:
            number = signal.Signals(data[0])
            num_sigterms += number == signal.SIGTERM
            # Only the first SIGTERM grants the time to finish; a second one or Ctrl-C is meant to end the run now.
            finishes = number == signal.SIGTERM and num_sigterms == 1
            timer = threading.Timer(GRACE_S + (_finishing_s if finishes else 0.0), _end_now, [number])
            timer.daemon = True
            timer.start()
            timers.append(timer)
    for timer in timers:
        timer.cancel()
    os.close(reader)


def _end_now(number: signal.Signals) -> None:
    with contextlib.suppress(Exception):  # the terminal may be gone
        print(STOPPED[number], file=sys.stderr, flush=True)
    # Not sys.exit: in this thread it would end only the thread, and exit handlers are what may hang.
    os._exit(128 + number)


def end_in_time(code: int) -> None:
    """Force the process to end GRACE_S from now: exit handlers of libraries may wait for a server that is gone.

    Args:
        code: the exit code.
    """

    def end() -> None:
        with contextlib.suppress(Exception):  # the terminal may be gone
            sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(GRACE_S, end)
    timer.daemon = True
    timer.start()
