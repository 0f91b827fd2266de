"""Processes that are forked from one which has imported what they need, and has run nothing."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from multiprocessing import context, forkserver, get_context


@contextlib.contextmanager
def fork_server(*modules: str) -> Iterator[context.ForkServerContext]:
    """Start processes from a server of their own.

    Python keeps one server for all, which has imported what those who came first asked for.
    """
    forkserver._forkserver._stop()
    processes = get_context("forkserver")
    processes.set_forkserver_preload(list(modules))
    try:
        yield processes
    finally:
        # What it has imported would be taken apart for a second.
        if forkserver._forkserver._forkserver_pid is not None:
            os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        forkserver._forkserver._stop()
