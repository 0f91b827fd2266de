"""Incremental runs: which runs bring an output up to date (unfinished ones first, then one for everything new)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from flows.config import RunConfig, merge, parse_config
from flows.run.run_names import unlisted_updates
from flows.run.summary import read_run_summary
from pipelines.errors import DamagedError, PlanError, UserError, some_of
from pipelines.history.history import DamagedHistoryError, History, gather, newest_history
from pipelines.layout import plan_name
from pipelines.planning.category_ids import CategoryIds
from pipelines.planning.coverage import Coverage, CoveringRun, UpdateCounts
from pipelines.planning.draft import UNLISTED
from pipelines.planning.fingerprint import model_part, source_part
from pipelines.planning.plan import NONE_KNOWN, Documents, Plan, plan_documents, plan_of
from pipelines.redaction import counted
from pipelines.storage.store import Store
from pipelines.table.commits import committed_shards
from pipelines.table.verify import TableSize, table_size, table_sizes

# Settings that do not change a row and may differ when a run is resumed, and those that a machine needs to reach its
# storage.
_OPERATIONAL = ("pool", "waves", "limits", "canary", "report")
_OPERATIONAL_PARTS = {
    "output": ("storage_options", "request_timeout_s", "single_driver", "check"),
    "source": ("storage_options", "request_timeout_s"),
    "model": ("path",),
}


# An update reads some ten objects for each run before it that no history holds.
GATHERED_AFTER = 10


def held_runs(store: Store, known: Documents = NONE_KNOWN) -> list[Plan]:
    """Return the plans of all runs of an output except retries and imports, in the order of planning.

    Incremental runs that a listing does not show yet are found by name. Plans that are ``known`` are not read.

    Raises:
        PlanError: a plan was written by another version.
    """
    return runs_before_update(store, known)[0]


def runs_before_update(store: Store, known: Documents = NONE_KNOWN) -> tuple[list[Plan], str]:
    """Return the plans as held_runs does, and the name of the incremental run that follows exactly these."""
    documents = plan_documents(store, by_name=True, known=known)
    listed = [plan_of(store, document) for document in documents.values()]
    others, name = unlisted_updates(store, [plan.run_id for plan in listed])
    # A stable sort: plans of earlier versions, which have no number, keep the order of the listing.
    plans = sorted((*listed, *others), key=lambda plan: plan.sequence)
    return [plan for plan in plans if plan.lists_source], name


def is_labeled(store: Store, plan: Plan) -> bool:
    """Return whether every shard of a run is committed."""
    return len(committed_shards(store, plan.run_id)) >= plan.num_shards


def is_finished(store: Store, plan: Plan, size: TableSize | None = None) -> bool:
    """Return whether a run was verified as complete, and its objects are still listed as they were then.

    Args:
        store: the output.
        plan: the run's.
        size: of its objects as they are listed now, if that is known.
    """
    told = read_run_summary(store, plan.run_id)
    return told is not None and told.is_current(plan, size or table_size(store, plan.run_id))


def unfinished_runs(store: Store, *, check: bool = False) -> list[Plan]:
    """Return the plans of an output's runs, except retries, that are not finished, in the order of planning.

    Args:
        store: the output.
        check: whether to return the finished ones as well, whose files are to be read.

    Raises:
        DamagedError: a plan is damaged or lost.
    """
    if check:
        return held_runs(store)
    history = newest_history(store)
    finished = history.names_sha256 if history else {}
    if not (held := held_runs(store, gathered_documents(history))):
        return []
    listed = store.find("_runs")
    for name in map(plan_name, gathered_documents(history)):
        # Nothing else would miss it; a listing that lags does not show it yet.
        if name not in listed and not store.exists(name):
            raise DamagedError(f"{store.uri}/{name}: missing, although its run has ended; restore it from a copy")
    sizes = table_sizes(store, listed)

    def is_done(plan: Plan) -> bool:
        size = sizes[plan.run_id]
        return finished.get(plan.run_id) == size.names_sha256 or is_finished(store, plan, size)

    return [plan for plan in held if not is_done(plan)]


def configs_to_run(config: RunConfig, store: Store) -> list[RunConfig]:
    """Return the configs of the runs that a config asks for, in the order in which to run them.

    A config that is not incremental, or names its run, asks for that run only. Otherwise unfinished runs come first,
    each as it was planned, and then the incremental run.
    """
    if not config.incremental or config.output.run_id is not None:
        return [config]
    unfinished = unfinished_runs(store, check=config.output.check)
    return [*(as_planned(plan, config) for plan in unfinished), config]


def operational(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of a config's plain values that may differ when a run is resumed.

    A part that is not a table contributes nothing: it is the short form of a source, or an error that parse_config
    reports by name.
    """
    found: dict[str, Any] = {name: values[name] for name in _OPERATIONAL if name in values}
    values = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    found["label"] = {name: value for name, value in values.get("label", {}).items() if name != "decode"}
    for part, names in _OPERATIONAL_PARTS.items():
        found[part] = {name: values[part][name] for name in names if name in values.get(part, {})}
    return found


