"""Find the plans in an output: that of a given run, or those of all runs."""

from __future__ import annotations

from collections.abc import Iterable

from flows.config import ConfigError
from pipelines.errors import PlanError
from pipelines.planning.plan import Plan, check_no_plan_lost, plan_documents, planned_runs, read_plan, retries_by_run
from pipelines.storage.store import Store, open_store


def no_run(output: str, run_id: str | None = None, held: Iterable[str] = ()) -> PlanError:
    """Return the error for an output that has no run, or not the one given among those that it has."""
    if names := ", ".join(held):
        return PlanError(f"{output} holds no run {run_id!r}; it holds {names}")
    what = f"run {run_id!r}" if run_id else "run"
    return PlanError(f"{output} holds no {what}: check the spelling, or label something there first")


def existing_plans(output: str, run_id: str | None, *, by_name: bool = False) -> tuple[Store, list[Plan]]:
    """Open an output, and read the plan of one run, or those of all runs in order, retries included.

    All are those of planned_runs.

    Raises:
        PlanError: the output has no run, or not the one given.
        DamagedError: it has commits of a run whose plan is gone.
    """
    store = open_store(output)
    if run_id is not None:
        return store, [existing_run(output, run_id)[1]]
    held = (read_plan(store, run) for run in plan_documents(store, by_name=by_name))
    plans = [plan for plan in held if plan is not None]
    if not plans:
        check_no_plan_lost(store)
        raise no_run(output)
    return store, plans


def existing_run(output: str, run_id: str | None) -> tuple[Store, Plan]:
    """Open an output, and read the plan of one run; without an id, that of the only run that is not a retry.

    Raises:
        PlanError: the output has no run, or not the one given.
        DamagedError: it has commits of a run whose plan is gone.
        ConfigError: it has several runs and none was given.
    """
    store = open_store(output)
    held = planned_runs(store) if run_id else list(retries_by_run(store))
    if run_id is None and len(held) > 1:
        raise ConfigError(f"{output} holds several runs ({', '.join(held)}): say which one with --run-id")
    chosen = run_id or (held[0] if held else None)
    plan = read_plan(store, chosen) if chosen else None
    if plan is None:
        check_no_plan_lost(store)
        raise no_run(output, run_id, held)
    return store, plan
