"""Which runs bring an output up to date: those that are not finished, and one of all that is new."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.config import RunConfig, merge, parse_config
from flows.run.run_names import unlisted_updates
from flows.run.summary import read_run_summary
from pipelines.errors import PlanError
from pipelines.planning.coverage import Coverage, CoveringRun, UpdateCounts
from pipelines.planning.fingerprint import model_part, source_part
from pipelines.planning.plan import Plan, plan_documents, read_plan
from pipelines.storage.store import Store
from pipelines.table.commits import committed_shards
from pipelines.table.verify import table_size

# What may differ between a run and its resumption, and what a machine needs to reach its storage.
_OPERATIONAL = ("pool", "waves", "limits", "report")
_OPERATIONAL_PARTS = {
    "output": ("storage_options", "request_timeout_s", "single_driver", "check"),
    "source": ("storage_options", "request_timeout_s"),
    "model": ("path",),
}


def held_runs(store: Store) -> list[Plan]:
    """Return the plans of all runs of an output that are no retries, in the order of planning.

    Updates that a listing does not show yet are found by their names.

    Raises:
        PlanError: another version wrote one.
    """
    return runs_before_update(store)[0]


def runs_before_update(store: Store) -> tuple[list[Plan], str]:
    """Return the plans as held_runs does, and the name of the update that follows just these."""
    documents = plan_documents(store, by_name=True)
    listed = [plan for run_id in documents if (plan := read_plan(store, run_id)) is not None]
    others, name = unlisted_updates(store, [plan.run_id for plan in listed])
    plans = sorted((*listed, *others), key=lambda plan: plan.sequence)  # as they were listed where it is equal
    return [plan for plan in plans if plan.retry_of is None], name


def is_labeled(store: Store, plan: Plan) -> bool:
    """Say whether every shard of a run is committed."""
    return len(committed_shards(store, plan.run_id)) >= plan.num_shards


def is_finished(store: Store, plan: Plan) -> bool:
    """Say whether a run was verified when it was whole, and the listings of its objects add up as they did then."""
    told = read_run_summary(store, plan.run_id)
    return told is not None and told.is_current(plan, table_size(store, plan.run_id))


def configs_to_run(config: RunConfig, store: Store) -> list[RunConfig]:
    """Return the configs of the runs that a config asks for, in the order in which to run them.

    One that is not incremental, or names its run, is a run as it stands. Otherwise runs that are not finished come
    first, each as it was planned, and then the update.
    """
    if not config.incremental or config.output.run_id is not None:
        return [config]
    unfinished = [plan for plan in held_runs(store) if config.output.check or not is_finished(store, plan)]
    return [*(as_planned(plan, config) for plan in unfinished), config]


def operational(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a config's values may differ between a run and its resumption, as far as it is given.

    A part that is no table has none of it: a source's short form, or what parse_config refuses by name.
    """
    found: dict[str, Any] = {name: values[name] for name in _OPERATIONAL if name in values}
    values = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    found["label"] = {name: value for name, value in values.get("label", {}).items() if name != "decode"}
    for part, names in _OPERATIONAL_PARTS.items():
        found[part] = {name: values[part][name] for name in names if name in values.get(part, {})}
    return found


def as_planned(plan: Plan, config: RunConfig) -> RunConfig:
    """Return the config that goes on with a planned run: all that it asks is as planned, how it runs as configured now.

    Raises:
        ConfigError: a newer version planned it.
    """
    now = config.model_dump()
    again = {**operational(now), "output": {**now["output"], "run_id": plan.run_id}, "incremental": True}
    values = merge(dict(plan.facts["config"]), again)
    values |= {name: now[name] for name in _OPERATIONAL}  # merge leaves what is None now as it was: a budget
    return parse_config(values, origin=f"the config that run {plan.run_id} was planned with")


def check_same_collection(
    config: RunConfig, store: Store, fingerprint: Mapping[str, Any], held: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to plan a run of another source than the output's runs: an id that both have would stand for one image.

    What is said to be the same collection stays so: runs before one that was planned with source.same_collection are
    of its source.

    Args:
        config, fingerprint: of the run to plan.
        store: the output.
        held: fingerprint and facts of its runs, by run id in the order of planning.

    Raises:
        PlanError: naming both sources.
    """
    if config.source.same_collection:
        return
    ours = source_part(fingerprint)
    for run_id, document in reversed(list(held.items())):
        theirs = source_part(document.get("fingerprint", {}))
        if theirs and theirs != ours:
            raise PlanError(_another_source(store, run_id, theirs, ours))
        if document.get("facts", {}).get("config", {}).get("source", {}).get("same_collection"):
            return


def _another_source(store: Store, run_id: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    lines = [f"  {name}: there {theirs.get(name)!r}, now {ours.get(name)!r}" for name in names]
    return (
        f"{store.uri} holds run {run_id!r} of another source:\n"
        + "\n".join(lines)
        + "\nImages of the two that have one image_id would be taken for one image. Choose another output for another "
        "collection; if it is the same one that has moved, or its ids tell all images apart, say so with "
        "--same-collection (source.same_collection = true)."
    )


def update_coverage(config: RunConfig, store: Store, fingerprint: Mapping[str, Any], runs: list[Plan]) -> Coverage:
    """Return what is left for an update to ask, to be given the listing.

    Raises:
        PlanError: one of the runs is not finished: another driver is at work on it.
    """
    if unfinished := [plan.run_id for plan in runs if not is_labeled(store, plan)]:
        raise PlanError(
            f"{store.uri}: run {unfinished[0]} is not finished, so what is left for an update cannot be told yet; wait "
            "for the driver that works on it, or finish it by the same command"
        )
    model = model_part(fingerprint)
    return Coverage(
        store=store,
        prompts=config.common_prompts(),
        runs=[
            CoveringRun(
                plan=plan,
                prompts=as_planned(plan, config).common_prompts(),
                same_model=model_part(plan.fingerprint) == model,
            )
            for plan in runs
        ],
    )


def update_text(update: UpdateCounts) -> str:
    """Return what an update found in the listing, in a line."""
    added = f" ({len(update.added_prompts):,} prompts)" if update.added_prompts else ""
    return (
        f"{update.new:,} new images, {update.changed:,} changed, {update.extended:,} asked something new{added}, "
        f"{update.covered:,} with nothing left to ask, {update.gone:,} of earlier runs not listed any more"
    )
