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
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed, Failed

from actors.pool.runner import PoolEvent, ShardFailure
from flows.run.summary import RunSummary
from flows.run.updates import update_text
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.plan import Plan
from pipelines.redaction import counted, redacted
from pipelines.types import ShardReceipt

# Each update is a request to the server.
_ARTIFACT_INTERVAL_S = 10.0
_AGAIN_AFTER_S = 5.0
_REQUEST_TIMEOUT_S = 10.0
PATIENCE_S = 10.0
"""Seconds at a run's end for delivering the remaining reports."""

# Prefect's default, by which a setting of the user's is recognized, and the number used in its place.
_PREFECTS_RETRIES, _RETRIES = 5, 3

_T = TypeVar("_T")


def is_prefects(error: BaseException) -> bool:
    """Return whether an error is of Prefect's bookkeeping: its server does not answer, or does not know the run."""
    return isinstance(error, httpx.HTTPError | PrefectException)


class PrefectReporter:
    """Sends reports about a flow run to Prefect, from a thread of its own.

    Attributes:
        missed: why the last report could not be delivered; empty if it was.
        summary: how the run ended; None until then.
    """

    def __init__(self) -> None:
        self.missed = ""
        self.summary: RunSummary | None = None
        self.flow_run_id: UUID | None = None
        self._news = threading.Condition()
        self._waiting: dict[str, Callable[[], object]] = {}
        self._thread: threading.Thread | None = None
        self._deadline: float | None = None

    def begin(self) -> None:
        """Record the current flow run; to be called inside it."""
        context = FlowRunContext.get()
        self.flow_run_id = context.flow_run.id if context and context.flow_run else None

    def tell(self, what: str, call: Callable[[], object]) -> None:
        """Queue a report, to be retried until it is delivered; a newer one of the same kind replaces an older one."""
        # Prefect's calls find their flow run in the context, and this one may have ended when they are made.
        context = contextvars.copy_context()
        with self._news:
            self._waiting[what] = partial(context.run, _impatiently, call)
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="tell-prefect", daemon=True)
            self._thread.start()

    def note(self, error: BaseException) -> None:
        """Record that something could not be reported."""
        self.missed = redacted(f"{type(error).__name__}: {error}").partition("\n")[0]

    def finish(self) -> None:
        """Wait until all reports are delivered, but not much longer than PATIENCE_S."""
        if self._thread is None:
            return
        with self._news:
            self._deadline = time.monotonic() + PATIENCE_S
            self._news.notify()
        self._thread.join(PATIENCE_S + _REQUEST_TIMEOUT_S)
        self._thread, self._deadline = None, None

    def end(self, summary: RunSummary) -> None:
        """Report how a run ended, if its flow run could not set its final state itself."""
        if self.flow_run_id is None:
            return
        self.tell("end", partial(_set_end, self.flow_run_id, summary))
        self.finish()

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


def _impatiently(call: Callable[[], object]) -> None:
    """Call without Prefect's own retries, during which newer reports would have to wait."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: _REQUEST_TIMEOUT_S}):
        call()


def _set_end(flow_run_id: UUID, summary: RunSummary) -> None:
    state: State[Any] = Completed() if summary.has_succeeded else Failed(message="; ".join(summary.failures[:5]))
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run_id, state, force=True)


_current: ContextVar[PrefectReporter | None] = ContextVar("reporter", default=None)


@contextlib.contextmanager
def reporting() -> Iterator[PrefectReporter]:
    """Report the flow runs in this block, and keep messages about an absent server off the terminal.

    A flow run proposes its final state three times, each with all retries of its client. Their number is reduced,
    unless the user has set it, since the final state is also reported from here.
    """
    told = PrefectReporter()
    token = _current.set(told)
    logging.raiseExceptions = False  # logging would print a traceback for every line that cannot be sent
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # logs every second how many events it could not send
    retries = {} if PREFECT_CLIENT_MAX_RETRIES.value() != _PREFECTS_RETRIES else {PREFECT_CLIENT_MAX_RETRIES: _RETRIES}
    try:
        with temporary_settings(retries):
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


class PrefectObserver:
    """Shows a run in Prefect: a progress artifact, updated at most every ten seconds, and log lines."""

    def __init__(self, told: PrefectReporter, plan: Plan, committed: int) -> None:
        self._told = told
        self._log = get_run_logger()
        self._total, self._done = max(1, plan.num_shards), committed
        self._shown = time.monotonic()
        self._description = f"Committed shards of {plan.run_id}"
        self._artifact: UUID | None = None
        self._tell_progress()

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Log the plan."""
        self._log.info(
            "%s: %d images in %d shards, %d committed before", plan.run_id, plan.num_images, plan.num_shards, committed
        )

    def on_update(self, update: UpdateCounts) -> None:
        """Log what an incremental run found."""
        self._log.info("update: %s", update_text(update))

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Count a shard."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= _ARTIFACT_INTERVAL_S or self._done >= self._total:
            self._shown = now
            self._tell_progress()
        self._log.debug("%s committed by %s: %s", receipt.shard_id, receipt.attempt, dict(receipt.status_counts))

    def on_failure(self, failure: ShardFailure) -> None:
        """Log a shard that was given up."""
        self._log.error("%s failed after %d attempts: %s", failure.shard_id, failure.attempts, failure.error)

    def on_event(self, event: PoolEvent) -> None:
        """Log what happens to replicas."""
        self._log.info("%s: %s", event.kind, event.message)

    def _tell_progress(self) -> None:
        self._told.tell("progress", partial(self._show_progress, 100 * self._done / self._total))

    def _show_progress(self, percent: float) -> None:
        if self._artifact is None:
            artifact = create_progress_artifact(percent, key="shards-committed", description=self._description)
            assert isinstance(artifact, UUID), "artifacts are created synchronously where no event loop runs"
            self._artifact = artifact
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=percent)


def publish(told: PrefectReporter, summary: RunSummary, report: str | None) -> None:
    """Publish the run's counts and problems as artifacts, and a link to its report."""
    told.summary = summary
    if report is not None:
        what = f"What {summary.run_id} looks like"
        told.tell("report", partial(create_link_artifact, report, key="label-collection-report", description=what))
    rows = [{"what": f"images: {name}", "number": number} for name, number in summary.ledger.items()]
    rows += [{"what": f"quarantined: {reason}", "number": number} for reason, number in summary.reason_counts.items()]
    rows.append({"what": "masks", "number": summary.num_annotations})
    what = f"Images and masks of {summary.run_id}"
    told.tell("counts", partial(create_table_artifact, rows, key="label-collection-counts", description=what))
    ended = "Complete" if summary.ok else "Incomplete"
    counts = ", ".join(f"{number:,} {name}" for name, number in summary.ledger.items())
    lines = [
        f"# {ended}: {summary.run_id}",
        f"Output: `{summary.output}`",
        f"Images: {counts}. Masks: {summary.num_annotations:,}.",
        f"{summary.committed} of {summary.shards} shards committed, {summary.labelled_now} of them by this flow run, "
        f"in {summary.elapsed_s:.1f} s.",
        *(f"* {problem.splitlines()[0]}" for problem in summary.failures[:50]),
    ]
    what = f"{ended}: {counts}; {counted(summary.num_annotations, 'mask')}"
    text = "\n\n".join(lines)
    told.tell("summary", partial(create_markdown_artifact, text, key="label-collection-summary", description=what))
    told.finish()
    if told.missed:
        get_run_logger().warning("Prefect could not be told of all of this run (%s)", told.missed)
