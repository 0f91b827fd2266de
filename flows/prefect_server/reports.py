"""Report a run to Prefect, without ever letting labeling wait for its server or fail with it.

A thread of its own sends the reports, and retries while the server does not answer. If Prefect's bookkeeping of a step
fails, the step is run without Prefect. Reports that could never be delivered become one warning at the end.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext, SettingsContext, get_settings_context
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, Settings
from prefect.states import Completed, Crashed, Failed

from pipelines.redaction import redacted

_AGAIN_AFTER_S = 5.0
_REQUEST_TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""Seconds at a run's end for delivering the remaining reports."""

# Prefect's default, by which a setting of the user's is recognized, and the number used in its place.
_PREFECTS_RETRIES, _RETRIES = 5, 3

# Prefect returns coroutines instead to whoever calls it in the context of an asynchronous flow.
_AT_ONCE: Mapping[str, Any] = {"_sync": True}

_T = TypeVar("_T")


def is_prefects(error: BaseException) -> bool:
    """Return whether an error is of Prefect's bookkeeping: its server does not answer, or does not know the run."""
    return isinstance(error, httpx.HTTPError | PrefectException)


class PrefectReporter:
    """Sends reports about a flow run to Prefect, from a thread of its own.

    Args:
        patience_s: seconds at a run's end for delivering the remaining reports.

    Attributes:
        missed: why the last report could not be delivered; empty if it was.
        flow_run_id: of the flow run, once it has begun.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self.missed = ""
        self.flow_run_id: UUID | None = None
        self._news = threading.Condition()
        self._waiting: dict[str, Callable[[], object]] = {}
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None
        self._patience_s = patience_s
        self._settings: Settings | None = None

    def begin(self) -> None:
        """Record the current flow run; to be called inside it."""
        context = FlowRunContext.get()
        self.flow_run_id = context.flow_run.id if context and context.flow_run else None

    def tell(self, what: str, call: Callable[[], object]) -> None:
        """Queue a report, to be retried until it is delivered; a newer one of the same kind replaces an older one."""
        # Prefect's calls find their flow run in the context, and this one may have ended when they are made.
        context = contextvars.copy_context()
        with self._news:
            self._waiting[what] = partial(context.run, self._impatiently, call)
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tell-prefect", daemon=True)
            self._thread.start()

    def note(self, error: BaseException) -> None:
        """Record that something could not be reported."""
        self.missed = redacted(f"{type(error).__name__}: {error}").partition("\n")[0]

    def finish(self) -> None:
        """Wait until all reports are delivered, but not much longer than ``patience_s``."""
        if self._thread is None:
            return
        with self._news:
            self._deadline = time.monotonic() + self._patience_s
            self._news.notify()
        self._thread.join(self._patience_s + _REQUEST_TIMEOUT_S)
        self._thread, self._deadline = None, None

    def end(self, problem: str, text: str, *, is_crash: bool) -> None:
        """Report how a run ended, if its flow run could not set its final state itself.

        Args:
            problem: what made it a failure; empty if nothing did.
            text: how it ended, if nothing did.
            is_crash: whether it was stopped, or its process has ended.
        """
        if self.flow_run_id is None:
            return
        state: State[Any] = (Crashed if is_crash else Failed)(message=problem) if problem else Completed(message=text)
        self.tell("end", partial(_set_end, self.flow_run_id, state))
        self.finish()

    def _impatiently(self, call: Callable[[], object]) -> None:
        """Call without Prefect's own retries, during which newer reports would have to wait."""
        context = get_settings_context()
        if self._settings is None:  # they take longer to make than an artifact does
            self._settings = context.settings.copy_with_update(
                updates={PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _REQUEST_TIMEOUT_S}
            )
        with SettingsContext(profile=context.profile, settings=self._settings):
            call()

    def _run(self) -> None:
        with contextlib.suppress(_ToldAll):
            while True:
                self._tell_one()

    def _tell_one(self) -> None:
        """Wait for a report, and send the oldest.

        Raises:
            _ToldAll: everything is delivered after ``finish`` was called, or the time for it is over.
        """
        with self._news:
            while not self._waiting:
                if self._deadline is not None:
                    raise _ToldAll
                self._news.wait()
            what, call = next(iter(self._waiting.items()))
            del self._waiting[what]
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the run goes on
            self.note(error)
            with self._news:
                self._waiting.setdefault(what, call)  # a newer report may have been queued meanwhile
                self._news.wait_for(lambda: self._deadline is not None, _AGAIN_AFTER_S)
            if self._deadline is not None:
                if time.monotonic() > self._deadline:
                    raise _ToldAll from None
                time.sleep(1.0)
        else:
            self.missed = ""


