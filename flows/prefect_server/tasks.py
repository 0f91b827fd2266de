"""The tasks of a flow run: what Prefect shows of the steps of a run. None of them knows what its step does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from flows.prefect_server.reports import PrefectReporter, orchestrated

_T = TypeVar("_T")


# No task caches or persists results: whether work is done is decided by the commits alone.
@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE, persist_result=False)
def plan_run(plan: Callable[[], _T]) -> _T:
    """Freeze the plan, or read the frozen one."""
    return plan()


@task(name="verify", task_run_name="verify", cache_policy=NO_CACHE, persist_result=False)
def verify_run(verify: Callable[[], _T]) -> _T:
    """Remove losers, check that every image is accounted for, and write the summary."""
    return verify()


class WaveFailedError(RuntimeError):
    """Shards of a wave were not labeled; raised so that Prefect shows it, and retries the wave if that can help."""

    def __init__(self, problem: str, *, can_retry: bool) -> None:
        super().__init__(problem)
        self.can_retry = can_retry


def _is_wave_failure(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether retrying a wave can help."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, WaveFailedError) and error.can_retry


@task(name="label-wave", cache_policy=NO_CACHE, persist_result=False)
def label_wave(outcome: Callable[[], tuple[str, bool]]) -> None:
    """Wait until the shards of a wave are labeled; a retry has those labeled again that could not be.

    Args:
        outcome: waits, and says what could not be labeled, or nothing, and whether a retry may help.

    Raises:
        WaveFailedError: some could not be labeled.
    """
    problem, can_retry = outcome()
    if problem:
        raise WaveFailedError(problem, can_retry=can_retry)


def watch_wave(
    told: PrefectReporter, label: str, outcome: Callable[[], tuple[str, bool]], retries: int, retry_delay_s: float
) -> None:
    """Show a wave as a task run, with its retries; whatever becomes of that, labeling goes on."""
    shown = label_wave.with_options(
        task_run_name=f"wave {label}",
        retries=retries,
        retry_delay_seconds=retry_delay_s,
        retry_condition_fn=_is_wave_failure,
    )
    try:
        orchestrated(told, partial(shown, outcome), partial(label_wave.fn, outcome))
    except WaveFailedError:
        pass  # the failures are the run's as well
    except Exception as error:  # noqa: BLE001 - Prefect's, since the wave itself raises nothing else
        told.note(error)
