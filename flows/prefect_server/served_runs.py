"""Tell on the terminal of `serve` what becomes of its runs: when each begins, how it ends, and why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort

from pipelines.redaction import redacted

_TOLD = ["RUNNING", "COMPLETED", "FAILED", "CRASHED", "CANCELLED"]
# Runs of a deployment that are looked at, the latest first: far more than can begin between two looks.
_LATEST = 50
_END_S = 5.0


class ServedRuns:
    """Follows the flow runs of a deployment from now on, in a thread of its own; a server that is away is asked again.

    Args:
        deployment_id: whose runs.
        say: called with each line.
        every_s: seconds between two looks.
    """

    def __init__(self, deployment_id: UUID, say: Callable[[str], object], every_s: float) -> None:
        self._say, self._every_s = say, every_s
        self._deployment = DeploymentFilter.model_validate({"id": {"any_": [deployment_id]}})
        self._told: dict[UUID, str] = {}
        self._since = datetime.now(UTC)
        self._is_silent = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-runs", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Look once more, and tell no more."""
        self._is_over.set()
        self._thread.join(_END_S)

    def _run(self) -> None:
        is_over = False
        while True:
            try:
                with get_client(sync_client=True) as client:
                    self._look(client)
            except Exception as error:  # noqa: BLE001 - whatever a server or what stands before it answers
                self._tell_problem(error)
            if is_over:
                return
            is_over = self._is_over.wait(self._every_s)

    def _look(self, client: SyncPrefectClient) -> None:
        found = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": _TOLD}}}),
            deployment_filter=self._deployment,
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_LATEST,
        )
        for run in reversed(found):
            assert run.state is not None, "runs are chosen by their states"
            is_known = self._told.get(run.id) == run.state.name
            self._told[run.id] = run.state.name or ""
            if not is_known and run.state.timestamp > self._since:  # what was before is not told
                self._say(_line(run, run.state))
        self._is_silent = False

    def _tell_problem(self, error: Exception) -> None:
        """Say once that nothing can be told, until something can."""
        if self._is_silent:
            return
        self._is_silent = True
        problem = redacted(f"{type(error).__name__}: {error}").partition("\n")[0]
        with contextlib.suppress(OSError):  # a terminal that has gone
            self._say(f"the server does not tell of runs ({problem}); they go on, and it is asked again")


def _line(run: FlowRun, state: State[Any]) -> str:
    """Return what has become of a run, with the time and the reason."""
    at = state.timestamp.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if state.is_running():
        return f"{at} run started"
    took = f" after {run.total_run_time.total_seconds():.0f} s" if run.total_run_time else ""
    return f"{at} run {(state.name or '').lower()}{took}: {redacted(state.message or '')}".rstrip(": ")
