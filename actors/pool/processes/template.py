"""The process that replicas are forked from: it imports once what all of them need, tells how they end, and kills them.

It never labels, so that it can always answer. When the driver ends, however it ends, so does this
process, and with it, by the kernel's doing, each replica.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.pool.processes.memory import Memory
from actors.pool.processes.worker import work

MAX_MESSAGE = 2**14
_PR_SET_PDEATHSIG = 1
_LOOK_AT_MEMORY_S = 0.25
# A process that was killed takes a while to give its memory back.
_LOOK_AGAIN_S = 2.0
_LOOK_AT_DRIVER_S = 1.0
# Images are suspected of a death for want of memory if the worker has grown, since it was ready, by more than this
# share of all memory, and by more than this share of what was free then. Otherwise something else here has taken it.
_MUCH_OF_ALL = 0.1
_MUCH_OF_FREE = 0.5
_MAX_WRITTEN = 2**20
_TOLD_OF_WRITTEN = 700


@dataclass(slots=True)
class _Child:
    """A living worker.

    Attributes:
        number: the driver's for it.
        wrote: descriptor of a file with what it wrote to standard error.
        reason: why it was killed, if it was killed for want of memory.
        held, room: bytes that it held alone, and that were free, when it became ready; None until then.
        is_innocent: whether what it worked on is not to blame for its death.
    """

    number: int
    wrote: int
    reason: str = ""
    held: int | None = None
    room: int = 0
    is_innocent: bool = False


class Template:
    """Forks workers, and tells the driver how each has ended.

    The driver sends JSON objects: ``{"fork": number}`` with the worker's end of a socket, ``{"ready": number}`` once
    that has loaded its model, ``{"kill": number}``. It is sent ``{"ended": number, "how": text, "innocent": whether
    the images in progress are not to blame}``.

    Args:
        driver: a socket that keeps messages apart (SOCK_SEQPACKET).
        driver_pid: the process that ends this one by ending.
        memory: says when a worker is to be killed for want of memory.
    """

    def __init__(self, driver: socket.socket, driver_pid: int, memory: Memory) -> None:
        self._driver = driver
        self._driver_pid = driver_pid
        self._memory = memory
        self._children: dict[int, _Child] = {}  # by process id
        self._look_at = 0.0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._woken, False)

    def serve(self) -> None:
        """Go on until the driver has ended, then kill the workers."""
        for number in (signal.SIGCHLD, signal.SIGTERM):  # which is for one that imports; see TemplateProcess.close
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        while os.getppid() == self._driver_pid:  # a process that the driver has left behind may hold its socket
            sources = [self._driver.fileno(), self._woken]
            ready, _, _ = select.select(sources, [], [], _LOOK_AT_MEMORY_S if self._children else _LOOK_AT_DRIVER_S)
            if sources[0] in ready and not self._hear():
                break
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 512)
            self._reap()
            if self._children and time.monotonic() >= self._look_at:
                self._look_at = time.monotonic() + (_LOOK_AGAIN_S if self.spare_memory() else _LOOK_AT_MEMORY_S)
        for pid in self._children:
            _kill(pid)

    def _hear(self) -> bool:
        """Do what the driver asks; False if it has ended."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self._driver, MAX_MESSAGE, 1)
        except OSError:
            return False
        if not data:
            return False
        for descriptor in descriptors:  # or each program that a labeler executes would hold it, and hide its end
            os.set_inheritable(descriptor, False)
        ((asked, number),) = json.loads(data).items()
        if asked == "fork":
            self._fork(number, descriptors)
            return True
        for pid, child in self._children.items():  # none, if it has ended and was reaped: its id may be another's
            if child.number == number and asked == "kill":
                _kill(pid)
            elif child.number == number:
                child.held, child.room = self._memory.held_by(pid), self._memory.room(self._memory.usage())
        return True

    def _fork(self, number: int, descriptors: Sequence[int]) -> None:
        parent, wrote = os.getpid(), -1
        try:
            (descriptor,) = descriptors  # none arrives where no more can be open
            wrote = open_stderr()
            pid = os.fork()
        except (OSError, ValueError) as error:
            self._tell(_Child(number, wrote), f"it could not be started: {error}")
        else:
            if pid == 0:
                siblings = [child.wrote for child in self._children.values()]
                _be_a_worker(parent, (self._driver.fileno(), self._woken, self._wake, *siblings), descriptor, wrote)
            with contextlib.suppress(OSError):  # it does so itself, maybe too late
                os.setpgid(pid, pid)
            self._children[pid] = _Child(number, wrote)
        for descriptor in descriptors:  # only the worker holds its end, which therefore closes when it ends
            os.close(descriptor)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                child = self._children.pop(ended.si_pid, None)
                if child is not None:
                    _kill(ended.si_pid)  # what it has left behind; before its id, and its group's, may be another's
                _pid, status = os.waitpid(ended.si_pid, 0)
                if child is not None:  # and not started by an import
                    self._tell(child, child.reason or _say_status(status))

    def _tell(self, child: _Child, how: str) -> None:
        if child.wrote >= 0:
            how += last_words(child.wrote)
            os.close(child.wrote)
        message = {"ended": child.number, "how": how, "innocent": child.is_innocent}
        with contextlib.suppress(OSError):  # the driver has ended, which the next message tells
            self._driver.send(json.dumps(message, ensure_ascii=False).encode())

    def spare_memory(self) -> bool:
        """Kill the largest worker if memory is nearly used up, and workers hold enough of it; return whether one was.

        Nothing is gained by killing workers where other programs use more than the limit without them.
        """
        for child in self._children.values():
            if os.fstat(child.wrote).st_size > _MAX_WRITTEN:
                os.ftruncate(child.wrote, 0)
        usage = self._memory.usage()
        lacking = -self._memory.room(usage)
        held = {pid: self._memory.held_by(pid) for pid in self._children}
        if lacking <= 0 or sum(held.values()) < lacking:
            return False
        pid = max(held, key=held.__getitem__)
        child = self._children[pid]
        grown = 0 if child.held is None else held[pid] - child.held
        child.is_innocent = grown <= max(_MUCH_OF_ALL * usage.total, _MUCH_OF_FREE * child.room)
        child.reason = (
            f"it was killed because {usage.share:.0%} of this machine's memory is used, and of all replicas it held "
            f"the most, {held[pid] / 1e9:.1f} GB, {grown / 1e9:.1f} GB of it since it was ready"
        )
        _kill(pid)
        return True


