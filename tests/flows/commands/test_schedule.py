"""Runs on a schedule: `serve` and prefect.yaml against a real Prefect server, with runs that overlap and a stop."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule

from flows.commands.serve import Timetable, flow_parameters, register
from flows.config import load_config, parse_config
from flows.run import engine
from flows.run.observer import Silent
from pipelines.query.database import open_database
from pipelines.storage.store import open_store
from pipelines.table.reader import open_table
from tests.flows.conftest import Ended, photograph
from tests.support.drivers import REPOSITORY, Driver, PrefectServer, driver, run_file, wait_until

# Of the test alone: the first one here may also wait for the Prefect server to start.
pytestmark = pytest.mark.timeout(175, func_only=True)

# More than can be labeled between the first commit and the end of a run that is asked to stop.
NUM_IMAGES = 32


@pytest.fixture
def config_file(tmp_path: Path, model: Path) -> Path:
    """Settings of a run of many small shards, one at a time, on one replica in the flow run's process."""
    (tmp_path / "images").mkdir()
    for number in range(NUM_IMAGES):
        photograph(48, 40, number).save(tmp_path / "images" / f"{number:02d}.png")
    path = tmp_path / "served.toml"
    path.write_text(
        f"""
        source = "{tmp_path / "images"}"
        output = "{tmp_path / "out"}"
        model = "{model}"
        categories = ["car", "tree"]
        [plan]
        images_per_shard = 1
        [pool]
        runner = "in_process"
        shards_in_flight_per_replica = 1
        """
    )
    return path


@pytest.fixture
def environment(prefect: PrefectServer) -> dict[str, str]:
    """The server's address, and a runner that asks it for runs every second, the first of them in four."""
    return {
        **os.environ,
        "PREFECT_API_URL": prefect.api_url,
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "OMP_NUM_THREADS": "1",
    }


def runs_of(prefect: PrefectServer, deployment: str) -> dict[str, list[dict[str, Any]]]:
    """Return the flow runs of a deployment by state, first due first."""
    asked = {"deployments": {"name": {"any_": [deployment]}}, "sort": "EXPECTED_START_TIME_ASC"}
    found: dict[str, list[dict[str, Any]]] = {}
    for flow_run in prefect.ask("flow_runs/filter", asked):
        found.setdefault(flow_run["state_type"], []).append(flow_run)
    return found


