"""The driver's side of template.py: starts that process, asks it for workers, and hears how they end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence

from actors.pool.config import PoolConfig
from actors.pool.processes.template import MAX_MESSAGE, last_words, open_stderr
from actors.pool.workers import in_one_line

# As Ray sets it.
MEMORY_LIMIT = 0.95
# How long the template may take to tell how a worker has ended; it has nothing else to do.
_STATUS_S = 5.0
_END_S = 5.0
# -P keeps the working directory from being searched for modules; the path is this process's instead.
_PROGRAM = """
import json, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from actors.pool.processes.template import main
main(settings)
"""


class TemplateProcess:
    """The process that workers are forked from.

    Args:
        preload: names of modules to import once.
        config: its num_cpus_per_replica are the cores of each worker.
    """

    def __init__(self, preload: Sequence[str], config: PoolConfig) -> None:
        self._preload = tuple(preload)
        self._threads = _threads(config)
        self._changed = threading.Condition()
        self._ended: dict[int, tuple[str, bool]] = {}
        self._lines: dict[int, socket.socket] = {}  # to living workers, by number
        self._is_over = False
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [entry for entry in sys.path if isinstance(entry, str)]  # others are ignored here as well
        settings = {
            "path": path,
            "preload": list(preload),
            "socket": there.fileno(),
            "memory_limit": MEMORY_LIMIT,
            "driver": os.getpid(),
        }
        # As in a Ray actor: torch computes on as many threads as the replica holds cores, and sees no GPU that the
        # replica was not given.
        environment = {
            "OMP_NUM_THREADS": self._threads,
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
        }
        self._stderr = open(open_stderr(), "rb", buffering=0)  # noqa: SIM115 - close() closes it
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=[there.fileno()],
                env=environment,
                # Ctrl-C in a terminal is for the driver alone, which lets shards finish. Not a session of its own:
                # Linux shares out processor time by sessions, and what is granted to the driver is for its replicas.
                process_group=0,
            )
        threading.Thread(target=self._listen, name="replica-template", daemon=True).start()

    def has_ended(self) -> bool:
        """Return whether no worker can be forked any more."""
        return self._is_over or self._process.poll() is not None

    def suits(self, preload: Sequence[str], config: PoolConfig) -> bool:
        """Return whether it was started with these settings."""
        return (self._preload, self._threads) == (tuple(preload), _threads(config))

    def fork(self, number: int, theirs: socket.socket, ours: socket.socket) -> None:
        """Ask for a worker that holds one end of a socket; once it has ended, nothing more arrives at the other end."""
        with self._changed:
            if not self._is_over:
                self._lines[number] = ours.dup()
        with contextlib.suppress(OSError):  # it has ended, and its workers with it
            socket.send_fds(self._socket, [json.dumps({"fork": number}).encode()], [theirs.fileno()])

    def ready(self, number: int) -> None:
        """Say that a worker has loaded its model."""
        self._ask("ready", number)

    def kill(self, number: int) -> None:
        """Ask for a worker to be killed; nothing happens if it has ended."""
        self._ask("kill", number)

    def how_ended(self, number: int) -> tuple[str, bool]:
        """Return how a worker ended that has closed its socket, and whether its images in progress are innocent."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._ended or self._is_over, _STATUS_S)
            if number in self._ended:
                return self._ended.pop(number)
            how = "the process that it was forked from has ended"
            return how + (last_words(self._stderr.fileno()) if not self._stderr.closed else ""), False

    def close(self) -> None:
        """End the template, which takes all workers with it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.terminate()  # at once, if it imports; otherwise it has heard of it
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()
        with self._changed:
            self._stderr.close()

    def _ask(self, what: str, number: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({what: number}).encode())

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(MAX_MESSAGE)
            except OSError:
                data = b""
            with self._changed:
                if data:
                    message = json.loads(data)
                    self._ended[message["ended"]] = in_one_line(message["how"]), message["innocent"]
                    over = [message["ended"]]
                else:
                    self._is_over = True
                    over = list(self._lines)
                for line in (self._lines.pop(number) for number in over if number in self._lines):
                    _shut(line)
                self._changed.notify_all()
            if not data:
                return


def _threads(config: PoolConfig) -> str:
    return str(max(1, int(config.num_cpus_per_replica)))


def _shut(line: socket.socket) -> None:
    # What the worker has sent is still read. Without this its end is not noticed while a process that it has left
    # behind holds the other end.
    with line, contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
