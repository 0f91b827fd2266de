"""Follows a run that a driver carries out, as a flow run."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from contextvars import ContextVar
from functools import partial
from queue import SimpleQueue
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.prefect_server.driver import Driver, Message
from flows.prefect_server.reports import FlowRecord, PrefectReporter, orchestrated, publish_one
from flows.prefect_server.tasks import plan_run, verify_run, watch_wave

_ENDS = ("Terminated", "DriverEnded")
_CRASHES = (*_ENDS, "KeyboardInterrupt")
# How long waves, which have ended, may take to be shown so, all together. If the run was stopped, they may sleep until
# their next try, and the driver waits for ten seconds in all.
_WAVES_S, _STOPPED_WAVES_S = 30.0, 3.0


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
        end: its error and what was wrong, once the run has ended; no error, and how it ended, if nothing was.
        raised: that error, once its flow run has failed with it.
    """

    def __init__(self, driver: Driver, told: PrefectReporter, retries: int, retry_delay_s: float) -> None:
        self.end: tuple[str, str] | None = None
        self.raised: BaseException | None = None
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
        name, text = self.end
        self._told.end(name and (text or name), text, is_crash=name in _CRASHES)

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

    def _progress(self, *shown: Any) -> None:
        if self._record is not None:
            self._record.progress(*shown)

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


followed: ContextVar[Following] = ContextVar("following")


@flow(
    name="label-collection",
    description="Labels a collection, or resumes it: the same call after any crash ends in the same rows.",
    flow_run_name="{config[output][uri]}",
    validate_parameters=False,
    persist_result=False,
)
async def label_collection(config: dict[str, Any]) -> State[Any]:  # noqa: ARG001 - shown as the parameters of the flow run
    """Show a run that the command line has begun, until it has ended."""
    # A coroutine, though it waits for nothing in its loop: of any other Prefect waits for up to a second as it ends.
    following = followed.get()
    following.follow()
    assert following.end is not None, "it has been followed to its end"
    if following.end[0]:
        following.raised = _error(*following.end)
        raise following.raised
    return Completed(message=following.end[1])
