"""Tell on the terminal of `serve` what becomes of its runs: when each begins, how it ends, and why."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectException

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
        self._told: dict[UUID, str] | None = None
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
            with contextlib.suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
                self._look(client)
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
        states = {run.id: run.state_name or "" for run in found}
        if self._told is not None:  # what was before is not told
            for run in reversed(found):
                if self._told.get(run.id) != states[run.id]:
                    self._say(_line(run))
        self._told = states


def _line(run: FlowRun) -> str:
    """Return what has become of a run, with the time and the reason."""
    state = run.state
    assert state is not None, "runs are chosen by their states"
    at = (state.timestamp or datetime.now(UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if state.is_running():
        return f"{at} run started"
    took = f" after {run.total_run_time.total_seconds():.0f} s" if run.total_run_time else ""
    return f"{at} run {(state.name or '').lower()}{took}: {redacted(state.message or '')}".rstrip(": ")
