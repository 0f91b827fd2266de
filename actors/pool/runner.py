"""What labels shards, as the flow sees it: one interface, its events and failures.

Imports neither ray nor torch; in_process.py and ray_pool.py implement it, and open.py chooses between them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

from pipelines.errors import UserError
from pipelines.redaction import redacted
from pipelines.types import Shard, ShardLabeler, ShardReceipt

LabelerFactory = Callable[[], ShardLabeler]

FailureKind = Literal["error", "replica_died", "timeout", "unfinished"]
EventKind = Literal[
    "replica_started",
    "replica_start_failed",
    "replica_died",
    "replica_hung",
    "replica_recycled",
    "shard_requeued",
    "shard_broken",
    "draining",
    "report_failed",
    "observer_failed",
]

_MAX_ERROR_CHARS = 4000


class ReplicaStartError(UserError, RuntimeError):
    """There is no replica to work with and none can be started; the message carries the cause."""


class ClusterLostError(RuntimeError):
    """The cluster that the replicas ran on is gone; what is committed stays committed."""


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """Something worth a log line that happened to a replica or a shard; its message holds no secret."""

    kind: EventKind
    message: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", redacted(self.message))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """A shard that a map call handed out and could not get labelled.

    Attributes:
        shard_id: the shard.
        attempts: attempts made.
        error: what happened last: a line of summary, then the end of its traceback where there is one; no secret.
        kind: error (the labeler raised), replica_died, timeout (its replica was taken for hung), or unfinished (the
            budget was spent or stop() was called before it could be labelled).
    """

    shard_id: str
    attempts: int
    error: str
    kind: FailureKind

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", redacted(self.error))


OnEvent = Callable[[PoolEvent], None]


class ShardRunner(Protocol):
    """Labels shards somewhere. A context manager: what it needs is started on entering and released on leaving."""

    def __enter__(self) -> Self:
        """Connect to where the replicas will run.

        Raises:
            ReplicaStartError: the cluster cannot be joined, or has no room for the replicas asked for.
        """
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runner."""
        ...

    def map(self, shards: Iterable[Shard], on_event: OnEvent | None = None) -> Iterator[ShardReceipt | ShardFailure]:
        """Label shards and yield what became of each as it finishes, in any order. One map call at a time.

        Shards are taken from the iterable only when there is room: at most replicas x shards_in_flight_per_replica
        are taken and not yet answered for. When the budget is spent or stop() was called, those that were taken and
        could not be finished are yielded as failures of kind "unfinished", and the rest stays in the iterable.
        Leaving the iterator early abandons what is in flight.

        Args:
            shards: what to label; need not have a length.
            on_event: called in the caller's thread with what happens to replicas and shards on the way.

        Raises:
            ReplicaStartError: no replica could be started; carries the cause.
            ClusterLostError: there is nothing left that could label.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return the labeler's facts for provenance, from the first replica that is ready; waits for it.

        Raises:
            ReplicaStartError: no replica could be started; carries the cause.
        """
        ...

    def stop(self) -> None:
        """Hand out no more shards, in this map call or a later one. May be called from a signal handler."""
        ...

    def close(self) -> None:
        """End the replicas, with whatever they are doing. Safe to call twice."""
        ...


def summarize_error(error: BaseException) -> str:
    """Return type and message of an error in one line, then the end of its traceback."""
    summary = "".join(traceback.format_exception_only(error)).strip()
    trace = redacted("".join(traceback.format_exception(error)).strip())
    return f"{redacted(summary)[:_MAX_ERROR_CHARS]}\n{trace[-_MAX_ERROR_CHARS:]}"
