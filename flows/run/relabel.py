"""The command `relabel`: the config of a run that labels images of an output again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from flows.config import RunConfig, merge, parse_config
from flows.run.existing_runs import existing_plans, no_run
from pipelines.query.select_text import read_condition, without_values

# How the images of a source are reached, which may differ from what was planned.
_ACCESS = ("storage_options", "request_timeout_s", "allow_http", "http")


def relabel_config(output: str, where: str, given: Mapping[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """Return the config of a run that labels images again.

    Args:
        output: the output.
        where: SQL condition on its images.
        given: plain values of a config file; empty for the config that the output's last run was planned with, retries
            and imports not counted.
        overrides: plain values applied to that.

    Raises:
        QueryError: the condition is none.
        PlanError: the output has no run that has labeled a source.
        ConfigError: the values cannot be used.
        StorageError: the output cannot be read.
    """
    read_condition("--where", where)
    _, plans = existing_plans(output, None, by_name=True)
    last = next((plan for plan in reversed(plans) if plan.lists_source), None)
    if last is None:
        raise no_run(output)
    planned = dict(last.facts["config"])
    origin = "the config" if given else f"the config that run {last.run_id} was planned with"
    values = merge(given or planned, overrides)
    # The images are those of the output, wherever the file says that others are.
    source = values["source"] if isinstance(values.get("source"), Mapping) else {}
    access = {name: source[name] for name in _ACCESS if name in source}
    told = {
        "where": where,
        "where_sha256": hashlib.sha256(where.strip().encode()).hexdigest(),
        "condition": without_values(where),
    }
    again = {"source": merge(planned["source"], access), "output": {"uri": output}, "relabel": told}
    again |= {"incremental": False, "retry": None, "plan": {"limit": None}}
    return parse_config(_replaced(values, again), origin=origin)


def _replaced(values: Mapping[str, Any], again: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with others in their place; of tables with further settings only those are replaced."""
    output = values["output"] if isinstance(values.get("output"), Mapping) else {}
    plan = values["plan"] if isinstance(values.get("plan"), Mapping) else {}
    kept = {
        "output": {**output, **again["output"], "run_id": None},
        "plan": {**plan, **again["plan"]},
    }
    return {**values, **again, **kept}