class _ToldAll(Exception):  # noqa: N818 - no error
    """There is nothing left to report, or no time left."""


def _set_end(flow_run_id: UUID, state: State[Any]) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, state, force=True)


_current: ContextVar[PrefectReporter | None] = ContextVar("reporter", default=None)


def fewer_retries() -> dict[Any, int]:
    """Return the settings with which flow runs are to be reported.

    A flow run proposes its final state three times, each with all retries of its client. Their number is reduced,
    unless the user has set it, since the final state is also reported from here.
    """
    is_set = PREFECT_CLIENT_MAX_RETRIES.value() != _PREFECTS_RETRIES
    return {} if is_set else {PREFECT_CLIENT_MAX_RETRIES: _RETRIES}


@contextlib.contextmanager
def reporting(patience_s: float) -> Iterator[PrefectReporter]:
    """Report the flow runs in this block, and keep messages about an absent server off the terminal.

    Args:
        patience_s: as of PrefectReporter.
    """
    told = PrefectReporter(patience_s)
    token = _current.set(told)
    logging.raiseExceptions = False  # logging would print a traceback for every line that cannot be sent
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # logs every second how many events it could not send
    try:
        yield told
    finally:
        _current.reset(token)


def current_reporter() -> PrefectReporter:
    """Return the reporter of the current run; outside of any, one that nobody waits for."""
    return _current.get() or PrefectReporter()


def orchestrated(told: PrefectReporter, step: Callable[[], _T], plain: Callable[[], _T]) -> _T:
    """Run a step as a Prefect task, or without Prefect if its bookkeeping fails.

    Args:
        told: records the failure.
        step: the task.
        plain: the same work without Prefect. The task may have done some or all of it already, so it must be
            repeatable.
    """
    try:
        return step()
    except Exception as error:
        if not is_prefects(error):
            raise
        told.note(error)
        return plain()


class FlowRecord:
    """The current flow run's log and progress artifact; see RunRecord."""

    def __init__(self, told: PrefectReporter) -> None:
        self._told = told
        self._log: Any = get_run_logger()  # an adapter
        self._artifact: UUID | None = None

    def log(self, level: int, text: str, at: float | None = None) -> None:
        """Add a line to the flow run's log.

        Args:
            level: as in logging.
            text: the line.
            at: when it was said, in seconds since the epoch; None for now.
        """
        logger = self._log.logger
        if logger.isEnabledFor(level):
            record = logger.makeRecord(
                logger.name, level, __file__, 0, text, (), None, extra=dict(self._log.extra or {})
            )
            record.created = at or record.created
            logger.handle(record)

    def progress(self, key: str, percent: float, description: str) -> None:
        """Create or update the progress artifact."""
        self._told.tell("progress", partial(self._show_progress, key, percent, description))

    def event(self, values: dict[str, Any]) -> None:
        """Emit an event; see RunRecord."""
        publish_one(self._told, "event", "event", values)

    def _show_progress(self, key: str, percent: float, description: str) -> None:
        if self._artifact is None:
            create: Any = partial(create_progress_artifact, **_AT_ONCE)
            self._artifact = create(percent, key=key, description=description)
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent, **_AT_ONCE)


def _emit(*, _sync: bool, **values: Any) -> object:
    return emit_event(**values)


_CREATE: Mapping[str, Callable[..., object]] = {
    "event": _emit,
    "table": create_table_artifact,
    "markdown": create_markdown_artifact,
}


def publish_one(told: PrefectReporter, what: str, kind: str, values: Mapping[str, Any]) -> None:
    """Publish an artifact of the current flow run; see told.Artifact."""
    told.tell(what, partial(_CREATE[kind], **values, **_AT_ONCE))
