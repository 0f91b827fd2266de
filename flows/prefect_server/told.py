"""What Prefect is told of a run: log lines, progress and artifacts, however they get there. Imports no Prefect."""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from actors.pool.runner import PoolEvent, ShardFailure
from flows.run.observer import LOUD
from flows.run.planning import PlannedRun
from flows.run.summary import RunSummary
from flows.run.updates import covered_text, update_text
from pipelines.planning.coverage import UpdateCounts
from pipelines.planning.plan import Plan
from pipelines.redaction import counted
from pipelines.types import ShardReceipt

# Each update is a request to the server.
_ARTIFACT_INTERVAL_S = 10.0
_MAX_NAME = 60

Artifact = tuple[str, str, dict[str, Any]]
"""What it shows; its kind: "table", "markdown" or "event"; what creates it is called with."""

_ALARM, _CHANGED = "xsam-label.canary.alarm", "xsam-label.run.changed"


class RunRecord(Protocol):
    """Where log lines and progress of a flow run go. Neither waits for Prefect nor fails with it."""

    def log(self, level: int, text: str) -> None:
        """Add a line to the flow run's log."""
        ...

    def progress(self, key: str, percent: float, description: str) -> None:
        """Create or update the progress artifact."""
        ...

    def event(self, values: dict[str, Any]) -> None:
        """Emit an event, by which automations can tell people."""
        ...


class PrefectObserver:
    """Shows a run in Prefect: a progress artifact, updated at most every ten seconds, and log lines.

    Args:
        record: where they go.
        output: URI of the run's output.
        plan: of the run.
        committed: number of its shards that are committed.
    """

    def __init__(self, record: RunRecord, output: str, plan: Plan, committed: int) -> None:
        self._record, self._run_id, self._key = record, plan.run_id, artifact_key(output, "shards")
        self._total, self._done = max(1, plan.num_shards), committed
        self._shown = time.monotonic()
        self._description = f"Committed shards of {plan.run_id}"
        self._tell_progress()

    def on_plan(self, plan: Plan, committed: int) -> None:
        """Log the plan."""
        text = f"{plan.run_id}: {plan.num_images} images in {plan.num_shards} shards, {committed} committed before"
        self._record.log(logging.INFO, text)

    def on_update(self, update: UpdateCounts) -> None:
        """Log what an incremental run found."""
        self._record.log(logging.INFO, f"update: {update_text(update)}")

    def on_receipt(self, receipt: ShardReceipt) -> None:
        """Count a shard."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= _ARTIFACT_INTERVAL_S or self._done >= self._total:
            self._shown = now
            self._tell_progress()
        counts: Mapping[str, int] = dict(receipt.status_counts)
        self._record.log(logging.DEBUG, f"{receipt.shard_id} committed by {receipt.attempt}: {counts}")

    def on_failure(self, failure: ShardFailure) -> None:
        """Log a shard that was given up."""
        text = f"{failure.shard_id} failed after {failure.attempts} attempts: {failure.error}"
        self._record.log(logging.ERROR, text)

    def on_event(self, event: PoolEvent) -> None:
        """Log what happens to replicas; of an alarm, emit an event too."""
        level = logging.WARNING if event.kind in LOUD else logging.INFO
        self._record.log(level, f"{event.kind}: {event.message}")
        if event.kind == "alarm":
            self._record.event(_event(_ALARM, self._run_id, [event.message]))

    def _tell_progress(self) -> None:
        self._record.progress(self._key, 100 * self._done / self._total, self._description)


def artifact_key(output: str, what: str) -> str:
    """Return the key under which Prefect keeps what artifacts show of one output, run after run.

    Prefect allows lowercase letters, digits and dashes. A name that is cut, or that loses other letters, has a digest.
    """
    name = "-".join(re.findall("[a-z0-9]+", output.lower()))
    if len(name) > _MAX_NAME or not re.fullmatch(r"[a-z0-9:/._ -]+", output.lower()):
        name = f"{name[-_MAX_NAME:].strip('-')}-{hashlib.sha256(output.encode()).hexdigest()[:6]}".lstrip("-")
    return f"{name}-{what}"


def ended_text(run: PlannedRun, summary: RunSummary) -> str:
    """Say in a line how a run has ended: the message of its flow run's last state."""
    if _had_nothing_to_ask(run, summary):
        return "nothing new" + (f": {covered_text(run.update)}" if run.update else "")
    counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in summary.ledger.items())
    is_new = "" if summary.labelled_now else ", none of them by this flow run"
    return f"{counts}; {counted(summary.num_annotations, 'mask')}{is_new}"


def _event(name: str, run_id: str, found: list[str]) -> dict[str, Any]:
    resource = {"prefect.resource.id": f"xsam-label.run.{run_id}", "prefect.resource.name": run_id}
    return {"event": name, "resource": resource, "payload": {"run_id": run_id, "found": found}}


def _had_nothing_to_ask(run: PlannedRun, summary: RunSummary) -> bool:
    return bool(run.nothing_new) and not summary.labelled_now


def artifacts(run: PlannedRun, summary: RunSummary, report: str | None) -> Iterator[Artifact]:
    """Yield what shows a run's counts and problems, where its report is, and an event of what has changed.

    Of a run that had nothing to ask, only that is shown: the counts would be another night's.
    """
    if changes := summary.facts.get("changes"):
        yield "changes", "event", _event(_CHANGED, summary.run_id, list(changes))
    text = ended_text(run, summary)
    shown = {"key": artifact_key(summary.output, "summary")}
    if _had_nothing_to_ask(run, summary):
        yield (
            "summary",
            "markdown",
            {**shown, "markdown": f"# {text.capitalize()}\n\nOutput: `{summary.output}`", "description": text},
        )
        return
    rows = [{"what": f"images: {name}", "number": number} for name, number in summary.ledger.items()]
    rows += [{"what": f"quarantined: {reason}", "number": number} for reason, number in summary.reason_counts.items()]
    rows.append({"what": "masks", "number": summary.num_annotations})
    what = f"Images and masks of {summary.run_id}"
    yield "counts", "table", {"table": rows, "key": artifact_key(summary.output, "counts"), "description": what}
    ended = "Complete" if summary.ok else "Incomplete"
    # No link artifact: no browser follows a link to a file or into a bucket from a page of Prefect's.
    told = [f"Report: `{report}`. To look at it: `xsam-label report {shlex.quote(summary.output)}`"] if report else []
    lines = [
        f"# {ended}: {summary.run_id}",
        f"Output: `{summary.output}`",
        f"Images: {text}.",
        f"{summary.committed} of {summary.shards} shards committed, {summary.labelled_now} of them by this flow run, "
        f"in {summary.elapsed_s:.1f} s.",
        *told,
        *(f"* {problem.splitlines()[0]}" for problem in [*summary.failures, *summary.warnings][:50]),
    ]
    yield "summary", "markdown", {**shown, "markdown": "\n\n".join(lines), "description": f"{ended}: {text}"}
