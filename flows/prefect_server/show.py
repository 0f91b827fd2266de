"""The process that shows the runs of a driver in Prefect: it follows each as a flow run, on a named server or its own.

So the driver imports nothing of Prefect, and labels while its server comes up: what has happened meanwhile is told once
it is there. When the driver ends, however it ends, so does this process.

The driver sends tuples that name what has happened: ``("show", config, retries, retry_delay_s)``, which begins a run,
``("log", level, text, time)``, ``("progress", key, percent, description)``, ``("wave", label)``, ``("outcome", label,
problem, can_retry)``, ``("artifact", ...)`` as in told.py, ``("verify",)``, ``("verified", error)`` and
``("end", error, problem)`` or ``("end", "", how)``, which ends it. It is sent ``("reached",)`` or ``("starting",)`` or
``("nobody",)``, ``("up",)``, ``("failed", why)``, ``("again", label)`` or ``("settled", label)`` for each outcome with
a problem, and ``("told", missed)`` at a run's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectException
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)

from flows.prefect_server.driver import GONE, Driver
from flows.prefect_server.embedded import embedded_server
from flows.prefect_server.following import Following, followed, label_collection
from flows.prefect_server.reach import PrefectUnreachableError, check_home, reach_named_server
from flows.prefect_server.redacted_logs import redact_run_logs
from flows.prefect_server.reports import fewer_retries, reporting

# How soon, and how long, a flow run is tried to be begun while the server is away; and how long after the run's end.
_AGAIN_AFTER_S = 2.0
_BEGIN_S = 60.0
_DRAIN_S = 5.0
_LOOK_EVERY_S = 0.05


def show_run(
    driver: Driver, patience_s: float, config: dict[str, Any], retries: int, retry_delay_s: float
) -> UUID | None:
    """Follow a run to its end, and say what could not be told of it; return its flow run, if there is one."""
    with reporting(patience_s) as told:
        following = Following(driver, told, retries, retry_delay_s)
        followed.set(following)
        tries = _Tries(driver, patience_s)
        while True:
            try:
                asyncio.run(label_collection(config))
            except BaseException as error:  # noqa: BLE001 - the run's own, which the driver has told, or Prefect's
                if error is not following.raised:
                    told.note(error)
                    if not following.has_begun and tries.another():
                        continue
                    following.go_on_alone()
            break
        driver.say("told", told.missed)
        return told.flow_run_id


class _Tries:
    """Says how long a flow run that could not begin is tried to: for a while, and once the run has ended for a moment.

    Args:
        driver: tells that the run has ended.
        patience_s: seconds from then on.
    """

    def __init__(self, driver: Driver, patience_s: float) -> None:
        self._driver, self._patience_s = driver, patience_s
        self._first_s: float | None = None
        self._ended_s: float | None = None

    def another(self) -> bool:
        """Wait a moment, and return whether to try again."""
        self._first_s = self._first_s or time.monotonic()
        if not self._driver.run_has_ended.wait(_AGAIN_AFTER_S):
            return time.monotonic() - self._first_s < _BEGIN_S
        if self._ended_s is None:
            self._ended_s = time.monotonic()
            return True
        time.sleep(_AGAIN_AFTER_S / 2)
        return time.monotonic() - self._ended_s < self._patience_s


@contextlib.contextmanager
def _server(driver: Driver, may_start: bool) -> Iterator[str]:
    """Reach the server that the settings name, or run one if that is allowed; yield "named", "own" or nothing."""
    if reach_named_server():
        driver.say("reached")
        driver.is_up = True
        with temporary_settings(fewer_retries()):
            yield "named"
    elif not may_start:
        driver.is_up = True
        driver.say("nobody")
        yield ""
    else:
        home = get_current_settings().home
        check_home(home)
        driver.say("starting")
        with ExitStack() as stack:
            try:
                timeout_s = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
                url = stack.enter_context(embedded_server(timeout_s))
            except (OSError, RuntimeError) as error:
                raise PrefectUnreachableError(
                    f"the embedded Prefect server cannot be started ({error}); its database is in {home}. Give it "
                    "longer with PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS, name a server with PREFECT_API_URL, "
                    "or run with --no-prefect"
                ) from error
            stack.enter_context(temporary_settings({PREFECT_API_URL: url, **fewer_retries()}))
            driver.is_up = True
            driver.say("up")
            yield "own"


def _wait_until_recorded(flow_runs: list[UUID]) -> None:
    """Wait, though not for long, until the server has written how task runs ended: it does so in its own time."""
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=flow_runs))
    deadline = time.monotonic() + _DRAIN_S
    with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        while flow_runs and time.monotonic() < deadline:
            runs = client.read_task_runs(flow_run_filter=chosen)
            if all(run.state is not None and run.state.is_final() for run in runs):
                return
            time.sleep(_LOOK_EVERY_S)


def main(driver: Driver, settings: dict[str, Any]) -> None:
    """Show what the driver asks for, until it ends.

    Args:
        driver: says what to show.
        settings: ``may_start``, whether to run a server if none is named; ``patience_s``, as of PrefectReporter.
    """
    redact_run_logs()
    try:
        with _server(driver, settings["may_start"]) as server:
            gc.freeze()
            gc.enable()  # which _PROGRAM of show_process.py had disabled, since all before makes hardly any garbage
            shown = []
            while not driver.is_gone.is_set() and (message := driver.inbox.get()) != GONE:
                if server and message[0] == "show":  # and not what a wave has told late, after its run's end
                    shown.append(show_run(driver, settings["patience_s"], *message[1:]))
            EventsWorker.drain_all(timeout=_DRAIN_S)
            APILogWorker.drain_all(timeout=_DRAIN_S)
            if server == "own":  # which ends now
                _wait_until_recorded([one for one in shown if one])
    except PrefectUnreachableError as error:
        driver.say("failed", str(error))
        driver.is_gone.wait()
    os._exit(0)  # nothing is left to do, and threads of libraries may wait for something
