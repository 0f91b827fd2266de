"""What a call takes at its peak, in a process of its own that may not take much more."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import context
from pathlib import Path
from typing import Any

# What a call that is not bounded may take before it ends in a MemoryError.
_CEILING_MB = 3000


@dataclass(frozen=True, slots=True)
class Peak:
    """How a call went.

    Attributes:
        mb: the most memory that it held, beside what the process held before it.
        said: what it returned, or the error that it raised, as text.
        error: the name of the error's class; None if there was none.
    """

    mb: float
    said: str
    error: str | None = None


def measure(processes: context.ForkServerContext, call: Callable[..., Any], *args: Any, timeout_s: float = 60) -> Peak:
    """Call a function of a module, and measure what it takes.

    Args:
        processes: see tests.support.fork_server; has imported what the function needs.
        call: the function; its arguments are pickled.
        args: its arguments.
        timeout_s: what takes longer is ended, and fails the test.
    """
    receiving, sending = processes.Pipe(duplex=False)
    process = processes.Process(target=_run, args=(sending, dict(os.environ), call, args))
    process.start()
    sending.close()
    try:
        assert receiving.poll(timeout_s), f"{call.__name__} has not come to its end after {timeout_s:g} s"
        return Peak(*receiving.recv())
    except EOFError:
        process.join(5)
        raise AssertionError(f"{call.__name__} ended its process: {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _run(sending: Any, environment: Mapping[str, str], call: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.update(environment)  # the server that it was forked from may be older than a test's own
    threading.stack_size(2**20)  # a thread's stack counts as taken
    before = _status_mb("VmRSS")
    ceiling = int(_status_mb("VmSize") + _CEILING_MB) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from here on
    try:
        said, error = str(call(*args)), None
    except BaseException as caught:
        said, error = str(caught), type(caught).__name__
    sending.send((_status_mb("VmHWM") - before, said[:2000], error))


def _status_mb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1000
