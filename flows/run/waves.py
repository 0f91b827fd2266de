"""The due shards of a run as one stream, and the waves in which they are shown and tried again.

Replicas are handed shards from the stream without regard to waves, so that none waits for a wave's last shard. Each
wave may be watched by a thread of its own, which learns how it ended and may have its failed shards tried again.
"""

from __future__ import annotations

import contextvars
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Self

from actors.pool.runner import ShardFailure
from flows.config import RunConfig
from pipelines.planning.plan import Plan
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import held_commits
from pipelines.types import Shard, ShardReceipt

# Waves are for looking at: some rounds of all replicas, so that a short run has few.
_SHARDS_PER_SLOT_AND_WAVE = 4
_LOOK_EVERY_S = 0.2
# How long a stopped run waits for threads that watch waves, of which one may be sleeping until its next try.
_PATIENCE_S = 5.0


def cut_waves(shard_ids: list[str], config: RunConfig) -> list[list[str]]:
    """Group shards into waves, at most max_waves of them."""
    slots = config.pool.replicas * config.pool.shards_in_flight_per_replica
    size = max(math.ceil(len(shard_ids) / config.waves.max_waves), slots * _SHARDS_PER_SLOT_AND_WAVE)
    return [shard_ids[start : start + size] for start in range(0, len(shard_ids), size)]


class Wave:
    """A group of shards that is shown as one, and whose failed shards are tried again together.

    Attributes:
        label: its number, and the number of waves.
        failures: the last failure of each shard that has failed, by shard.
        pending: number of shards without an outcome.
    """

    def __init__(self, stream: ShardStream, label: str, num_shards: int) -> None:
        self.label = label
        self.failures: dict[str, ShardFailure] = {}
        self.pending = num_shards
        self._stream = stream
        self._was_told = False

    def outcome(self) -> tuple[list[ShardFailure], int]:
        """Wait until every shard has an outcome; called again, have the failed ones tried again, and wait for these.

        Returns:
            The failures, and the number of shards without an outcome: 0, unless the run has stopped.
        """
        with self._stream.changed:
            if self._was_told and self.failures:
                self._stream.ask_again(self)
            self._stream.changed.wait_for(lambda: not self.pending or self._stream.closed)
            self._was_told = True
            return list(self.failures.values()), self.pending

    def problem(self) -> tuple[str, bool]:
        """Wait as ``outcome`` does.

        Returns:
            What was not labeled, in words, or nothing; and whether it may help to call this again, for replicas that
            cannot start were retried often enough by the pool.
        """
        failures, num_left = self.outcome()
        first = [f"{f.shard_id}: {f.error.splitlines()[0]}" for f in failures[:5]]
        left = [
            f"{counted(num_left, 'shard was', 'shards were')} not labeled: the budget is spent or the run has stopped"
        ] * (num_left > 0)
        can_retry = not num_left and any(failure.kind != "unfinished" for failure in failures)
        return "; ".join(first + left), can_retry


