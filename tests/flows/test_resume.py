"""Runs that are interrupted, doubled or meet faults: they end in the rows of a run that nothing happened to."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from actors.pool.runner import PoolEvent
from flows.run import engine, planning
from flows.run.observer import Silent
from flows.run.summary import RunFailedError
from pipelines.errors import PlanError
from pipelines.layout import KINDS, Kind
from pipelines.storage import store as storage
from pipelines.storage.store import open_store
from pipelines.table.commits import committed_shards, read_commits
from pipelines.table.leftovers import find_leftovers
from pipelines.table.verify import verify
from pipelines.types import ShardReceipt
from tests.flows.conftest import Ended, MakeConfig, write_photographs
from tests.support.drivers import (
    Driver,
    PrefectServer,
    committed,
    comparable,
    driver,
    listing,
    run_file,
    wait_until,
)
from tests.support.forked_driver import DriverServer
from tests.support.seaweed import S3Server

pytestmark = pytest.mark.timeout(180)

Cli = Callable[..., Ended]


def raw(output: Path, kind: Kind) -> pa.Table:
    """Every row of every file in the folder, whoever wrote it: what a query engine's glob sees."""
    files = [str(path) for path in sorted((output / kind).rglob("*.parquet"))]
    return comparable(pa.concat_tables([ds.dataset(file).to_table() for file in files]), kind)


def only_run(output: Path) -> str:
    (run_id,) = open_store(str(output)).folders("_runs")
    return run_id


def commits(output: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in output.glob("_runs/*/commits/*.json")}


# More than are labeled until a driver is stopped three times.
NUM_IMAGES = 40