def deployment_of(prefect: PrefectServer, name: str) -> dict[str, Any]:
    (found,) = prefect.ask("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
    return found


def serving(config: Path, name: str, interval_s: int, environment: dict[str, str]) -> AbstractContextManager[Driver]:
    return driver("serve", "--config", config, "--interval", interval_s, "--name", name, env=environment)


def end_by(number: signal.Signals, served: Driver) -> tuple[int, str]:
    """Send a signal to `serve` alone; return its exit code and what it printed. Soon nothing of it is left."""
    served.process.send_signal(number)
    code, out, err = served.end(90)
    wait_until(lambda: not served.relatives(), 30, lambda: str(served.relatives()))
    return code, out + err


OVERLAP = "Deployment concurrency limit reached."


def commits(output: Path) -> list[Path]:
    return list(output.glob("_runs/*/commits/*.json"))


def image_ids(output: Path) -> list[str]:
    return open_table(open_store(str(output)), "images").to_table(columns=["image_id"])["image_id"].to_pylist()


def questions(output: Path) -> Counter[tuple[str, str]]:
    """Return how often which image was asked which prompt, by what the rows of all runs say."""
    entries = "SELECT image_id, unnest(per_prompt).prompt_id FROM all_images"
    return Counter(open_database(open_store(str(output))).sql(entries).fetchall())


@pytest.mark.timeout(300, func_only=True)
def test_scheduled_runs_label_what_came_between_ask_what_was_added_and_never_overlap(
    prefect: PrefectServer, config_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    output, images = tmp_path / "out", tmp_path / "images"
    for path in sorted(images.iterdir())[3:]:
        path.unlink()

    def finished(run: str) -> Callable[[], bool]:
        return lambda: time.sleep(0.5) or bool(list(output.glob(f"_runs/{run}/summary.json")))

    with serving(config_file, "nightly-new", 3, environment) as served:
        served.wait_until(finished("run-*"), 120)
        names = [f"{number:02d}.png" for number in range(3)]
        both = {(name, f"ovseg:{text}"): 1 for name in names for text in ("car", "tree")}
        assert questions(output) == both
        photograph(48, 40, 90).save(tmp_path / "later.png")
        (tmp_path / "later.png").rename(images / "later.png")  # at once whole, for a listing may come at any time
        served.wait_until(finished("update-2"), 90)
        both |= {("later.png", f"ovseg:{text}"): 1 for text in ("car", "tree")}
        assert questions(output) == both
        code, printed = end_by(signal.SIGINT, served)
    assert (code, "interrupted; what is committed is kept" in printed) == (130, True)
    told = [line[len("2026-11-30 02:00:00 ") :] for line in printed.splitlines() if re.match(r"\d{4}-", line)]
    ends = [re.sub(r" after \d+ s", "", line) for line in told if "started" not in line and OVERLAP not in line]
    assert told.count("run started") > 1
    assert ends[0].startswith("run completed: 3 listed, ")
    assert any(line.startswith("run completed: 1 listed, ") for line in ends)
    assert any(line == f"run cancelled: {OVERLAP}" for line in told)
    assert deployment_of(prefect, "nightly-new")["paused"]
    config_file.write_text(config_file.read_text().replace('"tree"]', '"tree", "traffic light"]'))
    with serving(config_file, "nightly-new", 3, environment) as served:
        served.wait_until(finished("update-3"), 90)
        end_by(signal.SIGINT, served)
    assert questions(output) == both | {(name, "ovseg:traffic light"): 1 for name in (*names, "later.png")}
    runs = runs_of(prefect, "nightly-new")
    assert {"FAILED", "CRASHED"}.isdisjoint(runs)
    assert runs["COMPLETED"][0]["name"] == str(output)
    # Each takes longer to start than the interval, and so one of them was due meanwhile; none was cancelled before.
    cancelled = [run for run in runs["CANCELLED"] if run["state"]["message"] == OVERLAP]
    assert cancelled
    assert [run for run in cancelled if run["end_time"] < run["expected_start_time"]] == []


def test_sigterm_ends_a_scheduled_run_so_that_the_next_one_finishes_it(
    prefect: PrefectServer, config_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    with serving(config_file, "stopped", 60, environment) as served:
        served.wait_until(lambda: commits(output), 150)
        code, printed = end_by(signal.SIGTERM, served)
    assert (code, "stopped; the schedule is paused" in printed) == (0, True)
    stopped = runs_of(prefect, "stopped")
    assert "COMPLETED" not in stopped
    assert {run["state"]["message"] for run in stopped["CANCELLED"]} <= {"Runner is shutting down.", OVERLAP}
    assert run_file(output, "summary.json")["problems"][0].startswith("stopped: SIGTERM came")
    committed = len(commits(output))
    assert 0 < committed < NUM_IMAGES

    summary = engine.run_directly(parse_config(flow_parameters(load_config(config_file))["config"]), Silent())
    assert (summary.problems, summary.labelled_now) == ([], 0), (
        "what had been stopped was finished, and nothing was new"
    )
    assert len(commits(output)) == NUM_IMAGES
    assert image_ids(output) == [f"{number:02d}.png" for number in range(NUM_IMAGES)]


@pytest.fixture
def work_pool(prefect: PrefectServer) -> Iterator[None]:
    """The work pool that prefect.yaml names."""
    prefect.ask("work_pools/", {"name": "xsam-label", "type": "process"})
    yield
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.delete_deployment(deployment_of(prefect, "nightly")["id"])


def prefect_command(*args: str, environment: dict[str, str]) -> str:
    """Run `prefect ...` in the project's folder; return what it printed."""
    ended = subprocess.run(
        [sys.executable, "-m", "prefect", *args],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.usefixtures("work_pool")
def test_prefect_yaml_deploys_as_it_stands_and_a_worker_runs_it(
    prefect: PrefectServer, config_file: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    prefect_command("--no-prompt", "deploy", "--all", environment=environment)
    deployed = deployment_of(prefect, "nightly")
    assert deployed["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
    assert deployed["global_concurrency_limit"]["limit"] == 1
    assert deployed["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert deployed["work_pool_name"] == "xsam-label"
    assert deployed["parameters"]["config"]["incremental"] is True

    values = flow_parameters(load_config(config_file))
    values["config"]["plan"]["limit"] = 2
    prefect.ask(f"deployments/{deployed['id']}/create_flow_run", {"parameters": values})
    prefect_command("worker", "start", "--pool", "xsam-label", "--run-once", environment=environment)
    (flow_run,) = runs_of(prefect, "nightly")["COMPLETED"]
    assert flow_run["work_pool_name"] == "xsam-label"
    assert run_file(tmp_path / "out", "summary.json")["ledger"]["listed"] == 2


def test_a_run_that_died_with_its_machine_keeps_no_later_one_from_running(
    prefect: PrefectServer, config_file: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Pending, Running

    config, timetable = load_config(config_file), Timetable(cron="0 2 * * *")

    def places_taken() -> int:
        return int(deployment_of(prefect, "died")["global_concurrency_limit"]["active_slots"])

    register(config, timetable, "died")
    with get_client(sync_client=True) as client:
        dead = client.create_flow_run_from_deployment(deployment_of(prefect, "died")["id"])
        client.set_flow_run_state(dead.id, Pending())
        client.set_flow_run_state(dead.id, Running())
        assert places_taken() == 1
        register(config, timetable, "died")
        assert places_taken() == 0
        assert client.read_flow_run(dead.id).state_name == "Crashed"
        client.delete_deployment(deployment_of(prefect, "died")["id"])


def test_serve_needs_a_prefect_server_that_answers(
    cli: Callable[..., Ended], config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        none = cli("serve", "--config", config_file, "--interval", "60")
    assert (none.code, "prefect server start" in none.err) == (2, True)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        silent = cli("serve", "--config", config_file, "--interval", "60")
    assert (silent.code, "http://127.0.0.1:9/api does not answer" in silent.err) == (2, True)


def test_the_parameters_of_prefect_yaml_are_a_config() -> None:
    (deployment,) = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    config = parse_config(deployment["parameters"]["config"])
    assert config.incremental
    path, _, function = deployment["entrypoint"].partition(":")
    assert f"def {function}(" in (REPOSITORY / path).read_text()
    assert (REPOSITORY / config.source.uri).is_dir()


def test_served_runs_are_incremental_and_end_within_the_time_that_prefect_leaves_them(config_file: Path) -> None:
    config = load_config(config_file)
    assert not config.incremental
    served = flow_parameters(config)["config"]
    assert served["incremental"]
    assert served["pool"]["drain_grace_s"] == 20
    assert parse_config(json.loads(json.dumps(served))).categories == ("car", "tree")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --cron"),
        (("--cron", "0 2 * * *", "--interval", "60"), "give one of --cron"),
        (("--cron", "61 2 * * *"), "--cron is '61 2 * * *', which is no cron string"),
        (("--cron", "every night"), "which is no cron string"),
        (("--interval", "0"), "--interval is 0; allowed: 1 second or more"),
        (("--cron", "0 2 * * *", "--timezone", "Mars/Phobos"), "--timezone is 'Mars/Phobos'"),
        (("--interval", "900", "--timezone", "Europe/Berlin"), "--timezone is for --cron"),
        (("--cron", "0 2 * * *", "--name", "a/b"), "--name is 'a/b'"),
    ],
)
def test_a_wrong_timetable_or_name_is_refused_before_anything_is_started(
    cli: Callable[..., Ended],
    config_file: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever asked it for something would wait for the answer.
    monkeypatch.setattr("flows.commands.serve.check_server", lambda: pytest.fail("Prefect was asked"))
    ended = cli("serve", "--config", config_file, *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_serve_needs_a_config_that_can_be_used(cli: Callable[..., Ended], tmp_path: Path) -> None:
    assert "Missing option '--config'" in cli("serve", "--interval", "60").err
    missing = cli("serve", "--config", tmp_path / "nix.toml", "--interval", "60")
    assert (missing.code, "nix.toml: cannot be read" in missing.err) == (2, True)
    (tmp_path / "bad.toml").write_text('source = "photos"\noutput = "out"\n')
    bad = cli("serve", "--config", tmp_path / "bad.toml", "--interval", "60")
    assert (bad.code, "nothing to ask" in bad.err) == (2, True)


def due(timetable: Timetable, first: datetime, last: datetime) -> list[datetime]:
    """Return when runs of a timetable are due, as Prefect's server reckons it."""
    schedule: Any = timetable.schedule()
    if timetable.cron is not None:
        times: Any = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    else:
        times = IntervalSchedule(interval=schedule.interval, anchor_date=first, timezone=schedule.timezone)
    dates = asyncio.run(times.get_dates(n=500, start=first, end=last))
    return [datetime.fromtimestamp(one.timestamp(), UTC) for one in dates]


@pytest.mark.parametrize("day", [datetime(2027, 3, 28), datetime(2027, 10, 31)])
def test_a_night_when_clocks_change_has_one_run_and_an_interval_is_as_long_as_ever(day: datetime) -> None:
    berlin = ZoneInfo("Europe/Berlin")
    first, last = (day - timedelta(days=1)).replace(tzinfo=berlin), (day + timedelta(days=2)).replace(tzinfo=berlin)
    days = [(first + timedelta(days=number)).date() for number in range(3)]
    for cron in ("0 2 * * *", "30 2 * * *", "0 3 * * *"):
        nights = due(Timetable(cron=cron, timezone="Europe/Berlin"), first, last)
        assert [one.astimezone(berlin).date() for one in nights] == days
    times = due(Timetable(interval_s=900), first, last)
    assert len(times) > 250
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(minutes=15)}


def test_a_timetable_says_when_in_words() -> None:
    assert str(Timetable(cron="0 2 * * *", timezone="Europe/Berlin")) == "at '0 2 * * *' (Europe/Berlin)"
    assert str(Timetable(interval_s=90)) == "every 90 s"
