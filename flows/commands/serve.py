"""The command `serve`: label one output on a schedule, on this machine, one run at a time. Prefect keeps the clock."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from rich.console import Console

from flows.config import ConfigError, RunConfig
from flows.process.signals import Terminated, finishing_first

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import State
    from prefect.runner import Runner
    from prefect.schedules import Schedule

# Prefect gives a flow run 30 s to end by itself before it kills it. Shards in flight may use 20 s of them; verifying
# and writing the summary need the rest.
_PREFECT_GRACE_S = 30.0
_DRAIN_GRACE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """When runs are due.

    Attributes:
        cron: five fields, e.g. "0 2 * * *" for every night at two.
        interval_s: seconds between runs, instead of cron; the first is due in ten seconds, if Prefect looks as often
            as by default.
        timezone: IANA time zone of cron, e.g. "Europe/Berlin"; UTC by default. An interval has none: in a zone, Prefect
            makes it longer or shorter by an hour when clocks change.

    Raises:
        ConfigError: neither or both of cron and interval_s are given, an interval has a zone, or a value is invalid.
    """

    cron: str | None = None
    interval_s: float | None = None
    timezone: str | None = None

    def __post_init__(self) -> None:
        """Validate the values, before anything is started."""
        if (self.cron is None) == (self.interval_s is None):
            raise ConfigError('give one of --cron (e.g. "0 2 * * *") and --interval (seconds)')
        if self.interval_s is not None and self.interval_s < 1:
            raise ConfigError(f"--interval is {self.interval_s:g}; allowed: 1 second or more")
        if self.timezone is not None and self.cron is None:
            raise ConfigError("--timezone is for --cron: an interval is as long in every zone; leave it out")
        if self.timezone is not None:
            _check_timezone(self.timezone)
        if self.cron is not None:
            _check_cron(self.cron)

    def schedule(self) -> Schedule:
        """Convert to Prefect's schedule."""
        from prefect.schedules import Cron, Interval

        if self.cron is not None:
            return Cron(self.cron, timezone=self.timezone or "UTC")
        assert self.interval_s is not None
        first = datetime.now(UTC) + timedelta(seconds=_first_after_s())
        return Interval(timedelta(seconds=self.interval_s), anchor_date=first, timezone="UTC")

    def __str__(self) -> str:
        """Return the timetable in words."""
        if self.interval_s is not None:
            return f"every {self.interval_s:g} s"
        return f"at {self.cron!r} ({self.timezone or 'UTC'})"


