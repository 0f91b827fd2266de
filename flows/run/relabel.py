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
    # Exemplars are given anew: what they show now counts, as in any new run.
    planned = {name: value for name, value in last.facts["config"].items() if name != "exemplars_frozen"}
    origin = "the config" if given else f"the config that run {last.run_id} was planned with"
    # That the last run was to replace what people answered does not say that this one is.
    values = merge(given or {**planned, "over_corrections": False}, overrides)
    source, place, plan = (_table(values, name) for name in ("source", "output", "plan"))
    listed = dict(planned["source"])
    if "://" not in listed["uri"]:  # as it was typed, in whatever folder that was
        listed["uri"] = last.fingerprint.get("source", listed["uri"])
    again = {
        **values,
        # The images are those of the output, wherever the file says that others are.
        "source": merge(listed, {name: source[name] for name in _ACCESS if name in source}),
        "output": {**place, "uri": output, "run_id": None},
        "plan": {**plan, "limit": None},
        "incremental": False,
        "retry": None,
        "relabel": {
            "where": where,
            "where_sha256": hashlib.sha256(where.strip().encode()).hexdigest(),
            "condition": without_values(where),
        },
    }
    return parse_config(again, origin=origin)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a table of settings; empty for a short form."""
    return values[name] if isinstance(values.get(name), Mapping) else {}
