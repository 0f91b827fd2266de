"""The commit protocol's model breaks no promise; and without any one of its rules it is seen to break.

What is proved by what, of two drivers, a vacuum and any reader:

- one shard, two faults: every state is visited, and none breaks a promise;
- two shards, no fault (one in the long form): the same;
- two shards, two faults: there are too many states to visit here. But every step of two shards is, from each of them, a
  step of the one-shard model or none, and what is broken at a shard is seen from it alone (`commit_refinement`). By
  induction over steps each shard of a reachable state of two is a reachable state of one, and those are all visited.

That relation of steps is itself checked: at every step without faults (with one in the long form), and at all that can
happen next along random ways with two faults. It is no proof for a step with two faults that neither has met. It holds
whatever the rules are, so it is tried without some of them too, where promises are seen to break; and it is seen to
refuse models in which shards do mix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.reliability.small_run import LONG
from tests.simulation import commit_model
from tests.simulation.commit_model import Message, Rules, State, Violation, Worker, explore
from tests.simulation.commit_refinement import Refinement, Unrelated, project, walk

FAULTS = 1 if LONG else 0
WALKED = 200_000 if LONG else 10_000


def one_shard(faults: int) -> State:
    return State(commits=((),), faults=faults)


def test_two_faults_break_no_promise_over_a_shard(capsys: pytest.CaptureFixture[str]) -> None:
    states = explore(start=one_shard(2))
    with capsys.disabled():
        print(f"\n{states:,} states of two drivers, a vacuum and any reader, with up to two faults")
    assert states > 300_000


@pytest.mark.timeout(900)
def test_two_shards_break_no_promise_and_are_each_a_shard_alone(capsys: pytest.CaptureFixture[str]) -> None:
    start, refinement = State(faults=FAULTS), Refinement(Rules(), FAULTS)
    assert [project(start, shard) for shard in (0, 1)] == [one_shard(FAULTS)] * 2
    states = explore(start=start, on_step=refinement.on_step)
    pairs = refinement.check()
    with capsys.disabled():
        print(f"\n{states:,} states, {refinement.num_steps:,} steps of two shards with up to {FAULTS} faults:", end=" ")
        print(f"{pairs:,} of one")
    assert states > 10_000
    assert refinement.num_steps > pairs > 5_000


RULES = [
    (Rules(), set()),
    (Rules(losers_only=False), {"a commit names attempt"}),
    (Rules(grace=False), {"a commit names attempt"}),
    (Rules(heals=False), {"it is not whole", "it has leftovers after"}),
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("rules", "broken"), RULES, ids=["all rules", "own files", "no grace", "no healing"])
def test_each_of_two_shards_with_two_faults_is_a_shard_alone_along_random_ways(
    rules: Rules, broken: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert [project(State(), shard) for shard in (0, 1)] == [one_shard(2)] * 2
    refinement = Refinement(rules, 2)
    walk(refinement, State(), seed=1, num_states=WALKED)
    pairs = refinement.check()
    with capsys.disabled():
        print(f"\n{refinement.num_steps:,} steps of two shards with up to two faults: {pairs:,} of one")
    assert pairs > 5_000
    assert {" ".join(what.split()[:4]) for what in refinement.broken} == broken


def _takes_of_both(land: Callable[..., State], state: State, message: Message) -> State:
    """A delete takes the file of the other shard's attempt of that number too."""
    after = land(state, message)
    if message[0] != "delete":
        return after
    taken = {(shard, message[2]) for shard in range(len(state.commits))}
    return after._replace(files=after.files - taken, old=after.old - taken)


def _forgets_the_other(plain: Callable[[State], State], state: State) -> State:
    """Commits on their way to the second shard are lost once the first has one."""
    kept = (one for one in state.on_way if one[:2] != ("create", 1) or not state.commits[0])
    return plain(state._replace(on_way=tuple(kept)))


def _sweeps_by_the_other(
    sweeps: Callable[..., Any], state: State, worker: Worker, name: str, then: Any, rules: Rules
) -> Any:
    """A sweep goes by the commits of the other shard."""

    def really(after: Worker | None, now: State = state) -> Any:
        return then(after, now._replace(commits=state.commits))

    return sweeps(state._replace(commits=state.commits[::-1]), worker, name, really, rules)


def _scans_the_other(due: Callable[..., int], state: State, shard: int, rules: Rules) -> int:
    """A driver labels a shard again if the other one's file is gone."""
    return max(due(state, at, rules) for at in range(len(state.commits)))


@pytest.mark.parametrize(
    ("name", "mixed"),
    [
        ("_land", _takes_of_both),
        ("_plain", _forgets_the_other),
        ("_sweeps", _sweeps_by_the_other),
        ("_due", _scans_the_other),
    ],
)
def test_shards_that_mix_are_not_each_a_shard_alone(
    name: str, mixed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(commit_model, name)
    monkeypatch.setattr(commit_model, name, lambda *args: mixed(real, *args))
    refinement = Refinement(Rules(), 2)

    def check() -> None:
        walk(refinement, State(), seed=1, num_states=3_000)
        refinement.check()

    with pytest.raises(Unrelated):
        check()


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Rules(losers_only=False), "names attempt"),
        (Rules(grace=False), "names attempt"),
        (Rules(heals=False), "is not whole after one more run"),
    ],
    ids=["a driver removes its own uncommitted files", "vacuum waits for nothing", "what is gone stays gone"],
)
def test_without_a_rule_the_model_breaks(rules: Rules, told: str) -> None:
    with pytest.raises(Violation, match=told):
        explore(rules, one_shard(2))
