"""Every state of the commit protocol's model is visited; and without any one of its rules it is seen to break.

What becomes of a shard depends on what is done to that shard alone: what is done to another one takes time, in which
anything may happen anyhow, or uses up faults. So two faults are tried over one shard, in every interleaving, and two
shards with fewer, to see that it is so.
"""

from __future__ import annotations

import pytest

from tests.reliability.small_run import LONG
from tests.simulation import commit_model
from tests.simulation.commit_model import Rules, State, Violation, explore


@pytest.fixture
def one_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_model, "SHARDS", (0,))


def test_two_faults_break_no_promise_over_a_shard(one_shard: None, capsys: pytest.CaptureFixture[str]) -> None:
    states = explore(start=State(faults=2))
    with capsys.disabled():
        print(f"\n{states:,} states of two drivers, a vacuum and any reader, with up to two faults")
    assert states > 300_000


@pytest.mark.timeout(900)
def test_two_shards_break_no_promise(capsys: pytest.CaptureFixture[str]) -> None:
    faults = 1 if LONG else 0
    states = explore(start=State(faults=faults))
    with capsys.disabled():
        print(f"\n{states:,} states of two drivers, two shards, a vacuum and any reader, with up to {faults} faults")
    assert states > 10_000


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (Rules(losers_only=False), "names attempt"),
        (Rules(grace=False), "names attempt"),
        (Rules(heals=False), "is not whole after one more run"),
    ],
    ids=["a driver removes its own uncommitted files", "vacuum waits for nothing", "what is gone stays gone"],
)
def test_without_a_rule_the_model_breaks(rules: Rules, told: str, one_shard: None) -> None:
    with pytest.raises(Violation, match=told):
        explore(rules, State(faults=2))
