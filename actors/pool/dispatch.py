"""The shard queue and the drain clock that both runners share: retries, attempt ids, and when to stop handing out.

Knows nothing about replicas, threads or Ray."""

from __future__ import annotations

import heapq
import itertools
import operator
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.pool.config import PoolConfig
from actors.pool.runner import FailureKind, ShardFailure
from pipelines.planning.plan import DRIVER_ID
from pipelines.types import FatalImage, Reason, Shard

# If this many images of one shard have each ended a replica, the cause is hardly the images any more: from here on
# further attempts count against the shard.
MAX_LETHAL_IMAGES = 8

# Failures in which the replica ended, with the reason in the table of an image that is found to be lethal.
_ENDS: Mapping[FailureKind, Reason] = {"replica_died": Reason.REPLICA_DIED, "timeout": Reason.REPLICA_HUNG}
# Wait before a retry: a lost machine ends all its replicas at once, and the retry must not go to one whose death has
# not been reported yet.
_LOOK_AROUND_S = 1.0
# One counter for the whole process, because a second runner has the same DRIVER_ID and must not reuse an attempt id.
_numbers = itertools.count()


def attempt_ids() -> Iterator[str]:
    """Yield attempt ids that are unique across drivers: the driver's id, a dash, and a number unique in the process."""
    return (f"{DRIVER_ID}-{number}" for number in _numbers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Attempt:
    """One attempt at labeling a shard.

    Attributes:
        shard: what to label.
        attempt_id: the id under which it commits; empty while it waits in the queue.
        number: 1 for the first attempt at this shard.
        failures: earlier attempts that count against the shard.
        alone: True if an earlier attempt's replica died or hung. This attempt then shares its replica with no other, so
            that a shard that kills replicas takes no neighbors with it.
        suspects: ids of images that were in progress when the replica of an earlier attempt died or hung.
        fatal: images that were in progress at two such ends, alone at the second, by id.
        error: how the previous attempt ended.
        not_before: earliest start, on the clock of time.monotonic().
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
    """The shards of one map call: retries first, then the caller's iterable, from which shards are pulled on demand.

    Args:
        shards: the caller's iterable.
        ids: where attempts get their ids from.
        max_outstanding: shards that may be pulled and have no outcome yet.
        max_attempts: failed attempts after which a shard is given up.
        hold_back: so many of the last shards are given only to replicas that work on nothing else, so that none waits
            behind a long one while another replica has nothing to do. Their number is known if the iterable tells it
            (``operator.length_hint``).
    """

    def __init__(
        self, shards: Iterable[Shard], ids: Iterator[str], max_outstanding: int, max_attempts: int, hold_back: int = 0
    ) -> None:
        self._source: Iterator[Shard] | None = iter(shards)
        self._ids = ids
        self._max_outstanding = max_outstanding
        self._max_attempts = max_attempts
        self._hold_back = hold_back
        self._shared: deque[Attempt] = deque()
        self._alone: deque[Attempt] = deque()
        self._delayed: list[tuple[float, int, Attempt]] = []
        self._order = itertools.count()
        self._outstanding = 0

    def has_more(self) -> bool:
        """Return whether anything is, or may be, left to hand out; pulls a shard to find out if there is room."""
        # While there is no room to pull, the iterable may or may not be exhausted: it counts as having more.
        return bool(self._num_waiting()) or self._pull() or self._source is not None

    def take(self, *, idle: bool) -> Attempt | None:
        """Return the next attempt to start, or None if there is none that this replica may take now.

        Args:
            idle: whether the replica is working on nothing else.
        """
        if not idle and self._is_ending():
            return None
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._alone.append(heapq.heappop(self._delayed)[-1])
        waiting = self._alone if idle and self._alone else self._shared
        if not waiting and not self._pull():
            return None
        return replace(waiting.popleft(), attempt_id=next(self._ids))

    def done(self) -> None:
        """Record that an attempt has succeeded, which makes room for another shard."""
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
        """Queue another attempt, or return the failure if the shard has used up its attempts.

        An attempt whose replica died or hung does not count if its images in progress are known: the next attempt is
        closer to the image that is to blame.

        Args:
            attempt: the attempt that failed.
            kind: how it failed.
            error: what happened.
            charged: False if the shard cannot be to blame; the attempt then does not count against it.
            under_way: ids of the images in progress when it failed, as far as they are known.
        """
        # A new id for every attempt: one that was given up may still be running, and may commit under its own.
        again = replace(attempt, attempt_id="", number=attempt.number + 1, error=error)
        if charged and kind in _ENDS:
            not_before, suspects = time.monotonic() + _LOOK_AROUND_S, attempt.suspects | set(under_way)
            again = replace(again, alone=True, suspects=suspects, not_before=not_before)
            # Condemning an image takes two ends, so that one lost machine condemns none.
            if len(under_way) == 1 and attempt.suspects.issuperset(under_way):
                fatal = FatalImage(reason=_ENDS[kind], error=error)
                again = replace(again, fatal={**attempt.fatal, under_way[0]: fatal})
        if not under_way or len(again.fatal) > MAX_LETHAL_IMAGES:
            again = replace(again, failures=attempt.failures + charged)
        if again.failures >= self._max_attempts:
            return self.give_up(attempt, kind, error)
        if again.alone:
            heapq.heappush(self._delayed, (again.not_before, next(self._order), again))
        else:
            self._shared.append(again)
        return None

    def give_up(self, attempt: Attempt, kind: FailureKind, error: str) -> ShardFailure:
        """Return the failure of a shard that will not be tried again."""
        self._outstanding -= 1
        return ShardFailure(shard_id=attempt.shard.shard_id, attempts=attempt.number, error=error, kind=kind)

    def give_up_waiting(self, reason: str) -> list[ShardFailure]:
        """Return the failures of all shards that wait for an attempt and will not get one."""
        failures = []
        delayed = [entry[-1] for entry in self._delayed]
        for attempt in (*self._alone, *delayed, *self._shared):
            error = f"{reason}; its attempt before: {attempt.error}" if attempt.error else reason
            # A waiting attempt is numbered for its next start, so one fewer has been made.
            tried = replace(attempt, number=attempt.number - 1)
            failures.append(self.give_up(tried, "unfinished", error))
        self._alone.clear()
        self._delayed.clear()
        self._shared.clear()
        return failures

    def _num_waiting(self) -> int:
        return len(self._shared) + len(self._alone) + len(self._delayed)

    def _is_ending(self) -> bool:
        """Return whether only the last shards are left, which are held back for idle replicas."""
        if not self._hold_back:
            return False
        to_come = 0 if self._source is None else operator.length_hint(self._source, -1)
        return to_come >= 0 and to_come + self._num_waiting() <= self._hold_back

    def _pull(self) -> bool:
        """Pull one shard from the iterable if there is room and one is left; return whether it did."""
        if self._source is None or self._outstanding >= self._max_outstanding:
            return False
        try:
            self._shared.append(Attempt(shard=next(self._source)))
        except StopIteration:
            self._source = None
            return False
        self._outstanding += 1
        return True


class Drain:
    """Decides when a map call stops handing out shards, and when it stops waiting for those in flight.

    Args:
        config: budget and grace period.
        budget_since: when the budget started, on the clock of time.monotonic().

    Attributes:
        reason: why no more shards are handed out; empty while they are.
        over: whether the grace period of the shards in flight has ended too.
    """

    def __init__(self, config: PoolConfig, budget_since: float) -> None:
        self.reason = ""
        self.over = False
        self._budget_s = config.budget_s
        self._grace_s = config.drain_grace_s
        self._budget_since = budget_since
        self._draining_since = 0.0

    def update(self, *, stopped: bool) -> bool:
        """Check the clock; return True only on the call at which draining begins."""
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
