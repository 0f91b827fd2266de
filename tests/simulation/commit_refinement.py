"""Two shards are no more than one and one: a simulation relation between the two models, checked step by step.

What a state of two shards looks like from one of them is a state of the model of that shard alone (`project`). The
relation holds if every step of the two-shard model is, from each of its shards, either a step of the one-shard model or
none. Then whatever two shards can come to, each of them can come to alone; and as a promise is broken at one shard
(`commit_model.problems`), a one-shard model that breaks none speaks for both.

That is checked where the steps are: at every state that is visited, or along random ways.

The one-shard state may be ahead in two things that only allow it more: it may have faults left that were used up at the
other shard, and a day that passed over files of the other shard alone need not have passed for it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.commit_model import DELETE, SCAN, SWEEP, WRITE, Rules, State, Worker, problems, steps


class Unrelated(AssertionError):
    """A step of two shards that one of them alone could not have taken."""


def project(state: State, shard: int) -> State:
    """Return what a state looks like from one of its shards, which is called 0 then."""
    workers = (_project_worker(worker, shard) for worker in state.workers)
    return State(
        commits=(state.commits[shard],),
        files=frozenset((0, attempt) for at, attempt in state.files if at == shard),
        old=frozenset((0, attempt) for at, attempt in state.old if at == shard),
        has_aged=state.has_aged,
        on_way=tuple((verb, 0, attempt, k) for verb, at, attempt, k in state.on_way if at == shard),
        workers=tuple(sorted(worker for worker in workers if worker is not None)),
        excused=frozenset({0} if shard in state.excused else ()),
        faults=state.faults,
    )


def _project_worker(worker: Worker, shard: int) -> Worker | None:
    """Return what a worker is to one shard: at it, on the way to it, or past it; None for nothing at all."""
    is_here = worker.shard == shard
    if worker.phase == SCAN:
        return worker
    if worker.is_alone and not is_here:
        return None
    if worker.phase in (SWEEP, DELETE):
        if is_here:
            return worker._replace(shard=0, doomed=tuple((0, attempt) for _, attempt in worker.doomed))
        return worker._replace(phase=SWEEP, shard=int(worker.shard > shard), doomed=())
    due = worker.due[shard]
    if is_here:
        return worker._replace(shard=0, due=(due,))
    if worker.shard < shard and due >= 0:
        return worker._replace(phase=WRITE, shard=0, attempt=0, due=(due,))
    return worker._replace(phase=SWEEP, shard=0, attempt=0, due=())


@dataclass
class Refinement:
    """Checks steps of the two-shard model against the one-shard model.

    Steps are gathered first, as pairs of projections: many steps look alike from one shard.

    Attributes:
        rules: of both models.
        faults: with which both of them began.
        num_steps: of two shards that were gathered.
        broken: promises that were seen broken, at either shard.
    """

    rules: Rules
    faults: int
    num_steps: int = 0
    broken: set[str] = field(default_factory=set)
    _numbers: dict[State, int] = field(default_factory=dict)
    _seen: dict[State, tuple[int, ...]] = field(default_factory=dict)
    _pairs: set[tuple[int, int]] = field(default_factory=set)

    def on_step(self, state: State, after: State) -> None:
        """Gather a step.

        Raises:
            Unrelated: a promise that is broken there is not seen to be broken from its shard alone, or the reverse.
        """
        self.num_steps += 1
        self._pairs.update(zip(self._look(state), self._look(after), strict=True))

    def has_seen(self, state: State) -> bool:
        """Whether a step from or to a state was gathered."""
        return state in self._seen

    def check(self) -> int:
        """Look for each step, as it looks from a shard, in the model of that shard alone; return how many they were.

        Raises:
            Unrelated: that shard alone could not have taken it.
        """
        projections, nexts = list(self._numbers), defaultdict(list)
        for before, after in self._pairs:
            nexts[before].append(projections[after])
        for before, afters in nexts.items():
            for alone in self._related(projections[before]):
                possible = [alone, *(then for _, then in steps(alone, self.rules))]
                for after in afters:
                    if not any(_covers(then, after) for then in possible):
                        raise Unrelated(f"no step of a shard alone leads\nfrom {alone}\nto   {after}")
        return len(self._pairs)

    def _look(self, state: State) -> tuple[int, ...]:
        """Return the numbers of a state's projections; what is broken is compared when a state is seen first."""
        if state not in self._seen:
            projections = [project(state, shard) for shard in range(len(state.commits))]
            found = list(problems(state, self.rules))
            for shard, one in enumerate(projections):
                # What one more run leaves is told where nobody is at work: at the other shard somebody may be.
                seen = one._replace(workers=one.workers or state.workers)
                alone = [what for _, what in problems(seen, self.rules)]
                if alone != [what for at, what in found if at == shard]:
                    raise Unrelated(f"{state} breaks {found}, but shard {shard} alone {alone}")
            self.broken.update(what for _, what in found)
            self._seen[state] = tuple(self._numbers.setdefault(one, len(self._numbers)) for one in projections)
        return self._seen[state]

    def _related(self, projection: State) -> Iterator[State]:
        """Yield every one-shard state that stands for a projection."""
        for faults in range(projection.faults, self.faults + 1):
            yield projection._replace(faults=faults)
            if projection.has_aged and not projection.old:
                yield projection._replace(faults=faults, has_aged=False)


def _covers(alone: State, projection: State) -> bool:
    is_ahead = alone.faults >= projection.faults and alone.has_aged <= projection.has_aged
    return is_ahead and alone._replace(faults=projection.faults, has_aged=projection.has_aged) == projection


def walk(refinement: Refinement, start: State, seed: int, num_states: int) -> None:
    """Gather all that can happen next along random ways from a start to an end, and again.

    They go rather where nobody was yet, and mostly without a fault: else both would be used up soon after each start.

    Raises:
        Unrelated: see `Refinement.on_step`.
    """
    draw, state = random.Random(seed), start
    for _ in range(num_states):
        nexts = [after for _, after in steps(state, refinement.rules)]
        fresh = [after for after in nexts if not refinement.has_seen(after)]
        for after in nexts:
            refinement.on_step(state, after)
        well = [after for after in fresh or nexts if after.faults == state.faults]
        state = draw.choice(well if well and draw.random() < 0.9 else fresh or nexts or [start])
