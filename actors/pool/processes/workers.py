"""Workers that are processes of this machine; see template.py for how they begin and end."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue

import cloudpickle

from actors.pool.cluster import check_room
from actors.pool.config import PoolConfig
from actors.pool.processes.template import MAX_MESSAGE
from actors.pool.processes.worker import READY, Line, ReportInProgress
from actors.pool.runner import LabelerFactory, ReplicaStartError
from actors.pool.workers import Answer, WorkerEndedError, in_one_line
from pipelines.types import CrashHistory, Shard

# As on Ray.
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


class ProcessWorker:
    """A process with one replica.

    Args:
        template: where it is forked.
        number: serial number, for the template.
        first: what it is sent first: the labeler's factory, pickled.
        on_report: receives an attempt's id and the ids of the images in progress.
    """

    def __init__(
        self, template: _TemplateProcess, number: int, first: bytes, on_report: Callable[[str, tuple[str, ...]], None]
    ) -> None:
        self.ready: Future[Answer] = Future()
        self.ended: Future[Answer] = Future()
        self._template = template
        self._number = number
        self._on_report = on_report
        self._calls = count()
        self._answers: dict[int, Future[Answer]] = {READY: self.ready}
        self._guard = threading.Lock()
        self._how = ""
        here, there = socket.socketpair()
        with there:
            template.fork(number, there)
        self._line = Line(here.detach())
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._outbox.put(first)
        # Two threads: sending blocks while the process hangs and reads nothing, and must then not block the driver.
        self._speaker, listener = (
            threading.Thread(target=task, name=f"replica-{number}", daemon=True) for task in (self._speak, self._listen)
        )
        self._speaker.start()
        listener.start()

    def label(self, shard: Shard, attempt_id: str, crashes: CrashHistory | None) -> Future[Answer]:
        """Begin an attempt; see Worker."""
        answer: Future[Answer] = Future()
        try:
            data = cloudpickle.dumps((shard, attempt_id, crashes))
        except Exception as error:  # noqa: BLE001 - as promised, whatever it is
            answer.set_exception(error)
            return answer
        with self._guard:
            if not self._how:
                call = next(self._calls)
                self._answers[call] = answer
        if self._how:
            answer.set_exception(WorkerEndedError(self._how))
        else:
            self._outbox.put(pickle.dumps((call, data)))
        return answer

    def kill(self) -> None:
        """Have the template kill the process; see Worker."""
        self._template.kill(self._number)

    def _speak(self) -> None:
        with contextlib.suppress(OSError):  # it has ended, which the other thread notices as well
            while (data := self._outbox.get()) is not None:
                self._line.send(data)

    def _listen(self) -> None:
        while (message := self._line.receive()) is not None:
            call, answer = pickle.loads(message)
            if isinstance(call, str):
                self._on_report(call, answer)
            else:
                self._answers.pop(call).set_result(answer)
        how = self._template.how_ended(self._number)
        with self._guard:
            self._how = how
            left = list(self._answers.values())
        for waiting in (*left, self.ended):
            waiting.set_exception(WorkerEndedError(how))
        self._outbox.put(None)
        self._speaker.join()
        self._line.close()


class ProcessWorkers:
    """Workers in processes of this machine; see Workers.

    Args:
        factory: builds the labeler in the worker; must be picklable. Modules that its attribute ``preload`` names, if
            it has one, are imported once for all workers.
        config: how many replicas, and how many cores each.
    """

    lost = ""

    def __init__(self, factory: LabelerFactory, config: PoolConfig) -> None:
        self._config = config
        self._preload: Sequence[str] = getattr(factory, "preload", ())
        self._first = cloudpickle.dumps((factory, config.shards_in_flight_per_replica))
        self._template: _TemplateProcess | None = None
        self._numbers = count(1)
        self._in_progress: dict[str, tuple[str, ...]] = {}

    def open(self) -> None:
        """Check that there are cores enough, and start what workers are forked from; see Workers."""
        cores = len(os.sched_getaffinity(0))
        check_room(self._config, [{"CPU": cores}], "this machine")
        self._ready_template()

    def start(self) -> ProcessWorker:
        """Fork a worker, from another template if the one before has ended."""
        return ProcessWorker(self._ready_template(), next(self._numbers), self._first, self._in_progress.__setitem__)

    def report_of(self, attempt_id: str) -> ReportInProgress:
        """Return what tells this process; see Workers."""
        return ReportInProgress(attempt_id)

    def in_progress(self, attempt_id: str) -> tuple[str, ...]:
        """Return what was last reported; see Workers."""
        return self._in_progress.pop(attempt_id, ())

    def free(self) -> str:
        """Nothing waits for room here."""
        return ""

    def close(self) -> None:
        """End the template, and all workers with it."""
        if self._template is not None:
            self._template.close()
            self._template = None

    def _ready_template(self) -> _TemplateProcess:
        if self._template is None or self._template.has_ended():
            if self._template is not None:
                self._template.close()
            try:
                self._template = _take_ahead(self._preload) or _TemplateProcess(self._preload, self._config)
            except OSError as error:
                raise ReplicaStartError(f"no process can be started on this machine: {error}") from error
        return self._template


_ahead: list[_TemplateProcess] = []


@contextlib.contextmanager
def template_ahead(config: PoolConfig, preload: Sequence[str]) -> Iterator[None]:
    """Start a template for the ProcessWorkers that are opened in this block with the same settings."""
    with contextlib.suppress(OSError):  # those workers tell it
        _ahead[:] = [_TemplateProcess(preload, config)]
    try:
        yield
    finally:
        while _ahead:
            _ahead.pop().close()


def _take_ahead(preload: Sequence[str]) -> _TemplateProcess | None:
    if _ahead and _ahead[0].preload == tuple(preload) and not _ahead[0].has_ended():
        return _ahead.pop()
    return None


class _TemplateProcess:
    """The driver's side of template.py.

    Args:
        preload: names of modules to import once.
        config: its num_cpus_per_replica are the cores of each worker.
    """

    def __init__(self, preload: Sequence[str], config: PoolConfig) -> None:
        self.preload = tuple(preload)
        self._changed = threading.Condition()
        self._ended: dict[int, str] = {}
        self._is_over = False
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        settings = {"path": sys.path, "preload": list(preload), "socket": there.fileno(), "memory_limit": MEMORY_LIMIT}
        # As in a Ray actor: torch computes on as many threads as the replica holds cores, and sees no GPU that the
        # replica was not given.
        environment = {
            "OMP_NUM_THREADS": str(max(1, int(config.num_cpus_per_replica))),
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
        }
        with there:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[there.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is for the driver alone, which lets shards finish
            )
        threading.Thread(target=self._listen, name="replica-template", daemon=True).start()

    def has_ended(self) -> bool:
        """Return whether no worker can be forked any more."""
        return self._is_over or self._process.poll() is not None

    def fork(self, number: int, theirs: socket.socket) -> None:
        """Ask for a worker that holds one end of a socket."""
        with contextlib.suppress(OSError):  # it has ended, and its workers with it
            socket.send_fds(self._socket, [json.dumps({"fork": number}).encode()], [theirs.fileno()])

    def kill(self, number: int) -> None:
        """Ask for a worker to be killed; nothing happens if it has ended."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"kill": number}).encode())

    def how_ended(self, number: int) -> str:
        """Return how a worker ended that has closed its socket."""
        with self._changed:
            self._changed.wait_for(lambda: number in self._ended or self._is_over, _STATUS_S)
            return self._ended.pop(number, "the process that it was forked from has ended")

    def close(self) -> None:
        """End the template, which takes all workers with it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._socket.close()

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(MAX_MESSAGE)
            except OSError:
                data = b""
            with self._changed:
                if data:
                    message = json.loads(data)
                    self._ended[message["ended"]] = in_one_line(message["how"])
                else:
                    self._is_over = True
                self._changed.notify_all()
            if not data:
                return
