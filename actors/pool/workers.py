"""Where replicas live, as the pool sees it: a worker is one replica's process, on a Ray cluster or on this machine.

ray_workers.py and processes/workers.py implement it. Knows nothing about queues and retries."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from actors.pool.replica import LabelerError, ReplicaFacts
from pipelines.redaction import redacted
from pipelines.types import CrashHistory, Shard, ShardReceipt

Answer = ReplicaFacts | ShardReceipt | LabelerError | None


class WorkerEndedError(Exception):
    """The process of a replica has ended; the message says how, in one line.

    Attributes:
        blameless: whether neither the replica nor what it worked on caused that, as far as is known.
    """

    def __init__(self, how: str, *, blameless: bool = False) -> None:
        super().__init__(how)
        self.blameless = blameless


class Worker(Protocol):
    """One replica's process.

    Attributes:
        ready: has the replica's facts once its model is loaded, or why it could not be.
        ended: never has a result; fails with WorkerEndedError once the process has ended.
    """

    ready: Future[Answer]
    ended: Future[Answer]

    def label(self, shard: Shard, attempt_id: str, crashes: CrashHistory | None) -> Future[Answer]:
        """Begin an attempt at a shard.

        Returns:
            What has the receipt, or the labeler's error, once it is done. It fails with WorkerEndedError if the process
            ends before, and with any other exception if what is sent cannot be.
        """
        ...

    def kill(self) -> None:
        """End the process, whatever it is doing, without waiting until it has ended."""
        ...


class Workers(Protocol):
    """Starts workers for one labeler factory, and outlives each of them.

    Attributes:
        lost: why no worker can work any more or be started; empty while that is not so.
    """

    @property
    def lost(self) -> str: ...  # noqa: D102 - see above

    def open(self) -> None:
        """Connect to where workers run.

        Raises:
            ReplicaStartError: that cannot be reached, or has no room for the replicas asked for.
        """
        ...

    def start(self) -> Worker:
        """Start a worker, without waiting for it."""
        ...

    def report_of(self, attempt_id: str) -> Callable[[Sequence[str]], None]:
        """Return what a replica calls, within an attempt, with the ids of the images it is about to process."""
        ...

    def in_progress(self, attempt_id: str) -> tuple[str, ...]:
        """Return the ids that were last reported of an attempt that has ended; none if there was no report."""
        ...

    def free(self) -> str:
        """Say what room is left for further workers; empty if that is not known."""
        ...

    def close(self) -> None:
        """Free everything; workers that were not killed before end."""
        ...


def in_one_line(error: object) -> str:
    """Return a report of a death, which may be many colored and indented lines, as one of at most 1000 characters."""
    return " ".join(redacted(re.sub(r"\x1b\[\d+m", "", str(error))).split())[:1000]
