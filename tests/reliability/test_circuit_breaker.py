"""A run of which too many images cannot be labeled stops, keeps what it has, and goes on once it is told to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.config import ConfigError, LimitsConfig, parse_config
from flows.run.breaker import CircuitBreaker
from pipelines.types import ShardReceipt
from tests.reliability.small_run import RUN, SmallRun, run
from tests.support.fakes import write_images


def receipt(ok: int, **reasons: int) -> ShardReceipt:
    counts = {"ok": ok, "quarantined": sum(reasons.values())}
    return ShardReceipt(shard_id="s", attempt="a", status_counts=counts, reason_counts=reasons)


def test_it_opens_once_and_names_the_reason_that_most_have() -> None:
    breaker = CircuitBreaker(LimitsConfig(max_quarantined_share=0.25, after_images=100))
    assert not breaker.add(receipt(0, not_found=99))
    assert not breaker.add(receipt(301))
    assert breaker.reason == ""
    assert breaker.add(receipt(0, truncated=1, not_found=2))
    assert "102 of 403 images" in breaker.reason
    assert "101, for 'not_found'" in breaker.reason
    assert not breaker.add(receipt(0, truncated=1))


def test_a_limit_of_one_never_opens() -> None:
    breaker = CircuitBreaker(LimitsConfig(max_quarantined_share=1, after_images=1))
    assert not breaker.add(receipt(0, not_found=1000))


def test_a_run_of_bad_images_stops_early_and_goes_on_when_told_to(tmp_path: Path) -> None:
    source = tmp_path / "images"
    write_images(source, 24)
    for path in sorted(source.iterdir())[4:12]:
        path.write_bytes(b"no image")
    small = SmallRun(
        source=str(source),
        output=str(tmp_path / "out"),
        images_per_shard=2,
        limits={"max_quarantined_share": 0.4, "after_images": 6},
    )
    stopped = run(small)
    assert not stopped.ok
    assert "4 of 8 images could not be labeled" in stopped.problems[0]
    assert "'not_an_image'" in stopped.problems[0]
    assert 4 <= stopped.committed < 12
    patient = run(replace(small, limits={"max_quarantined_share": 1.0}))
    assert patient.ok
    assert patient.run_id == RUN
    assert patient.labelled_now == 12 - stopped.committed
    assert patient.ledger == {"listed": 24, "ok": 16, "empty": 0, "not_asked": 0, "quarantined": 8}


@pytest.mark.parametrize(
    ("limits", "message"),
    [({"max_quarantined_share": 20}, "allowed: 0 to 1"), ({"after_images": 0}, "allowed: 1 or more")],
)
def test_limits_say_what_is_allowed(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"source": "a", "output": "b", "categories": ["c"], "limits": limits})
