"""ShardRunner, the interface through which a flow labels shards, with its events and failures.

Imports neither ray nor torch. in_process.py and replica_pool.py implement it, and open.py chooses between them."""

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
    "nothing_new",
    "draining",
    "canary",
    "alarm",
    "waiting",
    "report_failed",
    "observer_failed",
    "warning",
]

_MAX_ERROR_CHARS = 4000


class ReplicaStartError(UserError, RuntimeError):
    """No replica is available and none can be started; the message carries the cause."""


class ClusterLostError(RuntimeError):
    """The cluster that the replicas ran on is gone; committed shards stay committed."""


@dataclass(frozen=True, slots=True)
class PoolEvent:
    """An event of a replica or a shard that is worth a log line; secrets in its message are redacted."""

    kind: EventKind
    message: str

    def __post_init__(self) -> None:
        # In one place, because messages carry errors of every library.
        object.__setattr__(self, "message", redacted(self.message))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFailure:
    """A shard that a map call gave up on.

    Attributes:
        shard_id: the shard.
        attempts: number of attempts made.
        error: the last error: a one-line summary, then the end of its traceback if there is one; secrets are redacted.
        kind: error (the labeler raised), replica_died, timeout (its replica was considered hung), or unfinished (the
            budget was spent or stop() was called before it could be labeled).
    """

    shard_id: str
    attempts: int
    error: str
    kind: FailureKind

    def __post_init__(self) -> None:
        object.__setattr__(self, "error", redacted(self.error))


OnEvent = Callable[[PoolEvent], None]


class ShardRunner(Protocol):
    """Labels shards, wherever its replicas run. A context manager: entering acquires resources, leaving frees them."""

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
        """Label shards and yield the outcome of each as it finishes, in any order. One map call at a time.

        A shard is taken from the iterable only when there is room: at most replicas x shards_in_flight_per_replica
        shards are taken and have no outcome yet. When the budget is spent or stop() was called, the shards taken but
        not finished are yielded as failures of kind "unfinished", and the rest stays in the iterable. Leaving the
        iterator early abandons the shards in flight.

        Args:
            shards: what to label; need not have a length.
            on_event: called in the caller's thread with the events of replicas and shards.

        Raises:
            ReplicaStartError: no replica could be started; carries the cause.
            ClusterLostError: the cluster is gone, so that nothing can label any more.
        """
        ...

    def describe(self) -> Mapping[str, str]:
        """Return the labeler's facts for provenance, waiting for the first replica that is ready.

        Raises:
            ReplicaStartError: no replica could be started; carries the cause.
        """
        ...

    def stop(self) -> None:
        """Hand out no more shards, in this map call or any later one. May be called from a signal handler."""
        ...

    @property
    def is_stopped(self) -> bool:
        """Whether stop() was called."""
        ...

    def close(self) -> None:
        """End the replicas, whatever they are doing. Safe to call twice."""
        ...


def summarize_error(error: BaseException) -> str:
    """Return the type and message of an error, then the end of its traceback, with secrets redacted."""
    summary = "".join(traceback.format_exception_only(error)).strip()
    # Redact before cutting: a cut could leave half of a secret, which no pattern recognizes.
    trace = redacted("".join(traceback.format_exception(error)).strip())
    return f"{redacted(summary)[:_MAX_ERROR_CHARS]}\n{trace[-_MAX_ERROR_CHARS:]}"