class ShardStream:
    """The due shards in the order of the plan, and those again that a wave asks for; read as they are taken.

    An iterator for ``ShardRunner.map``. Once it has ended, it may have more: see ``goes_on``. All but Wave.outcome is
    called in the thread that labels.

    Args:
        store: the output.
        plan: the run's plan.
        due: the shards, each with the number of the commit that is due.
        waves: the same shards in groups.
        watch: called for each wave, in a thread of its own, once its first shard is taken; None if nobody looks at
            waves.
        part: what these shards are of the run, for the labels of the waves.

    Attributes:
        changed: guards all that is said of waves, and tells of changes.
        closed: whether no shard will be handed out any more.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        due: Mapping[str, int],
        waves: list[list[str]],
        watch: Callable[[Wave], object] | None = None,
        *,
        part: str = "",
    ) -> None:
        self.changed = threading.Condition()
        self.closed = False
        self._store, self._plan, self._due, self._watch = store, plan, due, watch
        self._waves = [Wave(self, f"{part}{n}/{len(waves)}", len(ids)) for n, ids in enumerate(waves, start=1)]
        self._wave_of = {shard_id: wave for wave, ids in zip(self._waves, waves, strict=True) for shard_id in ids}
        self._asked: deque[tuple[Wave, list[str]]] = deque()
        self._to_come = len(due)
        self._num_watched = 0
        self._has_ended = False
        self._first = self._read_first()
        self._again: Iterator[Shard] = iter(())

    def __iter__(self) -> Self:
        """Return itself."""
        self._has_ended = False
        return self

    def __next__(self) -> Shard:
        """Read the next shard; those asked for again come first."""
        while (shard := next(self._again, None)) is None and self._asked:
            wave, shard_ids = self._asked.popleft()
            self._to_come += len(shard_ids)
            self._again = self._read_again(wave, shard_ids)
        if shard is None and (shard := next(self._first, None)) is None:
            self._has_ended = True
            raise StopIteration
        self._to_come -= 1
        return shard

    def __length_hint__(self) -> int:
        """Return how many shards are to come, if no wave asks for one again."""
        return self._to_come

    @property
    def failures(self) -> list[ShardFailure]:
        """The last failure of each shard that could not be labeled."""
        return [failure for wave in self._waves for failure in wave.failures.values()]

    def settle(self, outcome: ShardReceipt | ShardFailure) -> None:
        """Note the outcome of a shard."""
        failure = outcome if isinstance(outcome, ShardFailure) else None
        self._settle(self._wave_of[outcome.shard_id], outcome.shard_id, failure)

    def ask_again(self, wave: Wave) -> None:
        """Have the failed shards of a wave come once more; to be called while ``changed`` is held."""
        if not self.closed:
            self._asked.append((wave, list(wave.failures)))
            wave.pending += len(wave.failures)
            self.changed.notify_all()

    def goes_on(self, is_stopping: Callable[[], bool]) -> bool:
        """After a map call: wait until all waves that are watched have ended, or one asks for shards again.

        Args:
            is_stopping: whether the run is to stop; nothing is tried again then.

        Returns:
            Whether there is something to label again.
        """
        if not self._has_ended:
            self.close()  # the runner takes no more
        with self.changed:
            deadline = time.monotonic() + _PATIENCE_S
            while self._num_watched and not self._asked and not (self.closed and time.monotonic() > deadline):
                self.changed.wait(_LOOK_EVERY_S)  # with a time limit, so that signals are handled
                if not self.closed and is_stopping():
                    self.close()
                    deadline = time.monotonic() + _PATIENCE_S
            return bool(self._asked) and not self.closed

    def close(self) -> None:
        """Hand out no more, and let waves end as they are."""
        with self.changed:
            self.closed = True
            self._asked.clear()
            self.changed.notify_all()

    def _read_first(self) -> Iterator[Shard]:
        held: Mapping[str, int] = {}
        begun: Wave | None = None
        # Part by part: the plan is never held as a whole.
        for shard in self._plan.shards(self._store, self._due):
            wave = self._wave_of[shard.shard_id]
            if wave is not begun:
                # Commits are looked up again for each wave, since another driver may have made some of them.
                begun, held = wave, held_commits(self._store, self._plan.run_id)
                self._begin(wave)
            if self._is_due(shard.shard_id, held, wave):
                yield replace(shard, repair=self._due[shard.shard_id])

    def _read_again(self, wave: Wave, shard_ids: list[str]) -> Iterator[Shard]:
        held = held_commits(self._store, self._plan.run_id)  # an attempt given up may have committed since
        todo = {shard_id for shard_id in shard_ids if self._is_due(shard_id, held, wave)}
        for shard in self._plan.shards(self._store, todo):
            yield replace(shard, repair=self._due[shard.shard_id])

    def _is_due(self, shard_id: str, held: Mapping[str, int], wave: Wave) -> bool:
        if held.get(shard_id, -1) < self._due[shard_id]:
            return True
        self._to_come -= 1
        self._settle(wave, shard_id, None)
        return False

    def _settle(self, wave: Wave, shard_id: str, failure: ShardFailure | None) -> None:
        with self.changed:
            wave.pending -= 1
            wave.failures.pop(shard_id, None)
            if failure is not None:
                wave.failures[shard_id] = failure
            if not wave.pending:
                self.changed.notify_all()

    def _begin(self, wave: Wave) -> None:
        if self._watch is None:
            return
        context, watch = contextvars.copy_context(), self._watch
        with self.changed:
            self._num_watched += 1

        def run() -> None:
            try:
                context.run(watch, wave)
            finally:
                with self.changed:
                    self._num_watched -= 1
                    self.changed.notify_all()

        # A daemon, so that a thread that sleeps until its next try does not keep a stopped process alive.
        threading.Thread(target=run, name=f"wave-{wave.label}", daemon=True).start()