def as_planned(plan: Plan, config: RunConfig) -> RunConfig:
    """Return the config that resumes a planned run: what it asks as planned, how it runs as configured now.

    Raises:
        ConfigError: the run was planned by a newer version.
    """
    now = config.model_dump()
    again = {**operational(now), "output": {**now["output"], "run_id": plan.run_id}, "incremental": True}
    values = merge(dict(plan.facts["config"]), again)
    values |= {name: now[name] for name in _OPERATIONAL}  # merge would keep a planned budget where now there is none
    return parse_config(values, origin=f"the config that run {plan.run_id} was planned with")


def check_same_collection(
    config: RunConfig, store: Store, fingerprint: Mapping[str, Any], held: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuse to plan a run whose source differs from that of the output's runs: equal ids would be taken for one image.

    A run planned with source.same_collection vouches for all runs before it, so those are not compared.

    Args:
        config, fingerprint: those of the run to plan.
        store: the output.
        held: fingerprint and facts of the output's runs, by run id in the order of planning.

    Raises:
        PlanError: the sources differ; the message names both.
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


def gathered_documents(history: History | None) -> Documents:
    """Return the plans that a history holds."""
    return NONE_KNOWN if history is None else history.documents


def gather_history(store: Store, plan: Plan) -> list[str]:
    """Gather the finished runs before an incremental run, once there are several that no history holds.

    Returns:
        A warning if that failed, which does no harm.
    """
    try:
        try:
            _gather(store, plan, newest_history(store))
        except DamagedHistoryError:  # which one that is made from the plans alone replaces
            _gather(store, plan, None)
    except (UserError, OSError) as error:  # such as no room for temporary files
        return [f"what earlier runs have planned could not be gathered, which does no harm: {error}"]
    return []


def _gather(store: Store, plan: Plan, history: History | None) -> None:
    if plan.sequence - (history.sequence if history else 0) <= GATHERED_AFTER:
        return
    held = gathered_documents(history)
    documents = plan_documents(store, by_name=True, known=held)
    before = [one for one in documents.values() if one.get("sequence", 0) < plan.sequence]
    others = (plan_of(store, one) for one in before if one["run_id"] not in held)
    sizes = table_sizes(store)

    def is_settled(earlier: Plan) -> bool:
        # No update goes on with a retry or an import.
        return not earlier.lists_source or is_finished(store, earlier, sizes[earlier.run_id])

    if settled := list(itertools.takewhile(is_settled, others)):
        names_sha256 = {one.run_id: sizes[one.run_id].names_sha256 for one in settled if one.lists_source}
        gather(store, history, [documents[one.run_id] for one in settled], names_sha256)


def update_coverage(
    config: RunConfig,
    store: Store,
    fingerprint: Mapping[str, Any],
    runs: list[Plan],
    history: History | None = None,
) -> Coverage:
    """Return the coverage of earlier runs, which reduces a listing to what an incremental run has left to ask.

    Args:
        config: of the incremental run.
        store: the output.
        fingerprint: of the run.
        runs: the earlier runs.
        history: holds some of them, which are finished.

    Raises:
        PlanError: one of the runs is unfinished, because another driver is working on it.
    """
    known = gathered_documents(history)
    if unfinished := [plan.run_id for plan in runs if plan.run_id not in known and not is_labeled(store, plan)]:
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
        gathered=history,
    )


