"""SIGTERM: what is in flight is committed, nothing else is begun, and the run is left to be resumed."""

from __future__ import annotations

import os
import secrets
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig
from flows.process import signals
from flows.run import engine
from flows.run.observer import Silent
from pipelines.table.commits import committed_shards
from pipelines.table.leftovers import find_leftovers
from pipelines.types import Answer, Image, Prompt
from tests.reliability.slow_proxy import Rule, slow_proxy
from tests.reliability.small_run import RUN, SmallRun, as_driver, check_ended, rows, run, write_source
from tests.support.drivers import PrefectServer, run_file
from tests.support.fakes import BrightPredictor
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)


@dataclass
class Terminating(BrightPredictor):
    """Sends SIGTERM to its own process at one of its calls, so many times, then takes its time over the answer."""

    at_call: int
    takes_s: float = 0.5
    times: int = 1
    calls: list[list[str]] = field(default_factory=list)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        if len(self.calls) == self.at_call:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(self.takes_s)
        return super().predict(images, prompts)


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    """Five shards of two images, each shard one call of the model."""
    return SmallRun(source=write_source(tmp_path / "images", 10), output=str(tmp_path / "out"), images_per_shard=2)


def terminate(small: SmallRun, predictor: Terminating, **pool: Any) -> set[str]:
    """Run until SIGTERM has ended it; return what is committed then."""
    config = small.config()
    config = config.replace(pool=config.pool.replace(**pool))
    with as_driver(predictor), signals.handled(), pytest.raises(signals.Terminated):
        engine.run_directly(config, Silent())
    return committed_shards(small.store(), RUN)


def unbroken_rows(small: SmallRun) -> dict[str, Any]:
    unbroken = replace(small, output=f"{small.output}-unbroken")
    run(unbroken)
    return rows(unbroken.store())


def test_sigterm_lets_the_shard_in_flight_commit_and_begins_no_other(small: SmallRun) -> None:
    predictor = Terminating(at_call=1)
    assert terminate(small, predictor) == {"shard-00000", "shard-00001"}
    assert len(predictor.calls) == 2
    assert find_leftovers(small.store(), RUN).names == []
    problems = run_file(small.output, "summary.json")["problems"]
    assert problems[0] == "stopped: SIGTERM came; the same command resumes the run"
    assert "3 planned shards are not committed" in problems[1]
    assert run(small).ok
    check_ended(small, unbroken_rows(small))


def test_a_shard_that_takes_longer_than_the_grace_is_left_for_the_next_time(small: SmallRun) -> None:
    started = time.monotonic()
    assert terminate(small, Terminating(at_call=1, takes_s=3), drain_grace_s=0.2) == {"shard-00000"}
    assert time.monotonic() - started < 2.5
    problems = run_file(small.output, "summary.json")["problems"]
    assert problems[-1] == "shard-00001 was not finished: the run was asked to stop"


def test_a_second_sigterm_is_heeded_at_once(small: SmallRun) -> None:
    assert terminate(small, Terminating(at_call=1, takes_s=1.5, times=2)) == {"shard-00000"}
    assert not Path(small.output, "_runs", RUN, "summary.json").exists()
    assert run(small).ok


def test_a_flow_that_gets_sigterm_is_no_worse_and_prefect_calls_it_crashed(
    prefect: PrefectServer, small: SmallRun
) -> None:
    from flows.label_collection import label_collection

    config: RunConfig = small.config()
    with as_driver(Terminating(at_call=2)), signals.handled(), pytest.raises(signals.Terminated):
        label_collection(config)
    assert committed_shards(small.store(), RUN) == {"shard-00000", "shard-00001", "shard-00002"}
    (flow_run,) = [
        found
        for found in prefect.ask("flow_runs/filter", {})
        if found["parameters"]["config"]["output"]["uri"] == config.output.uri
    ]
    assert flow_run["state_type"] == "CRASHED"
    with as_driver(BrightPredictor()):
        assert label_collection(config)["problems"] == []


def test_a_flow_that_gets_sigterm_while_two_commits_are_on_their_way_is_resumed(
    prefect: PrefectServer, small: SmallRun, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, whose threads go on with their commits when the flow has ended."""
    from flows.label_collection import label_collection

    expected = unbroken_rows(small)
    small = replace(small, output=f"s3://bkt/{secrets.token_hex(4)}")
    config = small.config()
    config = config.replace(pool=config.pool.replace(drain_grace_s=0.3, shards_in_flight_per_replica=2))
    with slow_proxy(s3.endpoint) as proxy, monkeypatch.context() as patch:
        commits = proxy.add(Rule("PUT", "*/commits/*", "hold", after=1, count=2))
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_clients()

        def send_sigterm() -> None:
            commits.wait(2)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=send_sigterm, daemon=True).start()
        with as_driver(BrightPredictor()), signals.handled(), pytest.raises(signals.Terminated):
            label_collection(config)
        assert len(committed_shards(small.store(), RUN)) == 1
        assert proxy.land(commits) == [200, 200]
        with as_driver(BrightPredictor()):
            summary = label_collection(config)
        assert (summary["problems"], summary["labelled_now"]) == ([], 2)
    forget_clients()
    check_ended(small, expected)


def forget_clients() -> None:
    """Have the next one look at the environment."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def test_the_handler_that_was_there_before_is_back_when_a_run_has_ended(small: SmallRun) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run(small).ok
    assert signal.getsignal(signal.SIGTERM) is before
