"""The process that shows the runs of a driver in Prefect: it follows each as a flow run, on a named server or its own.

So the driver imports nothing of Prefect, and labels while its server comes up: what has happened meanwhile is told once
it is there. When the driver ends, however it ends, so does this process.

The driver sends tuples that name what has happened: ``("show", config, retries, retry_delay_s)``, which begins a run,
``("log", level, text, time)``, ``("progress", percent, description)``, ``("wave", label)``, ``("outcome", label,
problem, can_retry)``, ``("artifact", ...)`` as in told.py, ``("verify",)``, ``("verified", error)`` and
``("end", error, problem)``, which ends it. It is sent ``("reached",)`` or ``("starting",)`` or ``("nobody",)``,
``("up",)``, ``("failed", why)``, ``("again", label)`` or ``("settled", label)`` for each outcome with a problem, and
``("told", missed)`` at a run's end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any
from uuid import UUID

import httpx
from prefect import flow
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

from flows.prefect_server.embedded import embedded_server
from flows.prefect_server.reach import PrefectUnreachableError, check_home, reach_named_server
from flows.prefect_server.redacted_logs import redact_run_logs
from flows.prefect_server.reports import (
    FlowRecord,
    PrefectReporter,
    is_prefects,
    orchestrated,
    publish_one,
    reporting,
)
from flows.prefect_server.tasks import plan_run, verify_run, watch_wave

Message = tuple[Any, ...]
GONE: Message = ("end", "DriverEnded", "the process of the run has ended")
"""What is heard last if the driver has ended without a word."""

_ENDS = ("Terminated", "DriverEnded")
_CRASHES = (*_ENDS, "KeyboardInterrupt")
# How long waves, which have ended, may take to be shown so, all together. If the run was stopped, they may sleep until
# their next try, and the driver waits for ten seconds in all.
_WAVES_S, _STOPPED_WAVES_S = 30.0, 3.0
# How soon, and how long, a flow run is tried to be begun while the server is away; and how long after the run's end.
_AGAIN_AFTER_S = 2.0
_BEGIN_S = 60.0
_DRAIN_S = 5.0
_LOOK_EVERY_S = 0.05
# How long this process may take to end once the driver has.
_END_S = 15.0


class Driver:
    """The connection to the driver."""

    def __init__(self, connection: Connection) -> None:
        self.inbox: SimpleQueue[Message] = SimpleQueue()
        self.run_has_ended = threading.Event()
        self.is_gone = threading.Event()
        self.is_up = False
        self._connection = connection
        self._turn = threading.Lock()
        threading.Thread(target=self._read, name="driver", daemon=True).start()

    def say(self, *message: Any) -> None:
        """Send something."""
        with self._turn, contextlib.suppress(OSError):  # it has ended, which is heard as well
            self._connection.send(message)

    def _read(self) -> None:
        try:
            while True:
                message = self._connection.recv()
                if message[0] in ("show", "end"):
                    (self.run_has_ended.set if message[0] == "end" else self.run_has_ended.clear)()
                self.inbox.put(message)
        except (EOFError, OSError):
            if not self.is_up:
                os._exit(1)  # nothing has been shown yet
            threading.Timer(_END_S, os._exit, [1]).start()
            self.is_gone.set()
            self.run_has_ended.set()
            self.inbox.put(GONE)


class _Wave:
    """A wave of the driver's."""

    def __init__(self, driver: Driver, label: str) -> None:
        self.outcomes: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self.run_has_ended = False
        self._driver, self._label = driver, label
        self._has_failed = False

    def outcome(self) -> tuple[str, bool]:
        """Wait until it has ended; called again, ask for its failed shards to be tried again first."""
        if self._has_failed and not self.run_has_ended:
            self._driver.say("again", self._label)
        problem, can_retry = self.outcomes.get()
        self._has_failed = bool(problem)
        return problem, can_retry


