"""A Prefect server that goes away costs a run nothing, and one that a run has started does not outlive it."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from rich.console import Console

from flows.commands.launch import launch
from flows.prefect_server.told import artifact_key
from flows.run.summary import RunSummary
from pipelines.types import Answer, Image, Prompt
from tests.flows.process.test_environment import PROXY
from tests.reliability.small_run import RUN, SmallRun, as_driver, check_no_op, write_source
from tests.support.drivers import PrefectServer, driver, prefect_server, run_file, wait_until
from tests.support.fakes import BrightPredictor

# Of the test alone: the first one here may also wait for the Prefect server to start.
pytestmark = pytest.mark.timeout(175, func_only=True)


@dataclass
class Meanwhile(BrightPredictor):
    """Lets something happen before one of its calls."""

    happens: dict[int, Callable[[], object]]
    calls: list[list[str]] = field(default_factory=list)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        if happens := self.happens.get(len(self.calls)):
            happens()
        return super().predict(images, prompts)


@pytest.fixture
def small(tmp_path: Path) -> SmallRun:
    """Eight shards of one image, each shard one call of the model."""
    return SmallRun(source=write_source(tmp_path / "images", 9), output=str(tmp_path / "out"), images_per_shard=1)


@pytest.fixture
def own_server(
    make_prefect_home: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrefectServer]:
    """A server that may be killed; its clients, and we, soon give it up."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    monkeypatch.setattr("flows.prefect_server.show_process.PATIENCE_S", 2.0)
    with prefect_server(make_prefect_home(tmp_path / "prefect-home")) as server:
        server.wait_until_ready()
        with temporary_settings({PREFECT_API_URL: server.api_url, PREFECT_CLIENT_MAX_RETRIES: 1}):
            yield server
    # Prefect keeps one worker for the events of a process, which would tell this server of all later task runs.
    from prefect.events.worker import EventsWorker

    EventsWorker.drain_all(timeout=2)


def launched(small: SmallRun, predictor: Meanwhile) -> tuple[RunSummary, str]:
    """Run as the command line does; return how it ended, and what it printed."""
    printed = io.StringIO()
    with as_driver(predictor):
        return launch(small.config(), Console(file=printed, width=200), prefect=True), printed.getvalue()


def state_of(server: PrefectServer, small: SmallRun) -> list[str]:
    runs = server.ask("flow_runs/filter", {"flow_runs": {"name": {"any_": [small.output]}}})
    return [run["state_type"] for run in runs]


def test_a_server_that_goes_away_for_good_costs_one_warning(
    own_server: PrefectServer, small: SmallRun, capfd: pytest.CaptureFixture[str]
) -> None:
    predictor = Meanwhile({2: own_server.kill})
    summary, printed = launched(small, predictor)
    assert (summary.ok, summary.committed, summary.labelled_now) == (True, 9, 9)
    assert printed.count("warning: Prefect could not be told of all of this run") == 1
    assert printed.count("warning") == 1
    assert len(predictor.calls) == 8
    assert run_file(small.output, "summary.json")["ledger"]["listed"] == 9
    check_no_op(small)
    assert "Traceback" not in capfd.readouterr().err


def test_what_is_committed_decides_how_a_run_without_its_server_ends(
    own_server: PrefectServer, small: SmallRun
) -> None:
    limits = {"max_quarantined_share": 0.1, "after_images": 3}
    summary, printed = launched(replace(small, limits=limits), Meanwhile({1: own_server.kill}))
    assert (summary.ok, summary.committed) == (False, 3)
    assert printed.count("warning: Prefect could not be told") == 1
    assert run_file(small.output, "summary.json")["problems"] == summary.problems


def test_a_server_that_comes_back_is_told_the_rest(own_server: PrefectServer, small: SmallRun) -> None:
    port = int(own_server.api_url.rpartition(":")[2].partition("/")[0])
    with ExitStack() as stack:

        def come_back() -> None:
            again = stack.enter_context(prefect_server(own_server.home, port))
            again.wait_until_ready()

        summary, printed = launched(small, Meanwhile({2: own_server.kill, 5: come_back}))
        assert summary.ok
        assert "warning" not in printed
        assert state_of(own_server, small) == ["COMPLETED"]
        artifacts = own_server.ask("artifacts/filter", {"artifacts": {"key": {"like_": "-"}}})
        mine = {artifact["key"] for artifact in artifacts if RUN in str(artifact)}
        assert mine >= {artifact_key(str(small.output), what) for what in ("counts", "summary")}


def test_the_embedded_server_ends_with_a_driver_that_is_killed(
    make_prefect_home: Callable[[Path], Path], model: Path, photographs: Path, tmp_path: Path
) -> None:
    home = make_prefect_home(tmp_path / "home")
    env = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    env |= {**PROXY, "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    arguments = ["--source", photographs, "--output", tmp_path / "out", "--model", model, "--categories", "car"]
    with driver("run", *arguments, "--runner", "in_process", env=env) as running:
        running.wait_until(lambda: list(tmp_path.glob("out/_runs/*/plan.json")), 150)
        servers = [process for process in running.relatives() if process.pid != running.pid]
        assert servers
        running.process.send_signal(signal.SIGKILL)
        running.process.wait(20)
        wait_until(lambda: not running.relatives(), 40, lambda: str(running.relatives()))
