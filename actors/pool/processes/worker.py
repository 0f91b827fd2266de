"""What runs in a forked worker: one replica, and the connection over which the driver hands it shards."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from actors.pool.replica import LabelerError, Replica
from actors.pool.runner import summarize_error

READY = -1
"""Stands for the number of a call in what tells that the replica is ready."""


class Line:
    """A connection that several threads may send on.

    Args:
        descriptor: a connected socket, which it takes over.
    """

    def __init__(self, descriptor: int) -> None:
        self._connection = Connection(descriptor)
        self._turn = threading.Lock()

    def send(self, data: bytes) -> None:
        """Send one message.

        Raises:
            OSError: the other side has ended.
        """
        with self._turn:
            self._connection.send_bytes(data)

    def receive(self) -> bytes | None:
        """Wait for a message; None once the other side has ended."""
        try:
            return self._connection.recv_bytes()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


_to_driver: list[Line] = []


@dataclass(frozen=True, slots=True)
class ReportInProgress:
    """Tells the driver, from within a replica, which images an attempt is about to process."""

    attempt_id: str

    def __call__(self, image_ids: Sequence[str]) -> None:
        """Report the ids; once this returns they are the kernel's to deliver, even if this process ends at once."""
        _to_driver[0].send(pickle.dumps((self.attempt_id, tuple(image_ids))))


def work(descriptor: int) -> None:
    """Build a replica and label what the driver sends, until the driver closes the connection."""
    line = Line(descriptor)
    _to_driver.append(line)
    first = line.receive()
    if first is None:
        return
    try:
        factory, num_threads = cloudpickle.loads(first)
    except BaseException as error:  # noqa: BLE001 - the driver tells it better than an exit code does
        _answer(line, READY, LabelerError(error=summarize_error(error), replica_unusable=True))
        return
    replica = Replica(factory)
    _answer(line, READY, replica.ready())
    with ThreadPoolExecutor(num_threads, thread_name_prefix="label") as threads:
        while (message := line.receive()) is not None:
            threads.submit(_label, line, replica, message)
        os._exit(0)  # whatever the threads are doing


def _label(line: Line, replica: Replica, message: bytes) -> None:
    call, data = pickle.loads(message)
    try:
        answer: Any = replica.label(*cloudpickle.loads(data))
    except BaseException as error:  # noqa: BLE001 - of unpickling: a replica returns its labeler's errors
        answer = LabelerError(error=summarize_error(error), replica_unusable=False)
    _answer(line, call, answer)


def _answer(line: Line, call: int, answer: Any) -> None:
    # Pickled by itself, so that the driver knows which call it belongs to even if it cannot read it.
    try:
        data = pickle.dumps(answer)
    except Exception as error:  # noqa: BLE001 - whatever a labeler returns that cannot be pickled
        data = pickle.dumps(LabelerError(error=summarize_error(error), replica_unusable=False))
    try:
        line.send(pickle.dumps((call, data)))
    except OSError:  # the driver has ended
        os._exit(0)
