"""The command `retry`: configs of runs that label quarantined images again, or resume such a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flows.config import ConfigError, RunConfig, check_reasons, merge, parse_config
from flows.run.existing_runs import existing_plans
from flows.run.planning import left_to_label
from flows.run.run_names import next_retry
from flows.run.updates import is_labeled, operational
from pipelines.planning.fingerprint import RELABEL
from pipelines.planning.plan import Plan, check_no_plan_lost, plan_documents, read_plan, retries_by_run
from pipelines.query.files import query_errors
from pipelines.storage.store import Store, open_store
from pipelines.table.file_checks import check_runs
from pipelines.table.quarantined import quarantined_images


def runs_to_retry(
    output: str, run_id: str | None, reasons: Sequence[str], overrides: Mapping[str, Any]
) -> Iterator[RunConfig]:
    """Yield the configs of all runs that a retry needs, one by one, since each depends on how the previous one ended.

    First come retries with broken shards, complete or not, then those of retry_configs, which read all rows.

    Raises:
        ConfigError: a reason is none, and as for broken_retries and retry_configs.
    """
    try:
        check_reasons("--reason", reasons)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    check_no_plan_lost(open_store(output))
    yield from broken_retries(output, run_id, overrides)
    yield from retry_configs(output, run_id, reasons, overrides)


def broken_retries(output: str, run_id: str | None, overrides: Mapping[str, Any]) -> list[RunConfig]:
    """Return the configs that repair retries with broken shards, each as it was planned.

    Args:
        output, run_id: as for retry_configs.
        overrides: as for retry_configs, but only settings that may change when a run is resumed are applied; with
            output.check, files are read, too.

    Raises:
        ConfigError: the values cannot be used.
    """
    check = bool(overrides.get("output", {}).get("check"))
    store, found = open_store(output), list[RunConfig]()
    retried = retries_by_run(store, by_name=True)
    for held in retried if run_id is None else [run_id]:
        for name in next_retry(store, held, retried.get(held, []))[1]:
            plan = read_plan(store, name)
            if plan is not None and left_to_label(store, plan, check=check).broken:
                again = {"output": {"uri": output, "run_id": name}}
                values = merge(merge(dict(plan.facts["config"]), operational(overrides)), again)
                found.append(parse_config(values, origin=f"the config that run {name} was planned with"))
    return found


def retry_configs(
    output: str, run_id: str | None, reasons: Sequence[str], overrides: Mapping[str, Any]
) -> list[RunConfig]:
    """Return the configs of the next retries, one for each run with images quarantined for one of the reasons.

    Args:
        output: the output.
        run_id: the run to retry; by default every run of the output.
        reasons: reasons of quarantine to retry; empty for all.
        overrides: plain values applied to the config that a run was planned with: replicas, limits, another model.

    Raises:
        PlanError: there is no such run.
        ConfigError: the run is a retry itself, or the values cannot be used.
        StorageError: the output cannot be read, or is damaged.
    """
    store, plans = existing_plans(output, run_id, by_name=True)
    if run_id is not None and plans[0].retry_of is not None:
        raise ConfigError(f"run {run_id} is a retry: name the run that it belongs to, {plans[0].retry_of}")
    if run_id is not None and plans[0].is_import:
        raise ConfigError(f"run {run_id} holds corrections, which no model labels: name a run that was labeled")
    check_runs(store, plan_documents(store))
    labeled = (plan for plan in plans if plan.retry_of is None and not plan.is_import)
    found = (_retry_config(store, output, plan, reasons, overrides) for plan in labeled)
    return [config for config in found if config is not None]


def _retry_config(
    store: Store, output: str, plan: Plan, reasons: Sequence[str], overrides: Mapping[str, Any]
) -> RunConfig | None:
    name, is_new = _next_retry(store, plan.run_id)
    again = {
        "output": {"uri": output, "run_id": name},
        "retry": {"run_id": plan.run_id, "reasons": list(reasons)},
        "incremental": False,
    }
    # Of a relabel its images, which the retry knows by their rows.
    planned = {name: value for name, value in plan.facts["config"].items() if name != RELABEL}
    values = merge(planned, overrides)
    config = parse_config(merge(values, again), origin=f"the config that run {plan.run_id} was planned with")
    if is_new:
        with query_errors(store):
            if not quarantined_images(store, plan.run_id, reasons):
                return None
    return config


def _next_retry(store: Store, run_id: str) -> tuple[str, bool]:
    """Return the name of the last retry if that is incomplete, else of a new one, and whether it is new."""
    name, held = next_retry(store, run_id, retries_by_run(store, by_name=True).get(run_id, []))
    if held:
        last = read_plan(store, held[-1])
        if last is not None and not is_labeled(store, last):
            return last.run_id, False
    return name, True