def serve(config: RunConfig, timetable: Timetable, name: str, console: Console) -> None:
    """Register the schedule and start runs when they are due, until SIGTERM or Ctrl-C.

    A run that is due while another one is going on is cancelled; the next one labels what it would have labeled. At
    SIGTERM the current run is asked to stop, gets at most 20 s to commit shards in flight, and is resumed by the next.

    Args:
        config: the config of every run; each labels only what the output's earlier runs do not cover.
        timetable: when runs are due.
        name: name of the deployment; an existing one is replaced. Only one `serve` may use a name at a time.
        console: where to print status messages.

    Raises:
        ConfigError: the name is not valid in Prefect, or no Prefect server answers.
    """
    from prefect.settings import get_current_settings

    from flows.prefect_server.served_runs import ServedRuns

    if not re.fullmatch(r"[\w. -]+", name):
        raise ConfigError(f"--name is {name!r}; allowed: letters, digits, spaces, '.', '_' and '-'")
    with console.status("reaching Prefect"):
        check_server()
        runner, deployment_id = register(config, timetable, name)
    console.print(f"serving label-collection/{name}: a run starts {timetable}; stop with Ctrl-C or SIGTERM")
    runs = ServedRuns(deployment_id, partial(_say, console), get_current_settings().runner.poll_frequency)
    try:
        try:
            _run_until_stopped(runner)
        finally:
            runs.finish()
    except Terminated:
        console.print("stopped; the schedule is paused, and the same command resumes it")


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def register(config: RunConfig, timetable: Timetable, name: str) -> tuple[Runner, UUID]:
    """Create or replace the deployment; return the runner that executes its runs once started, and its id."""
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.runner import Runner
    from prefect.types.entrypoint import EntrypointType

    from flows.label_collection import label_collection

    # Not Runner.add_flow: it pickles the flow, whose annotations then can no longer be resolved.
    deployment: Any = label_collection.to_deployment(
        name,
        schedule=timetable.schedule(),
        paused=False,
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
        parameters=flow_parameters(config),
        description=f"Labels {config.source.uri} into {config.output.uri}.",
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    # No limit on the runner itself: a run that is due meanwhile would wait there for its turn, not be cancelled.
    # Nothing is fetched before it is due: it would be cancelled for the sake of a run that may have ended by then.
    runner = Runner(name=name, limit=None, prefetch_seconds=0, pause_on_shutdown=True)
    deployment_id: Any = runner.add_deployment(deployment)
    _end_dead_runs(deployment_id)
    return runner, deployment_id


def _end_dead_runs(deployment_id: UUID) -> None:
    """Mark runs that died with an earlier `serve` as crashed, because they would hold the only concurrency slot."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
    from prefect.states import Crashed

    going_on = {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}}
    with get_client(sync_client=True) as client:
        for flow_run in client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(going_on),
            deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment_id]}}),
        ):
            state: State[Any] = Crashed(
                message="The `serve` process that ran this ended unexpectedly; the next run resumes it."
            )
            client.set_flow_run_state(flow_run.id, state)


def check_server() -> None:
    """Check that there is a Prefect server; the embedded one of a single run has no scheduler.

    Raises:
        ConfigError: none is configured, or it does not answer.
    """
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    if not url:
        raise ConfigError(
            "serve needs a Prefect server, which keeps the clock: run `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api here"
        )
    with get_client(sync_client=True) as client:
        failure = client.api_healthcheck()
    if failure is not None:
        raise ConfigError(f"the Prefect server at {url} does not answer ({failure}); start it, or fix PREFECT_API_URL")


def flow_parameters(config: RunConfig) -> dict[str, Any]:
    """Return the parameters of a scheduled flow run: the config, made incremental and able to stop in time."""
    drain_grace_s = min(config.pool.drain_grace_s, _DRAIN_GRACE_S)
    scheduled = config.replace(incremental=True, pool=config.pool.replace(drain_grace_s=drain_grace_s))
    return {"config": scheduled.to_dict()}


def _run_until_stopped(runner: Runner) -> None:
    """Run the runner in a thread of its own until a signal comes.

    In the main thread Prefect would install signal handlers of its own, in place of ours.

    Raises:
        Terminated: SIGTERM came, and everything has ended.
        KeyboardInterrupt: Ctrl-C came, and everything has ended.
        Exception: the error that ended the runner.
    """
    loop = asyncio.new_event_loop()
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(runner.start())
        except BaseException as error:  # noqa: BLE001 - raised in the main thread
            failures.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=run, name="runner", daemon=True)
    thread.start()
    with finishing_first(stop.set, _PREFECT_GRACE_S):
        try:
            # With a timeout, so that signals are handled while waiting.
            while not stop.wait(0.2):
                pass
        finally:
            if thread.is_alive():
                asyncio.run_coroutine_threadsafe(runner.astop(), loop)
                thread.join()
    if failures:
        raise failures[0]


def _first_after_s() -> float:
    """Return twice the time between two looks of Prefect's scheduler at new deployments: it ignores what is past."""
    from prefect.settings import get_current_settings

    return 2 * get_current_settings().server.services.scheduler.recent_deployments_loop_seconds


def _check_timezone(name: str) -> None:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ConfigError(f'--timezone is {name!r}, which is no time zone; give one like "Europe/Berlin"') from None


def _check_cron(cron: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=cron)
    except ValueError:
        raise ConfigError(
            f'--cron is {cron!r}, which is no cron string; give minute, hour, day, month and weekday, e.g. "0 2 * * *"'
        ) from None