class Following:
    """Follows one run.

    Args:
        driver: tells what happens.
        told: reports it to Prefect.
        retries, retry_delay_s: of its waves.

    Attributes:
        end: error and problem of the run, once it has ended.
    """

    def __init__(self, driver: Driver, told: PrefectReporter, retries: int, retry_delay_s: float) -> None:
        self.end: tuple[str, str] | None = None
        self._driver, self._told = driver, told
        self._retries, self._retry_delay_s = retries, retry_delay_s
        self._waves: dict[str, _Wave] = {}
        self._threads: list[threading.Thread] = []
        self._record: FlowRecord | None = None

    @property
    def has_begun(self) -> bool:
        """Whether its flow run has."""
        return self._record is not None

    def follow(self) -> None:
        """Show the run in the current flow run until it has ended."""
        self._told.begin()
        self._record = FlowRecord(self._told)
        orchestrated(self._told, partial(plan_run, _done), _done)
        self.until("end")
        self._join_waves()
        self._told.finish()

    def _join_waves(self) -> None:
        is_stopped = self.end is not None and self.end[0] in _CRASHES
        deadline = time.monotonic() + (_STOPPED_WAVES_S if is_stopped else _WAVES_S)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def go_on_alone(self) -> None:
        """Hear the run to its end without Prefect, which is told then, if it can be, how it ended."""
        self._record = None
        self.until("end")
        assert self.end is not None, "that was its end"
        name, problem = self.end
        self._told.end(problem or name, is_crash=name in _CRASHES)

    def until(self, last: str) -> Message:
        """Pass on what the driver tells, until it tells this; return what came with it."""
        while self.end is None:
            what, *values = self._driver.inbox.get()
            if what == "end":
                self.end = values[0], values[1]
                for wave in self._waves.values():
                    wave.run_has_ended = True
                    wave.outcomes.put(("the run has ended", False))
            elif what == last:
                return tuple(values)
            else:
                getattr(self, f"_{what}")(*values)
        return ()

    def _log(self, *line: Any) -> None:
        if self._record is not None:
            self._record.log(*line)

    def _progress(self, percent: float, description: str) -> None:
        if self._record is not None:
            self._record.progress(percent, description)

    def _artifact(self, what: str, kind: str, values: dict[str, Any]) -> None:
        if self._record is not None:
            publish_one(self._told, what, kind, values)

    def _wave(self, label: str) -> None:
        self._waves[label] = wave = _Wave(self._driver, label)
        if self._record is None:
            return
        context = contextvars.copy_context()

        def watch() -> None:
            context.run(watch_wave, self._told, label, wave.outcome, self._retries, self._retry_delay_s)
            if self.end is None:  # or it could be taken for a wave of the next run
                self._driver.say("settled", label)

        thread = threading.Thread(target=watch, name=f"wave-{label}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _outcome(self, label: str, problem: str, can_retry: bool) -> None:
        self._waves[label].outcomes.put((problem, can_retry))
        if self._record is None:
            self._driver.say("settled", label)

    def _verified(self, error: str) -> None:
        """Ignore it: nobody has begun to show the verification."""

    def _verify(self) -> None:
        if self._record is None:
            return
        errors: list[str] = []

        def wait() -> None:
            if not errors:
                errors.append("".join(self.until("verified")) or " ".join(self.end or ()))
            if errors[0]:
                raise _error("VerifyError", errors[0])

        with contextlib.suppress(Exception):  # the driver goes on with it
            orchestrated(self._told, partial(verify_run, wait), wait)


def _done() -> None:
    """Do nothing: the driver has done it."""


def _error(name: str, text: str) -> BaseException:
    """Return an error under the name that it has in the driver."""
    if name == "KeyboardInterrupt":
        return KeyboardInterrupt()
    kind: type[BaseException] = type(name, (BaseException if name in _ENDS else Exception,), {})
    return kind(text)


_following: ContextVar[Following] = ContextVar("following")


@flow(
    name="label-collection",
    description="Labels a collection, or resumes it: the same call after any crash ends in the same rows.",
    flow_run_name="{config[output][uri]}",
    validate_parameters=False,
    persist_result=False,
)
async def label_collection(config: dict[str, Any]) -> None:  # noqa: ARG001 - shown as the parameters of the flow run
    """Show a run that the command line has begun, until it has ended."""
    # A coroutine, though it waits for nothing in its loop: of any other Prefect waits for up to a second as it ends.
    following = _following.get()
    following.follow()
    assert following.end is not None, "it has been followed to its end"
    if following.end[0]:
        raise _error(*following.end)


def show_run(
    driver: Driver, patience_s: float, config: dict[str, Any], retries: int, retry_delay_s: float
) -> UUID | None:
    """Follow a run to its end, and say what could not be told of it; return its flow run, if there is one."""
    with reporting(patience_s) as told:
        following = Following(driver, told, retries, retry_delay_s)
        _following.set(following)
        since: float | None = None
        while True:
            try:
                asyncio.run(label_collection(config))
            except BaseException as error:  # noqa: BLE001 - the run's own, which the driver has told, or Prefect's
                if following.end is None or is_prefects(error):
                    told.note(error)
                    if not following.has_begun and _may_try_again(
                        driver, since := since or time.monotonic(), patience_s
                    ):
                        continue
                    following.go_on_alone()
            break
        driver.say("told", told.missed)
        return told.flow_run_id


def _may_try_again(driver: Driver, since: float, patience_s: float) -> bool:
    """Wait a moment; return whether a flow run that could not begin is to be tried again."""
    has_ended = driver.run_has_ended.wait(_AGAIN_AFTER_S)
    if has_ended:
        time.sleep(_AGAIN_AFTER_S / 2)
    return time.monotonic() - since < (patience_s if has_ended else _BEGIN_S)


@contextlib.contextmanager
def _server(driver: Driver, may_start: bool) -> Iterator[bool]:
    """Reach the server that the settings name, or run one if that is allowed; yield whether there is one."""
    if reach_named_server():
        driver.say("reached")
        driver.is_up = True
        yield True
    elif not may_start:
        driver.is_up = True
        driver.say("nobody")
        yield False
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
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
            driver.is_up = True
            driver.say("up")
            yield True


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


def main(settings: dict[str, Any]) -> None:
    """Show what the driver asks for, until it ends.

    Args:
        settings: ``socket``, the descriptor of the driver's socket; ``may_start``, whether to run a server if none is
            named; ``patience_s``, as of PrefectReporter.
    """
    gc.freeze()
    gc.enable()
    driver = Driver(Connection(settings["socket"]))
    redact_run_logs()
    try:
        with _server(driver, settings["may_start"]) as is_there:
            shown = []
            while not driver.is_gone.is_set() and (message := driver.inbox.get()) != GONE:
                if is_there:
                    shown.append(show_run(driver, settings["patience_s"], *message[1:]))
            EventsWorker.drain_all(timeout=_DRAIN_S)
            APILogWorker.drain_all(timeout=_DRAIN_S)
            _wait_until_recorded([one for one in shown if one])
    except PrefectUnreachableError as error:
        driver.say("failed", str(error))
        driver.is_gone.wait()
    os._exit(0)  # nothing is left to do, and threads of libraries may wait for something
