"""Behind `retry`: the config of a run that labels an earlier one's quarantined images again, or goes on with that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.config import ConfigError, RunConfig, merge, parse_config
from flows.inspect import held_plans
from flows.run_names import next_retry
from flows.updates import is_labelled
from pipelines.manifest import Plan, read_plan, retries_by_run
from pipelines.retry import quarantined_images
from pipelines.storage import Store


def retry_configs(
    output: str, run_id: str | None, reasons: Sequence[str], overrides: Mapping[str, Any]
) -> list[RunConfig]:
    """Return the configs of the next retries, one for each run with images that are quarantined for such a reason.

    Args:
        output: where the table is.
        run_id: the run to retry; by default every run of the output.
        reasons: of quarantine; any if empty.
        overrides: plain values laid over the config that a run was planned with: replicas, limits, another model.

    Raises:
        PlanError: there is no such run.
        ConfigError: it is a retry itself, or the values cannot be used.
    """
    store, plans = held_plans(output, run_id)
    if run_id is not None and plans[0].retry_of is not None:
        raise ConfigError(f"run {run_id} is a retry: name the run that it belongs to, {plans[0].retry_of}")
    found = (_retry_config(store, output, plan, reasons, overrides) for plan in plans if plan.retry_of is None)
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
    values = merge(dict(plan.facts["config"]), overrides)
    config = parse_config(merge(values, again), origin=f"the config that run {plan.run_id} was planned with")
    if is_new and not quarantined_images(store, plan.run_id, reasons):
        return None
    return config


def _next_retry(store: Store, run_id: str) -> tuple[str, bool]:
    """Return the name of the last retry if it is not complete, else of a new one; and whether it is new."""
    name, held = next_retry(store, run_id, retries_by_run(store).get(run_id, []))
    if held:
        last = read_plan(store, held[-1])
        if last is not None and not is_labelled(store, last):
            return last.run_id, False
    return name, True
