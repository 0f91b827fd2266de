"""Ray's head, or this machine's node of Ray, is gone in the middle of a run: it ends incomplete, and can go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ClusterLostError, ShardFailure
from flows.config import RunConfig
from flows.run import engine
from flows.run.observer import Silent
from pipelines.types import Prompt, Shard, ShardReceipt
from tests.reliability.small_run import SmallRun, as_driver_of, check_no_op, raw_rows, rows, run, write_source
from tests.support.drivers import REPOSITORY, Driver, run_file

DRIVER = """
import sys
from actors.pool import head_watch
from tests.reliability import chaos_driver
head_watch.LOST_AFTER_S = 4.0
sys.exit(chaos_driver.main())
"""


@contextlib.contextmanager
def slow_driver(small: SmallRun) -> Iterator[Driver]:
    """A driver with a Ray of its own, on which every call of the model takes a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, small.source, small.output, "local", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )
    driver = Driver(process)
    try:
        yield driver
    finally:
        driver.kill_all()
        process.communicate(timeout=20)


def program_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, IndexError):
        return Path(process.cmdline()[0]).name
    return ""


@pytest.mark.parametrize("program", ["gcs_server", "raylet"])
def test_a_run_whose_ray_is_gone_ends_with_one_message_and_goes_on_later(program: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "images", 240)
    small = SmallRun(source=source, output=str(tmp_path / "out"), images_per_shard=1)
    with slow_driver(small) as driver:
        driver.wait_until(lambda: len(list(tmp_path.glob("out/_runs/*/commits/*"))) >= 2, 100)
        (victim,) = [process for process in driver.relatives() if program_of(process) == program]
        victim.send_signal(signal.SIGKILL)
        code, out, err = driver.end(60)
    assert code == 1, (out, err)
    assert "Traceback" not in err
    problems = run_file(small.output, "summary.json")["problems"]
    assert problems[0].startswith("stopped: the ")
    assert "the same command resumes the run" in problems[0]
    told = [json.loads(line)["message"] for line in out.splitlines() if json.loads(line)["kind"] == "problem"]
    assert told == problems
    assert run(small).ledger["listed"] == 240
    assert raw_rows(small.store()) == rows(small.store())
    check_no_op(small)


class LostAtOnce(InProcessRunner):
    def map(self, shards: Iterable[Shard], on_event: object = None) -> Iterator[ShardReceipt | ShardFailure]:
        raise ClusterLostError("the head is gone")


def test_a_cluster_that_is_lost_before_the_first_commit_leaves_a_run_to_be_resumed(tmp_path: Path) -> None:
    small = SmallRun(source=write_source(tmp_path / "images"), output=str(tmp_path / "out"))

    def open_runner(config: RunConfig, _run_id: str, _prompts: tuple[Prompt, ...]) -> LostAtOnce:
        return LostAtOnce(lambda: None, config.pool)  # type: ignore[arg-type,return-value]

    with as_driver_of(open_runner):
        summary = engine.run_directly(small.config(), Silent())
    assert (summary.ok, summary.problems[0]) == (False, "stopped: the head is gone")
    assert run_file(small.output, "summary.json")["problems"] == summary.problems
    assert run(small).ok