def noted_unlisted(store: Store, runs: Sequence[Plan]) -> pa.Table:
    """Return the ids of unlisted images as the last of the runs that noted it has them; see Plan.unlisted_ids."""
    noted = next((plan for plan in reversed(runs) if plan.notes_listing), None)
    return UNLISTED.empty_table() if noted is None else noted.unlisted_ids(store)


def asks_otherwise(config: RunConfig, run: Plan) -> bool:
    """Return whether a config asks other prompts of every image than a run does, in whatever order.

    The latest run tells what is asked now, so that ``--drop-removed`` leaves out the rest.
    """
    noted = run.facts.get("prompts")
    return noted is not None and {p["prompt_id"] for p in noted} != {p.prompt_id for p in config.common_prompts()}


def notes_on_earlier(config: RunConfig, documents: Mapping[str, Mapping[str, Any]], ids: CategoryIds) -> list[str]:
    """Return what to tell of earlier runs' prompts: those that are not asked any more, and numbers that clash.

    Args:
        config: the run to plan.
        documents: facts of the output's runs, by run id in the order of planning.
        ids: the numbers of names, those of the earlier runs included.
    """
    asked = {prompt.prompt_id for prompt in config.common_prompts()}
    last = {p["prompt_id"]: run for run, one in documents.items() for p in one.get("facts", {}).get("prompts", ())}
    notes = []
    if removed := [prompt_id for prompt_id in last if prompt_id not in asked]:
        runs = {last[prompt_id] for prompt_id in removed}
        by = f"last by run {runs.pop()}" if len(runs) == 1 else f"last by {len(runs):,} runs: see the view prompts"
        told = f"{some_of(removed)} ({by})"
        notes.append(
            f"{counted(len(removed), 'prompt of earlier runs is', 'prompts of earlier runs are')} not asked any "
            f"more: {told}. Their answers stay "
            "current; --drop-removed of export, query and report leaves out what the latest run does not ask"
        )
    if ids.clashes:
        number, names = next(iter(ids.clashes.items()))
        notes.append(
            f"{counted(len(ids.clashes), 'category id stands', 'category ids stand')} for several names in "
            f"earlier runs, e.g. {number} for "
            f"{some_of(dict.fromkeys(names))}: go by category_name. From this run on, a name has one number"
        )
    return notes


def update_text(update: UpdateCounts) -> str:
    """Describe in one line what an incremental run found in the listing."""
    added = f" ({counted(len(update.added_prompts), 'prompt')})" if update.added_prompts else ""
    return (
        f"{counted(update.new, 'new image')}, {update.changed:,} changed, {update.extended:,} asked something "
        f"new{added}, "
        f"{update.covered:,} with nothing left to ask, {update.gone:,} of earlier runs not listed any more"
    )


def covered_text(update: UpdateCounts) -> str:
    """Say that all of the listing has been asked all that an incremental run asks."""
    is_one = update.covered == 1
    return "the one listed image is covered" if is_one else f"all {update.covered:,} listed images are covered"


def nothing_new(update: UpdateCounts, *, result_of: str = "", is_asked_otherwise: bool = False) -> str:
    """Say that an incremental run has nothing to ask, and whose result is shown, or what the run is for.

    Args:
        update: what it found in the listing.
        result_of: the last run, whose result is shown instead; empty if a run without images is planned.
        is_asked_otherwise: whether that run asks other prompts than the last.
    """
    covered = covered_text(update)
    if result_of:
        return f"{covered}; the result below is that of run {result_of}"
    noted = ["that what is asked has changed"] if is_asked_otherwise else []
    noted += [f"which images are not listed any more ({update.gone:,})"] if update.gone else []
    # Images that have come back are noted as well, and not counted.
    noted = noted or ["that images are listed again"]
    return f"{covered}; this run labels nothing and only notes {' and '.join(noted)}"
