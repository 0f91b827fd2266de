"""Workers that are processes of this machine; see template.py for how they begin and end."""

from __future__ import annotations

import contextlib
import pickle
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from itertools import count
from queue import SimpleQueue

import cloudpickle

from actors.pool.cluster import check_room
from actors.pool.config import PoolConfig
from actors.pool.processes.cores import num_cores
from actors.pool.processes.template_process import TemplateProcess
from actors.pool.processes.worker import READY, Line, ReportInProgress
from actors.pool.replica import LabelerError
from actors.pool.runner import LabelerFactory, ReplicaStartError, summarize_error
from actors.pool.workers import Answer, WorkerEndedError
from pipelines.types import CrashHistory, Shard


class ProcessWorker:
    """A process with one replica.

    Args:
        template: where it is forked.
        number: serial number, for the template.
        first: what it is sent first: the labeler's factory, pickled.
        reports: receives the ids of the images in progress, by attempt.
    """

    def __init__(
        self, template: TemplateProcess, number: int, first: bytes, reports: dict[str, tuple[str, ...]]
    ) -> None:
        self.ready: Future[Answer] = Future()
        self.ended: Future[Answer] = Future()
        self._template = template
        self._number = number
        self._reports = reports
        self._reported: set[str] = set()
        self._calls = count()
        self._answers: dict[int, Future[Answer]] = {READY: self.ready}
        self._guard = threading.Lock()
        self._how = ""
        here, there = socket.socketpair()
        with there:
            template.fork(number, there, here)
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
            how = self._how
            if not how:
                call = next(self._calls)
                self._answers[call] = answer
        if how:
            answer.set_exception(WorkerEndedError(how))
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
        try:
            while (message := self._line.receive()) is not None:
                call, data = pickle.loads(message)
                if isinstance(call, str):
                    self._reported.add(call)
                    self._reports[call] = data
                else:
                    if call == READY:
                        self._template.ready(self._number)
                    self._answers.pop(call).set_result(_read(data, of_start=call == READY))
        finally:
            self._end()

    def _end(self) -> None:
        how, is_innocent = self._template.how_ended(self._number)
        if is_innocent:
            for attempt_id in self._reported:
                self._reports.pop(attempt_id, None)
        with self._guard:
            self._how = how
            left = list(self._answers.values())
        for waiting in (*left, self.ended):
            waiting.set_exception(WorkerEndedError(how, blameless=is_innocent))
        self._outbox.put(None)
        self._speaker.join()
        self._line.close()


def _read(data: bytes, *, of_start: bool) -> Answer:
    try:
        answer: Answer = pickle.loads(data)
    except BaseException as error:  # noqa: BLE001 - what a labeler returns may do anything as it is read
        summary = f"what it answered cannot be read: {summarize_error(error)}"
        return LabelerError(error=summary, replica_unusable=of_start)
    return answer


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
        self._template: TemplateProcess | None = None
        self._numbers = count(1)
        self._in_progress: dict[str, tuple[str, ...]] = {}

    def open(self) -> None:
        """Check that there are cores enough, and start what workers are forked from; see Workers."""
        check_room(self._config, [{"CPU": num_cores()}], "this machine, or this container's quota of it,")
        self._ready_template()

    def start(self) -> ProcessWorker:
        """Fork a worker, from another template if the one before has ended."""
        return ProcessWorker(self._ready_template(), next(self._numbers), self._first, self._in_progress)

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

    def _ready_template(self) -> TemplateProcess:
        if self._template is None or self._template.has_ended():
            if self._template is not None:
                self._template.close()
            try:
                self._template = _take_ahead(self._preload, self._config) or TemplateProcess(
                    self._preload, self._config
                )
            except OSError as error:
                raise ReplicaStartError(f"no process can be started on this machine: {error}") from error
        return self._template


_ahead: list[TemplateProcess] = []


@contextlib.contextmanager
def template_ahead(config: PoolConfig, preload: Sequence[str]) -> Iterator[None]:
    """Start a template for the ProcessWorkers that are opened in this block with the same settings."""
    mine: list[TemplateProcess] = []
    with contextlib.suppress(OSError):  # those workers tell it
        mine.append(TemplateProcess(preload, config))
    _ahead.extend(mine)
    try:
        yield
    finally:
        for template in mine:
            if _take(template):
                template.close()


def _take_ahead(preload: Sequence[str], config: PoolConfig) -> TemplateProcess | None:
    for template in tuple(_ahead):
        if template.suits(preload, config) and not template.has_ended() and _take(template):
            return template
    return None


def _take(template: TemplateProcess) -> bool:
    """Return whether it was nobody's yet; another thread may ask for it at the same time."""
    try:
        _ahead.remove(template)
    except ValueError:
        return False
    return True