@pytest.mark.timeout(420)  # six drivers one after the other
class TestKilledDriver:
    """One run: terminated, then interrupted, then killed with all it started, then run to its end, then run again."""

    @pytest.fixture(scope="class")
    def config_file(self, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = tmp_path_factory.mktemp("killed")
        write_photographs(folder / "photographs", NUM_IMAGES)
        text = f"""
            source = "photographs"
            output = "table"
            categories = ["car", "tree"]
            model = {{ path = "{model}", max_masks_per_image = 10 }}
            plan = {{ images_per_shard = 1 }}
            label = {{ batch_size = 1 }}
        """
        (folder / "run.toml").write_text(text)
        return folder / "run.toml"

    @pytest.fixture(scope="class")
    def story(
        self,
        config_file: Path,
        prefect: PrefectServer,
        make_prefect_home: Callable[[Path], Path],
        ray: str,
        forking: DriverServer,
    ) -> dict[str, dict[str, bytes]]:
        """The commits that stood after each chapter."""
        output = config_file.parent / "table"
        env = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PREFECT_API_URL")}
        env["OMP_NUM_THREADS"] = "1"  # as a replica of one CPU has: more would add in another order
        embedded = {**env, "PREFECT_HOME": str(make_prefect_home(config_file.parent / "prefect-home"))}
        served = {**env, "PREFECT_API_URL": prefect.api_url}

        def start(environment: dict[str, str], *flags: str, server: DriverServer | None = forking) -> Driver:
            arguments = ("run", "-c", "run.toml", *flags)
            return stack.enter_context(driver(*arguments, env=environment, cwd=config_file.parent, server=server))

        told = {}
        with ExitStack() as stack:
            terminated = start(embedded)
            terminated.wait_until(lambda: len(commits(output)) >= 2)
            terminated.process.send_signal(signal.SIGTERM)
            code, _, err = terminated.end(timeout_s=30)
            assert (code, err) == (143, "terminated; what is committed is kept, and the same command resumes the run\n")
            wait_until(lambda: not terminated.relatives(), 10, lambda: str(terminated.relatives()))
            told["terminated"] = commits(output)

            interrupted = start(embedded, "--runner", "in_process")
            interrupted.wait_until(lambda: len(commits(output)) >= len(told["terminated"]) + 2)
            os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: its children get it too
            code, _, err = interrupted.end(timeout_s=15)
            assert (code, err.partition(";")[0], err.count("\n")) == (130, "interrupted", 1)
            wait_until(lambda: not interrupted.relatives(), 10, lambda: str(interrupted.relatives()))
            told["interrupted"] = commits(output)

            killed = start(served, server=None)  # as a user starts it
            killed.wait_until(lambda: len(commits(output)) >= len(told["interrupted"]) + 2)
            killed.kill_all()
            killed.end()
            told["killed"] = commits(output)

            code, out, err = start({**served, "RAY_ADDRESS": ray}).end()
            assert (code, err) == (0, "")
            assert f"{len(told['killed'])} committed before" in out
            told["ended"] = commits(output)
        return told

    def test_it_was_stopped_in_the_middle_three_times(self, story: dict[str, dict[str, bytes]]) -> None:
        counts = [len(story[chapter]) for chapter in ("terminated", "interrupted", "killed", "ended")]
        assert counts == sorted(set(counts))
        assert (counts[0] >= 2, counts[-1]) == (True, NUM_IMAGES)

    def test_committed_shards_are_not_labeled_again(self, story: dict[str, dict[str, bytes]]) -> None:
        assert story["terminated"].items() < story["interrupted"].items() < story["killed"].items()
        assert story["killed"].items() < story["ended"].items()

    def test_it_ends_in_the_rows_of_an_unbroken_run(
        self, story: dict[str, dict[str, bytes]], config_file: Path, tmp_path: Path, make_config: MakeConfig
    ) -> None:
        unbroken = make_config(
            source=str(config_file.parent / "photographs"),
            categories=["car", "tree"],
            plan={"images_per_shard": 1},
            label={"batch_size": 1},
            output={"uri": str(tmp_path / "output"), "run_id": only_run(config_file.parent / "table")},
        )
        engine.run_directly(unbroken, Silent())
        for kind in KINDS:
            assert committed(str(config_file.parent / "table"), kind) == committed(str(tmp_path / "output"), kind)

    def test_files_in_the_folder_hold_exactly_the_committed_rows(
        self, story: dict[str, dict[str, bytes]], config_file: Path
    ) -> None:
        output = config_file.parent / "table"
        for kind in KINDS:
            assert raw(output, kind) == committed(str(output), kind)
        report = verify(open_store(str(output)), only_run(output))
        assert (report.problems, report.leftovers) == ([], [])

    def test_running_it_again_starts_no_replica_and_writes_nothing(
        self,
        story: dict[str, dict[str, bytes]],
        config_file: Path,
        cli: Cli,
        prefect: PrefectServer,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("nothing is left to label")

        monkeypatch.chdir(config_file.parent)
        monkeypatch.setattr(planning, "open_run_runner", refuse)
        before = listing(config_file.parent / "table")
        ended = cli("run", "-c", "run.toml")
        assert (ended.code, ended.err) == (0, "")
        assert f"{NUM_IMAGES} of {NUM_IMAGES}, 0 labeled now" in ended.out
        assert listing(config_file.parent / "table") == before


@pytest.mark.parametrize("runner", ["ray", "processes"])
def test_a_run_survives_the_death_of_a_replica(
    runner: str, request: pytest.FixtureRequest, make_config: MakeConfig, tmp_path: Path
) -> None:
    if runner == "ray":
        request.getfixturevalue("ray")
    config = make_config(pool={"runner": runner}, plan={"images_per_shard": 1})
    pids: list[int] = []
    kinds: list[str] = []

    class Killer(Silent):
        def on_event(self, event: PoolEvent) -> None:
            kinds.append(event.kind)
            if event.kind == "replica_started":
                pids.extend(int(pid) for pid in re.findall(r"pid (\d+)", event.message))

        def on_receipt(self, receipt: ShardReceipt) -> None:
            if pids and "killed" not in kinds:
                kinds.append("killed")
                os.kill(pids[0], signal.SIGKILL)

    summary = engine.run_directly(config, Killer())
    assert summary.ok
    assert summary.ledger["listed"] == 10
    assert {"killed", "replica_died"} <= set(kinds)
    unbroken = make_config(output=str(tmp_path / "unbroken"), plan={"images_per_shard": 1})
    engine.run_directly(unbroken, Silent())
    for kind in KINDS:
        assert committed(config.output.uri, kind) == committed(unbroken.output.uri, kind)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let the next so many writes of the third shard's images fail as on a full disk; change the number at will."""
    left = [0]
    publish = storage._publish_local

    def fail(path: str, data: bytes, *, create: bool) -> None:
        if "/images/" in path and "shard-00002" in path and left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        publish(path, data, create=create)

    monkeypatch.setattr(storage, "_publish_local", fail)
    return left


def test_a_wave_with_a_failed_shard_is_tried_again_by_prefect(
    prefect: PrefectServer, make_config: MakeConfig, full_disk: list[int]
) -> None:
    from flows.label_collection import label_collection

    full_disk[0] = 1
    config = make_config(pool={"max_attempts_per_shard": 1})
    summary = label_collection(config)
    assert (summary["committed"], summary["problems"]) == (5, [])
    (flow_run,) = [
        run
        for run in prefect.ask("flow_runs/filter", {})
        if run["parameters"]["config"]["output"]["uri"] == config.output.uri
    ]
    runs = prefect.ended_task_runs(flow_run["id"], 3)
    assert {run["name"]: run["run_count"] for run in runs if run["name"].startswith("wave")} == {"wave 1/1": 2}


def test_a_shard_that_always_fails_is_named_and_the_rest_is_kept_until_the_fault_is_gone(
    prefect: PrefectServer, make_config: MakeConfig, full_disk: list[int], tmp_path: Path
) -> None:
    from flows.label_collection import label_collection

    full_disk[0] = 1000
    config, output = make_config(), tmp_path / "output"
    with pytest.raises(RunFailedError, match=r"shard-00002 failed 3 times: .*No space left on device"):
        label_collection(config)
    assert sorted(commits(output)) == ["shard-00000", "shard-00001", "shard-00003", "shard-00004"]
    held = run_file(output, "summary.json")
    assert (held["committed"], held["ledger"]["listed"]) == (4, 10)
    (failure,) = held["facts"]["failures"]
    assert failure["shard_id"] == "shard-00002"
    assert "Traceback" in failure["error"]
    # The half-written attempts of the failed shard are gone: a glob sees committed rows only.
    assert find_leftovers(open_store(str(output)), only_run(output)).names == []

    full_disk[0], before = 0, commits(output)
    label_collection(config)
    assert before.items() < commits(output).items()
    assert run_file(output, "summary.json")["problems"] == []
    assert verify(open_store(str(output)), only_run(output)).ok


def test_a_spent_budget_counts_over_all_waves_and_the_next_run_goes_on_with_the_rest(
    prefect: PrefectServer, make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import actors.predictor.labeler
    from flows.label_collection import label_collection

    label_shard = actors.predictor.labeler.label_shard

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(1.5)
        return label_shard(*args, **kwargs)

    monkeypatch.setattr(actors.predictor.labeler, "label_shard", slowly)
    pool = {"budget_s": 1.0, "shards_in_flight_per_replica": 1}
    # One shard in flight makes waves of four: the second wave finds the budget spent.
    output, config = tmp_path / "output", make_config(pool=pool)
    with pytest.raises(RunFailedError, match=r"4 planned shards are not committed"):
        label_collection(config)
    assert len(commits(output)) == 1
    monkeypatch.undo()
    label_collection(make_config())
    assert len(commits(output)) == 5


def test_an_incomplete_run_exits_with_1_and_names_its_problem(
    make_config: MakeConfig, model: Path, photographs: Path, full_disk: list[int], cli: Cli, tmp_path: Path
) -> None:
    full_disk[0] = 1000
    (tmp_path / "run.toml").write_text("plan = { images_per_shard = 2 }\n")
    arguments = ["run", "-c", tmp_path / "run.toml", "--source", photographs, "--output", tmp_path / "output"]
    arguments += ["--model", model, "--categories", "car", "--runner", "in_process", "--no-prefect"]
    ended = cli(*arguments)
    assert ended.code == 1
    assert "problem: shard-00002 failed 3 times" in ended.out
    assert "Traceback" not in ended.out + ended.err
    full_disk[0] = 0
    assert cli(*arguments).code == 0


def test_two_drivers_at_once_end_well_with_one_committed_copy(
    s3_environment: S3Server,
    prefect: PrefectServer,
    model: Path,
    photographs: Path,
    fresh_bucket_prefix: str,
    tmp_path: Path,
    forking: DriverServer,
) -> None:
    output = f"{fresh_bucket_prefix}/table"
    (tmp_path / "run.toml").write_text("plan = { images_per_shard = 1 }\n")
    arguments = ["run", "-c", tmp_path / "run.toml", "--source", photographs, "--output", output, "--model", model]
    arguments += ["--categories", "car,tree", "--runner", "in_process"]
    env = {**os.environ, "PREFECT_API_URL": prefect.api_url, "OMP_NUM_THREADS": "1"}
    with driver(*arguments, env=env, server=forking) as one, driver(*arguments, env=env, server=forking) as other:
        ends = [one.end(), other.end()]
    assert [(code, err) for code, _, err in ends] == [(0, "")] * 2
    store = open_store(output)
    (run_id,) = store.folders("_runs")
    report = verify(store, run_id)
    assert (report.problems, report.leftovers, report.committed) == ([], [], 10)
    attempts = {commit.attempt.partition("-")[0] for commit in read_commits(store, run_id)}
    assert len(attempts) in (1, 2)
    plans = [name for name in store.find(f"_runs/{run_id}") if name.endswith(".parquet")]
    assert len(plans) == 1


def test_another_configuration_is_refused_by_field_and_nothing_is_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    engine.run_directly(make_config(), Silent())
    before = listing(tmp_path / "output")
    other = make_config(categories=["car", "house"], model={"min_score": 0.5})
    with pytest.raises(PlanError) as refused, planning.planned_run(other):
        pass
    assert 'categories: planned ["car", "tree", "traffic light"], now ["car", "house"]' in str(refused.value)
    assert "model.min_score: planned 0.05, now 0.5" in str(refused.value)
    assert "task" not in str(refused.value)
    assert listing(tmp_path / "output") == before
    assert committed_shards(open_store(str(tmp_path / "output")), only_run(tmp_path / "output"))


def test_what_may_change_between_a_run_and_its_resumption(make_config: MakeConfig, tmp_path: Path) -> None:
    engine.run_directly(make_config(), Silent())
    before = listing(tmp_path / "output")
    summary = engine.run_directly(
        make_config(label={"batch_size": 5, "load_threads": 1}, pool={"replicas": 7}, plan={"images_per_shard": 3}),
        Silent(),
    )
    assert (summary.ok, summary.shards, summary.labelled_now) == (True, 5, 0)
    assert listing(tmp_path / "output") == before
