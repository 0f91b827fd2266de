"""The process that replicas are forked from: it imports once what all of them need, tells how they end, and kills them.

It never labels and has one thread, so that it can always answer. When the driver ends, however it ends, so does this
process, and with it, by the kernel's doing, each replica.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.pool.processes.memory import Memory
from actors.pool.processes.worker import work

MAX_MESSAGE = 2**12
_PR_SET_PDEATHSIG = 1
_LOOK_AT_MEMORY_S = 0.25
# A process that was killed takes a while to give its memory back.
_LOOK_AGAIN_S = 2.0


class Template:
    """Forks workers, and tells the driver how each has ended.

    The driver sends JSON objects: ``{"fork": number}`` with the worker's end of a socket, ``{"kill": number}``. It is
    sent ``{"ended": number, "how": text}``.

    Args:
        driver: a socket that keeps messages apart (SOCK_SEQPACKET).
        memory: says when a worker is to be killed for want of memory.
    """

    def __init__(self, driver: socket.socket, memory: Memory) -> None:
        self._driver = driver
        self._memory = memory
        self._numbers: dict[int, int] = {}  # of living workers, by process id
        self._reasons: dict[int, str] = {}  # why a worker was killed, by process id
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)

    def serve(self) -> None:
        """Go on until the driver has ended."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        look_s = _LOOK_AT_MEMORY_S
        while True:
            sources = [self._driver.fileno(), self._woken]
            ready, _, _ = select.select(sources, [], [], look_s if self._numbers else None)
            if sources[0] in ready and not self._hear():
                return
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 512)
            self._reap()
            look_s = _LOOK_AGAIN_S if not ready and self._spare_memory() else _LOOK_AT_MEMORY_S

    def _hear(self) -> bool:
        """Do what the driver asks; False if it has ended."""
        data, descriptors, _flags, _address = socket.recv_fds(self._driver, MAX_MESSAGE, 1)
        if not data:
            return False
        for descriptor in descriptors:  # or each program that a labeler executes would hold it, and hide its end
            os.set_inheritable(descriptor, False)
        message = json.loads(data)
        if "fork" in message:
            self._fork(message["fork"], *descriptors)
        else:
            for pid, number in self._numbers.items():  # none, if it has ended and was reaped: its id may be another's
                if number == message["kill"]:
                    os.kill(pid, signal.SIGKILL)
        return True

    def _fork(self, number: int, descriptor: int) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.close(descriptor)
            self._tell(number, f"it could not be started: {error}")
            return
        if pid == 0:
            _be_a_worker(self._driver, (self._woken, self._wake), descriptor)
        os.close(descriptor)  # only the worker holds its end, which therefore closes when it ends
        self._numbers[pid] = number

    def _reap(self) -> None:
        while self._numbers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            how = self._reasons.pop(pid, "") or _say_status(status)
            self._tell(self._numbers.pop(pid), how)

    def _tell(self, number: int, how: str) -> None:
        with contextlib.suppress(OSError):  # the driver has ended, which the next message tells
            self._driver.send(json.dumps({"ended": number, "how": how}).encode())

    def _spare_memory(self) -> bool:
        """Kill the largest worker if the machine's memory is nearly used up; return whether that was necessary."""
        share = self._memory.used_share()
        if share <= self._memory.limit or not self._numbers:
            return False
        pid = max(self._numbers, key=self._memory.held_by)
        self._reasons[pid] = (
            f"it was killed because {share:.0%} of this machine's memory is used, and of all replicas it held the "
            f"most, {self._memory.held_by(pid) / 1e9:.1f} GB"
        )
        os.kill(pid, signal.SIGKILL)
        return True


def _say_status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it was ended by signal {-code}"


def _be_a_worker(driver: socket.socket, pipe: Sequence[int], descriptor: int) -> None:
    """Work until the driver closes the worker's socket; never returns."""
    parent = os.getppid()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    end_with_parent(parent)
    # The first to go if the kernel runs out of memory before this package notices it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        driver.close()
        for one in pipe:
            os.close(one)
        work(descriptor)
    finally:
        os._exit(1)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends; end it now if that has happened already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(settings: dict[str, Any]) -> None:
    """Import what workers need, then serve the driver.

    Args:
        settings: ``socket``, the descriptor of the driver's socket; ``preload``, names of modules; ``memory_limit``,
            the share of the machine's memory from which on a worker is killed.
    """
    os.set_inheritable(settings["socket"], False)
    for name in settings["preload"]:
        with contextlib.suppress(Exception):  # the labeler's own import fails again, in a replica that can tell it
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # or the collector of each worker would write to, and thereby copy, what they could share
    Template(socket.socket(fileno=settings["socket"]), Memory(settings["memory_limit"])).serve()
    os._exit(0)  # at once: workers end with this process