def _kill(pid: int) -> None:
    """Kill a worker that has not been reaped, and what it has started."""
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it may not have a group yet
        os.kill(pid, signal.SIGKILL)


def open_stderr() -> int:
    """Return the descriptor of a file in memory, for what a process writes to standard error."""
    descriptor = os.memfd_create("stderr")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)  # also after it was cut
    return descriptor


def last_words(descriptor: int) -> str:
    """Return what to add to how a process has ended, from what it wrote to standard error."""
    written = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, _TOLD_OF_WRITTEN, max(0, written - _TOLD_OF_WRITTEN)).decode(errors="replace").strip()
    return f"; the last it wrote to standard error: {tail}" if tail else ""


def _say_status(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended with exit code {code}"
    with contextlib.suppress(ValueError):
        return f"it was ended by {signal.Signals(-code).name}"
    return f"it was ended by signal {-code}"


def _be_a_worker(parent: int, others: Sequence[int], descriptor: int, stderr: int) -> None:
    """Work until the driver closes the worker's socket; never returns."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # What stops a service or a job may send SIGTERM to all its processes: the driver heeds it, and lets shards in
    # flight commit. Not SIG_IGN, which programs that a labeler executes would inherit.
    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    end_with_parent(parent)
    # The first to go if the kernel runs out of memory before this package notices it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        os.setpgid(0, 0)
        os.dup2(stderr, 2)
        for one in (*others, stderr):
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
        settings: ``socket``, the descriptor of the driver's socket; ``driver``, its process id; ``preload``, names of
            modules; ``memory_limit``, the share of the machine's memory from which on a worker is killed.
    """
    os.set_inheritable(settings["socket"], False)

    def check_driver(*_: object) -> None:
        if os.getppid() != settings["driver"]:
            os._exit(1)

    # While it imports, nothing else would notice the end of the driver.
    signal.signal(signal.SIGALRM, check_driver)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_AT_DRIVER_S, _LOOK_AT_DRIVER_S)
    for name in settings["preload"]:
        # The labeler's own import fails again, in a replica that can tell it; and so does one that calls sys.exit.
        with contextlib.suppress(BaseException):
            importlib.import_module(name)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # or the collector of each worker would write to, and thereby copy, what they could share
    Template(socket.socket(fileno=settings["socket"]), settings["driver"], Memory(settings["memory_limit"])).serve()
    os._exit(0)  # at once: workers end with this process
