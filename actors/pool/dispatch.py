"""What both runners share: which shard to try next, how often, under which attempt id, and when to stop handing out.

Knows nothing of replicas, threads or Ray."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.pool.config import PoolConfig
from actors.pool.runner import FailureKind, ShardFailure
from pipelines.planning.plan import DRIVER_ID
from pipelines.types import FatalImage, Reason, Shard

# After so many images of one shard have each ended a replica, the images are not to blame.
MAX_LETHAL_IMAGES = 8

_ENDS: Mapping[FailureKind, Reason] = {"replica_died": Reason.REPLICA_DIED, "timeout": Reason.REPLICA_HUNG}
# The ends of other replicas on the same machine are known by then.
_LOOK_AROUND_S = 1.0
_numbers = itertools.count()


def attempt_ids() -> Iterator[str]:
    """Yield ids that nobody else yields: the driver's own id, a dash, and a number that runs on in this process."""
    return (f"{DRIVER_ID}-{number}" for number in _numbers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One try at one shard.

    Attributes:
        shard: what to label.
        attempt_id: the id under which it commits; empty while it waits.
        number: 1 for the first try at this shard.
        failures: tries before this one that count against the shard.
        alone: True if an earlier try ended with its replica: this one must share its replica with no other, so that
            a shard that kills replicas is found out without taking its neighbours along.
        suspects: ids of images that were under way when an earlier try ended with its replica.
        fatal: those that were under way twice, the second time alone.
        error: how the try before this one ended.
        not_before: time.monotonic() before which it is not to start.
    """

    shard: Shard
    attempt_id: str = ""
    number: int = 1
    failures: int = 0
    alone: bool = False
    suspects: frozenset[str] = frozenset()
    fatal: Mapping[str, FatalImage] = field(default_factory=dict)
    error: str = ""
    not_before: float = 0.0


class ShardQueue:
    """The shards of one map call: those waiting for another try, then the caller's iterable, pulled only on demand."""

    def __init__(self, shards: Iterable[Shard], ids: Iterator[str], max_outstanding: int, max_attempts: int) -> None:
        self._source: Iterator[Shard] | None = iter(shards)
        self._ids = ids
        self._max_outstanding = max_outstanding
        self._max_attempts = max_attempts
        self._waiting: deque[Attempt] = deque()
        self._outstanding = 0

    def has_more(self) -> bool:
        """Say whether there is, or may be, something left to hand out; pulls a shard to find out if there is room."""
        return bool(self._waiting) or self._pull() or self._source is not None

    def take(self, *, idle: bool) -> Attempt | None:
        """Return the next attempt to start, or None if there is nothing for this replica now.

        Args:
            idle: whether the replica that asks is doing nothing else.
        """
        fitting = self._next_fitting(idle)
        if fitting is None and self._pull():
            fitting = self._next_fitting(idle)
        if fitting is None:
            return None
        self._waiting.remove(fitting)
        return replace(fitting, attempt_id=next(self._ids))

    def done(self) -> None:
        """Note that an attempt has succeeded, which makes room for another shard."""
        self._outstanding -= 1

    def failed(
        self,
        attempt: Attempt,
        kind: FailureKind,
        error: str,
        *,
        charged: bool = True,
        under_way: Sequence[str] = (),
    ) -> ShardFailure | None:
        """Put a failed attempt back in the queue, or return the failure if the shard has used up its attempts.

        A try that ended with its replica while images were under way does not count: the next one knows more.

        Args:
            attempt: the attempt that failed.
            kind: how.
            error: what happened.
            charged: False if the shard cannot be to blame, so that the try does not count against it.
            under_way: ids of the images that it was working on, as far as known.
        """
        again = replace(attempt, attempt_id="", number=attempt.number + 1, error=error)
        if charged and kind in _ENDS:
            not_before, suspects = time.monotonic() + _LOOK_AROUND_S, attempt.suspects | set(under_way)
            again = replace(again, alone=True, suspects=suspects, not_before=not_before)
            if len(under_way) == 1 and attempt.suspects.issuperset(under_way):
                fatal = FatalImage(reason=_ENDS[kind], error=error)
                again = replace(again, fatal={**attempt.fatal, under_way[0]: fatal})
        if not under_way or len(again.fatal) > MAX_LETHAL_IMAGES:
            again = replace(again, failures=attempt.failures + charged)
        if again.failures >= self._max_attempts:
            return self.give_up(attempt, kind, error)
        self._waiting.append(again)
        return None

    def give_up(self, attempt: Attempt, kind: FailureKind, error: str) -> ShardFailure:
        """Return the failure of a shard that is not to be tried again."""
        self._outstanding -= 1
        return ShardFailure(shard_id=attempt.shard.shard_id, attempts=attempt.number, error=error, kind=kind)

    def give_up_waiting(self, reason: str) -> list[ShardFailure]:
        """Return the failures of everything that waits for another try and will not get one."""
        failures = []
        while self._waiting:
            attempt = self._waiting.popleft()
            error = f"{reason}; its attempt before: {attempt.error}" if attempt.error else reason
            tried = replace(attempt, number=attempt.number - 1)
            failures.append(self.give_up(tried, "unfinished", error))
        return failures

    def _next_fitting(self, idle: bool) -> Attempt | None:
        now = time.monotonic()
        waiting = (attempt for attempt in self._waiting if attempt.not_before <= now)
        return next((attempt for attempt in waiting if idle or not attempt.alone), None)

    def _pull(self) -> bool:
        """Take one shard from the iterable if there is room and it has one; say whether it did."""
        if self._source is None or self._outstanding >= self._max_outstanding:
            return False
        try:
            self._waiting.append(Attempt(shard=next(self._source)))
        except StopIteration:
            self._source = None
            return False
        self._outstanding += 1
        return True


class Drain:
    """When one map call stops handing out shards, and when it stops waiting for those in flight.

    Args:
        config: budget and grace.
        budget_since: time.monotonic() from when the budget counts.

    Attributes:
        reason: why shards are no longer handed out; empty while they are.
        over: whether the time given to the shards in flight has passed too.
    """

    def __init__(self, config: PoolConfig, budget_since: float) -> None:
        self.reason = ""
        self.over = False
        self._budget_s = config.budget_s
        self._grace_s = config.drain_grace_s
        self._budget_since = budget_since
        self._draining_since = 0.0

    def update(self, *, stopped: bool) -> bool:
        """Look at the clock; return True the one time that draining begins."""
        now = time.monotonic()
        if self.reason:
            self.over = now - self._draining_since >= self._grace_s
            return False
        if stopped:
            self.reason = "the run was asked to stop"
        elif self._budget_s is not None and now - self._budget_since >= self._budget_s:
            self.reason = f"the budget of {self._budget_s:g} s is spent"
        self._draining_since = now
        return bool(self.reason)
