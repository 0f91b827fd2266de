"""SIGTERM lets a run finish what is in flight; on the command line it and Ctrl-C end a run in time even if it hangs."""

from __future__ import annotations

import contextlib
import contextvars
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

GRACE_S = 20.0
STOPPED = {
    signal.SIGINT: "interrupted; what is committed is kept, and the same command resumes the run",
    signal.SIGTERM: "terminated; what is committed is kept, and the same command resumes the run",
}


class Terminated(BaseException):
    """SIGTERM, as an exception that no handler of ordinary errors stops."""


# Seconds that the block of finishing_first which is open now may take after SIGTERM.
_finishing_s = 0.0


@dataclass
class Termination:
    """Whether SIGTERM has come: why the run stops, for people; empty until then."""

    reason: str = ""


@contextlib.contextmanager
def finishing_first(stop: Callable[[], object], grace_s: float) -> Iterator[Termination]:
    """Let SIGTERM call ``stop`` in this block, and heed it only at the block's end; a second one is heeded at once.

    What heeding means is up to the handler that was there before: of ``handled``, of Prefect, or Python's own, which
    ends the process. In another thread than the main one, and while another such block is open, nothing changes.

    Args:
        stop: asks what goes on in the block to come to its end; runs in a signal handler.
        grace_s: seconds that this may take.

    Yields:
        What tells whether SIGTERM has come.
    """
    global _finishing_s  # noqa: PLW0603 - signals belong to the process
    termination = Termination()
    if threading.current_thread() is not threading.main_thread() or _finishing_s:
        yield termination
        return

    def on_sigterm(_number: int, _frame: object) -> None:
        termination.reason = "stopped: SIGTERM came; the same command resumes the run"
        signal.signal(signal.SIGTERM, before)
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
    """Raise Terminated on SIGTERM, and end the process GRACE_S after a signal is heeded if closing takes longer.

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
    """Wait for a signal to stop, or for the end of the pipe: what was to be ended has ended then."""
    timers: list[threading.Timer] = []
    num_sigterms = 0
    while data := os.read(reader, 1):
        if data[0] in STOPPED:
            number = signal.Signals(data[0])
            num_sigterms += number == signal.SIGTERM
            finishes = number == signal.SIGTERM and num_sigterms == 1
            timer = threading.Timer(GRACE_S + (_finishing_s if finishes else 0.0), _end_now, [number])
            timer.daemon = True
            timer.start()
            timers.append(timer)
    for timer in timers:
        timer.cancel()
    os.close(reader)


def _end_now(number: signal.Signals) -> None:
    with contextlib.suppress(Exception):  # a terminal that is gone
        print(STOPPED[number], file=sys.stderr, flush=True)
    os._exit(128 + number)


def end_in_time(code: int) -> None:
    """End the process GRACE_S from now at the latest: libraries may still be trying to deliver what nobody takes.

    Args:
        code: its exit code.
    """

    def end() -> None:
        with contextlib.suppress(Exception):  # a terminal that is gone
            sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(GRACE_S, end)
    timer.daemon = True
    timer.start()


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
