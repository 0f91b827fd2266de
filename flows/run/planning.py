"""Plan a run: from a config to a frozen plan and an open runner. Everything is checked and listed before any write."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa

from actors.pool.open import open_runner
from actors.pool.runner import ShardRunner
from actors.predictor import model_check
from actors.predictor.config import INCLUDED_MODELS, model_folder
from actors.predictor.labeler import RunLabelerFactory
from flows.config import ConfigError, RunConfig
from flows.run.asked.exemplars import with_exemplars
from flows.run.asked.own_prompts import OwnPrompts, read_own_prompts, unasked_rows
from flows.run.run_names import check_new_name, first_run, relabels, runs_before_retry
from flows.run.summary import read_run_summary, rejected_row, versions
from flows.run.updates import (
    asks_otherwise,
    check_same_collection,
    gathered_documents,
    is_finished,
    noted_unlisted,
    notes_on_earlier,
    nothing_new,
    runs_before_update,
    update_coverage,
)
from pipelines.errors import DamagedError, PlanError
from pipelines.history.history import DamagedHistoryError, History, newest_history
from pipelines.image_formats import LeftOut
from pipelines.labeling.shard import LabelJob
from pipelines.labeling.tiles.asking import Tiling
from pipelines.layout import plan_name, shard_name
from pipelines.planning.category_ids import CategoryIds, has_name
from pipelines.planning.coverage import Coverage, UpdateCounts
from pipelines.planning.draft import PlanDraft, draft_plan
from pipelines.planning.erasures import Forgotten, check_no_erasure, read_forgotten
from pipelines.planning.exemplars.config import selections
from pipelines.planning.exemplars.images import exemplar_file
from pipelines.planning.exemplars.selection import Selection
from pipelines.planning.fingerprint import check_fingerprint
from pipelines.planning.plan import (
    CANARY,
    DRIVER_ID,
    Documents,
    Plan,
    check_no_plan_lost,
    plan_documents,
    read_plan,
    retries_by_run,
    write_plan,
)
from pipelines.planning.prompt_table import NOT_LISTED, PromptTable, join_prompts
from pipelines.redaction import counted, quoted
from pipelines.sources.image_batches import to_batches
from pipelines.sources.listing import list_batches
from pipelines.sources.uri_lists import AbsentPaths
from pipelines.storage.content_hash import content_hash
from pipelines.storage.store import Store, open_store, probe_create_only
from pipelines.table.commits import committed_shards
from pipelines.table.repairs import Due, due_shards
from pipelines.types import Prompt, RejectedPrompt

OnListed = Callable[[int], None]
OnDue = Callable[[], Callable[[], None]]


def open_output(config: RunConfig) -> Store:
    """Open the run's output."""
    return open_store(config.output.uri, config.output.client_options)


@contextmanager
def list_collection(
    config: RunConfig,
    own: OwnPrompts,
    coverage: Coverage | None = None,
    on_listed: OnListed = lambda _count: None,
    left_out: LeftOut | None = None,
    forgotten: Forgotten | None = None,
) -> Iterator[tuple[PlanDraft, tuple[RejectedPrompt, ...], list[str]]]:
    """List the source, attach the prompts of single images, sort, and cut into shards. Writes nothing to the output.

    Args:
        config: the run.
        own: the prompts of single images.
        coverage: for an incremental run, what earlier runs have asked: only the rest is drafted.
        on_listed: called repeatedly with the number of images listed so far.
        left_out: counts what is found beside the images.
        forgotten: images that are not planned, though they may be listed.

    Yields:
        The drafted plan, all rejected prompts of single images, and what to tell before anything is labeled.

    Raises:
        SourceError: no images, an unreadable source, or exemplars that are to be asked of no image.
        PromptTableError: too many rows of the prompt table are asked of no image.
        PlanError: two images have the same id.
        StorageError: the listing does not fit into the folder for temporary files.
    """
    replicas = 1 if config.pool.runner == "in_process" else config.pool.replicas
    if own.retried is not None:
        with draft_plan(to_batches(own.retried), config.plan, replicas=replicas) as draft:
            yield draft, own.rejected, []
        return
    if config.source.allow_http and (missing := config.source.http.missing_variables()):
        raise ConfigError(
            f"the environment variables {', '.join(missing)} of source.http.secret_headers are not set; set them here "
            "and on every node"
        )
    named = None
    if config.relabel is not None:
        from pipelines.query.named_images import NamedImages  # DuckDB, which no other run needs

        named = NamedImages(open_output(config), config.relabel.where)
    listed = (
        named.batches()
        if named is not None
        else list_batches(config.source.uri, **config.source.listing_options, left_out=left_out)
    )
    absent = AbsentPaths()
    selection = Selection(config.common_prompts(), selections(config.exemplars_frozen))
    marked = selection.marked(absent.checked(_counted(listed, on_listed)))
    joined = join_prompts(marked, own.table or PromptTable(by_image={}))
    left = None if coverage is None else coverage.left
    forgotten, erased = forgotten or Forgotten(), Counter[str]()
    images = forgotten.without(joined, erased)
    canary = config.canary.images
    with draft_plan(images, config.plan, left, left_out=left_out, replicas=replicas, canary=canary) as draft:
        # Rows about images that are not to be labeled again are not at fault.
        unasked = unasked_rows(config, own, joined) if named is None else ()
        notes = [*absent.say(), *selection.check(may_match_none=named is not None), *unasked]
        if named is not None and named.num_corrected:
            what = (
                "the new answers take the place of theirs"
                if config.over_corrections
                else "what they answered stays current; with --over-corrections the new answers take its place"
            )
            notes.append(f"people have corrected {named.num_corrected:,} of these images: {what}")
        if 0 < (shards := draft.num_shards) < replicas:
            advice = ", or lower plan.images_per_shard" if draft.num_images > shards else ""
            notes.append(
                f"{counted(draft.num_images, 'image')} in {counted(shards, 'shard')}, one replica's work each: "
                f"{replicas - shards:,} of {replicas:,} replicas have nothing to do; ask for fewer{advice}"
            )
        if erased.total():
            notes.append(f"{erased.total():,} listed images were forgotten on request, and are not asked again")
        if not config.common_prompts() and (bare := draft.num_images - draft.num_with_own):
            notes.append(
                f"{bare:,} of {draft.num_images:,} images are asked nothing: no row of {config.prompts} names them"
            )
        rejected = [row for row in joined.rejected if named is None or row.reason != NOT_LISTED]
        yield draft, (*own.rejected, *rejected), notes


def _counted(batches: Iterable[pa.RecordBatch], on_listed: OnListed) -> Iterator[pa.RecordBatch]:
    count = 0
    for batch in batches:
        count += batch.num_rows
        on_listed(count)
        yield batch


def run_fingerprint(config: RunConfig, held: Plan | None) -> dict[str, Any]:
    """Return the run's fingerprint; reads the model folder and the prompt table to hash them.

    For an incremental run that is already planned the table's planned hash is used: its prompts are in the plan, and
    the table may have changed since for the next run.

    Raises:
        ConfigError: there is no model at the given path.
        StorageError: the prompt table cannot be read.
    """
    folder = model_folder(config.model.path)
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        included = " or ".join(INCLUDED_MODELS)
        raise ConfigError(
            f"model {quoted(config.model.path)} {what}; give a folder that save_pretrained wrote, or an included "
            f"model: {included}"
        )
    if held is not None and config.incremental:
        prompts = held.fingerprint.get("prompts")
    else:
        prompts = content_hash(config.prompts, config.source.client_options) if config.prompts else None
    found = config.fingerprint(model_sha256=content_hash(str(folder)), prompts_sha256=prompts)
    if held is not None and any(not one.sha256 for one in config.exemplars_frozen):
        found["exemplars"] = held.fingerprint.get("exemplars")  # one was forgotten, and its hash with it
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDraft:
    """A run that can be planned or resumed, before anything is written.

    Attributes:
        run_id, fingerprint: identify the run.
        held: the plan that the output already has; None for a new run.
        plan: what a new run would label; None if there is a plan already.
        rejected: rejected prompts of single images; empty if there is a plan already.
        update: for an incremental run, what was found in the listing; if nothing is left to ask, ``held`` is the last
            run's plan.
        before: sequence numbers by run of the known runs that the new one follows.
        notes: what to tell before anything is labeled.
        nothing_new: of an incremental run that has nothing to ask, why there is a run or a result all the same.
        ids: the numbers of the run's names.
        left_out: what was found beside the images.
        config: the run's, with its exemplars frozen.
        exemplars: the images of these by SHA-256, for a plan that is to be written.
    """

    run_id: str
    fingerprint: Mapping[str, Any]
    config: RunConfig
    held: Plan | None = None
    plan: PlanDraft | None = None
    rejected: tuple[RejectedPrompt, ...] = ()
    update: UpdateCounts | None = None
    before: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    nothing_new: str = ""
    ids: CategoryIds = field(default_factory=CategoryIds)
    left_out: LeftOut = field(default_factory=LeftOut)
    exemplars: Mapping[str, bytes] = field(default_factory=dict)


@contextmanager
def draft_run(config: RunConfig, on_listed: OnListed = lambda _count: None) -> Iterator[RunDraft]:
    """Check everything that can be checked without replicas, and list the collection of a new run; writes nothing.

    Args:
        config: the run.
        on_listed: called repeatedly with the number of images listed so far.

    Yields:
        The draft; its listing is in temporary files that are removed at the end.

    Raises:
        PlanError: the output has a run with another fingerprint, or two images have the same id.
        ConfigError, SourceError, PromptTableError, StorageError: see with_exemplars, run_fingerprint, read_own_prompts,
            check_model, list_collection, check_new_name, check_same_collection, check_no_erasure.
    """
    store, is_unnamed = open_output(config), config.output.run_id is None
    is_update, is_relabel = config.incremental and is_unnamed, config.relabel is not None and is_unnamed
    has_plan = not (is_update or is_relabel)  # whether its name tells the plan that it goes on with
    config, images = with_exemplars(config, store, partial(_held_plan, config, store) if has_plan else lambda: None)
    if is_update:
        history = newest_history(store)
        earlier, name = _earlier_runs(config, store, gathered_documents(history))
        if earlier:
            with ExitStack() as stack:
                try:
                    drafted = _draft_update(config, store, name, earlier, history, on_listed)
                    update = stack.enter_context(drafted)
                except DamagedHistoryError:  # on which nothing depends
                    drafted = _draft_update(config, store, name, earlier, None, on_listed)
                    update = stack.enter_context(drafted)
                yield replace(update, exemplars=images)
            return
    if is_relabel:
        with _draft_relabel(config, store, on_listed) as relabel:
            yield replace(relabel, exemplars=images)
        return
    run_id, held, fingerprint = _find_run(config, store)
    if held is not None:
        check_fingerprint(held.run_id, held.fingerprint, fingerprint, names=_hashed_names(held, config))
        yield _held_draft(config, held)
        return
    retried = config.retry.run_id if config.retry else None
    if config.output.run_id is not None:
        check_new_name(run_id, retried)
    forgotten = read_forgotten(store)
    check_no_erasure(forgotten, store)
    documents = plan_documents(store, by_name=True)
    if retried is None:
        check_same_collection(config, store, fingerprint, documents)
        before = {run: document.get("sequence", 0) for run, document in documents.items()}
    else:
        before = {plan.run_id: plan.sequence for plan in runs_before_retry(store, run_id, retried)}
    # Before the listing, which may take long.
    (own, ids), left_out = _own_and_ids(config, store, documents.values(), forgotten), LeftOut()
    told = [] if retried else notes_on_earlier(config, documents, ids)
    listing = list_collection(config, own, on_listed=on_listed, left_out=left_out, forgotten=forgotten)
    with listing as (plan, rejected, notes):
        draft = RunDraft(
            run_id=run_id, fingerprint=fingerprint, config=config, plan=plan, rejected=rejected, before=before
        )
        yield replace(draft, notes=(*told, *notes), ids=ids, left_out=left_out, exemplars=images)


@contextmanager
def _draft_relabel(config: RunConfig, store: Store, on_listed: OnListed) -> Iterator[RunDraft]:
    """Draft a run that labels images of the output again, or go on with the last one of the same fingerprint.

    What a condition names changes while its run goes on: an unfinished one is finished as it was planned. The same
    once more, of images about which nothing has come since, would come to the same.
    """
    fingerprint = run_fingerprint(config, None)
    name, last = relabels(store, fingerprint)
    if last is not None and (
        not is_finished(store, last) or (config.output.check and left_to_label(store, last, check=True).commits)
    ):
        yield _held_draft(config, last)
        return
    forgotten = read_forgotten(store)
    check_no_erasure(forgotten, store)
    documents = plan_documents(store, by_name=True)
    (own, ids), left_out = _own_and_ids(config, store, documents.values(), forgotten), LeftOut()
    listing = list_collection(config, own, on_listed=on_listed, left_out=left_out, forgotten=forgotten)
    with listing as (plan, rejected, notes):
        if last is not None and last.run_id == list(documents)[-1] and _is_repeated(store, last, plan):
            told = (
                f"run {last.run_id} has just asked the same of the same {counted(plan.num_images, 'image')}, and no "
                "run has come since"
            )
            yield replace(_held_draft(config, last), nothing_new=told)
            return
        yield RunDraft(
            run_id=name,
            fingerprint=fingerprint,
            config=config,
            plan=plan,
            rejected=rejected,
            before={run: document.get("sequence", 0) for run, document in documents.items()},
            notes=tuple(notes),
            ids=ids,
            left_out=left_out,
        )


def _held_draft(config: RunConfig, plan: Plan) -> RunDraft:
    ids = CategoryIds.of_plan(plan.facts)
    return RunDraft(run_id=plan.run_id, fingerprint=plan.fingerprint, config=config, held=plan, ids=ids)


def _is_repeated(store: Store, last: Plan, plan: PlanDraft) -> bool:
    """Return whether a run that is complete has labeled all images of a draft."""
    told = read_run_summary(store, last.run_id)
    is_done = told is not None and not told.ledger["quarantined"]
    return is_done and plan.images_sha256 == last.images_sha256


def _own_and_ids(
    config: RunConfig, store: Store, documents: Iterable[Mapping[str, Any]], forgotten: Forgotten
) -> tuple[OwnPrompts, CategoryIds]:
    """Return a new run's prompts of single images and the numbers of all its names, given the plans before it."""
    ids = CategoryIds.of_runs(documents)
    ids.add(prompt.category_name for prompt in config.common_prompts() if has_name(prompt))
    own = read_own_prompts(config, store).of_others(forgotten).numbered(ids)
    return check_model(config, own), ids


def _held_plan(config: RunConfig, store: Store) -> Plan | None:
    run_id = choose_run_id(config, store)
    return read_plan(store, run_id) if run_id else None


def _find_run(config: RunConfig, store: Store) -> tuple[str, Plan | None, dict[str, Any]]:
    """Return the id of the run to resume or to plan, its plan if there is one, and its fingerprint."""
    run_id = choose_run_id(config, store)
    held = read_plan(store, run_id) if run_id else None
    fingerprint = run_fingerprint(config, held)
    if run_id is None:
        check_no_plan_lost(store)
        # The listing shows no run, but it may lag: look the run up under the name that it would get.
        run_id = first_run(fingerprint)
        held = read_plan(store, run_id)
    return run_id, held, fingerprint


def _earlier_runs(config: RunConfig, store: Store, known: Documents) -> tuple[list[Plan], str]:
    """Return the plans that an incremental run follows, in order, and its name; no plans for an output's first run."""
    check_no_plan_lost(store, known)
    runs, name = runs_before_update(store, known)
    first = first_run(run_fingerprint(config, None))
    if all(plan.run_id != first for plan in runs) and (held := read_plan(store, first)) is not None:
        runs = sorted([held, *runs], key=lambda plan: plan.sequence)  # a run that the listing does not show yet
    return runs, name


@contextmanager
def _draft_update(
    config: RunConfig, store: Store, run_id: str, earlier: list[Plan], history: History | None, on_listed: OnListed
) -> Iterator[RunDraft]:
    """Draft an incremental run: list the collection, and keep only what is left to ask."""
    # It is named by its number, not by its fingerprint, so that of two planned at once only one can hold.
    fingerprint, forgotten = run_fingerprint(config, None), read_forgotten(store)
    check_no_erasure(forgotten, store)
    held = {plan.run_id: {"fingerprint": plan.fingerprint, "facts": plan.facts} for plan in earlier}
    check_same_collection(config, store, fingerprint, held)
    coverage = update_coverage(config, store, fingerprint, earlier, history)
    (own, ids), left_out = _own_and_ids(config, store, held.values(), forgotten), LeftOut()
    told = notes_on_earlier(config, held, ids)
    with list_collection(config, own, coverage, on_listed, left_out, forgotten) as (plan, rejected, notes):
        counts, last = coverage.counts, earlier[-1]
        # A part of the listing, or one of several sources, does not tell what is gone.
        is_whole = config.plan.limit is None and not config.source.same_collection
        unlisted = coverage.unlisted.table() if is_whole else None
        # A run without images, to note what has gone or come back, or is asked now.
        has_note = unlisted is not None and not unlisted.equals(noted_unlisted(store, earlier))
        is_asked_otherwise = asks_otherwise(config, last)
        if plan.num_images or has_note or is_asked_otherwise:
            drafted = replace(plan, unlisted=unlisted)
            draft = RunDraft(
                run_id=run_id, fingerprint=fingerprint, config=config, plan=drafted, rejected=rejected, update=counts
            )
            told_why = "" if plan.num_images else nothing_new(counts, is_asked_otherwise=is_asked_otherwise)
            before = {run: document.get("sequence", 0) for run, document in gathered_documents(history).items()}
            before |= {plan.run_id: plan.sequence for plan in earlier}
            draft = replace(draft, before=before, ids=ids, nothing_new=told_why)
        else:
            draft = RunDraft(run_id=last.run_id, fingerprint=last.fingerprint, config=config, held=last, update=counts)
            told_why = nothing_new(counts, result_of=last.run_id)
            draft = replace(draft, ids=CategoryIds.of_plan(last.facts), nothing_new=told_why)
        yield replace(draft, notes=(*told, *notes), left_out=left_out)


def check_model(config: RunConfig, own: OwnPrompts) -> OwnPrompts:
    """Check, without loading it, that the model can be loaded and accepts the prompts.

    Returns:
        The prompts of single images, without sentences that the model does not accept.

    Raises:
        ConfigError: the weights are missing or truncated, there are too many categories, a sentence is too long, or the
            model has no processor.
    """
    try:
        sentences = (prompt for _, prompt in own if prompt.region is None)
        reasons = model_check.check_model(config.model, config.common_prompts(), sentences, tiles=config.tiles)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {config.model.path!r} cannot be used for this run: {error}") from error
    return own.without(reasons)


def freeze_plan(config: RunConfig, draft: RunDraft) -> Plan:
    """Return the run's frozen plan: the one that the output has, or the draft, which is written now.

    Raises:
        StorageError: the output cannot be written, or does not support create-only puts; nothing was written.
        PlanError: another driver has just planned the run with another fingerprint, other images or other numbers of
            categories.
        DamagedError: the run has commits but its plan is missing; a new plan could assign other images to their shards.
    """
    if draft.plan is None:
        assert draft.held is not None, "a draft holds a plan, written or not"
        return draft.held
    store = open_output(config)
    if committed_shards(store, draft.run_id) and not store.exists(plan_name(draft.run_id)):
        raise DamagedError(
            f"{store.uri}/{plan_name(draft.run_id)}: missing, although there are commits; restore it from a copy, or "
            "give another run id or output to label anew"
        )
    # A single driver, as promised, needs no conditional writes.
    if not config.output.single_driver:
        probe_create_only(store)
    plan = write_plan(
        store,
        draft.run_id,
        replace(draft.plan, exemplars=exemplar_file(draft.exemplars) if draft.exemplars else None),
        fingerprint=draft.fingerprint,
        facts=_plan_facts(config, draft),
        driver_id=DRIVER_ID,
        before=draft.before,
        register=draft.update is None and config.retry is None,
    )
    if plan.facts.get("category_ids") != draft.ids.to_facts()["category_ids"]:
        raise PlanError(
            f"{store.uri}: another driver has just planned run {plan.run_id!r}, and numbers its categories otherwise. "
            "The same command goes on with that run"
        )
    return plan


class PlannedRun(NamedTuple):
    """A run that is ready to begin.

    Attributes:
        plan: its frozen plan.
        runner: labels its shards; None if no shard is due. Replicas start when it gets the first shard.
        update: what was found in the listing, if an incremental run was planned now or has nothing to ask.
        due: the shards to label.
        started: time.monotonic() when its planning began.
        notes: what to tell before they are.
        nothing_new: as in RunDraft.
        part: what part of the run the due shards are, before the number of a wave; empty for all, or the rest.
    """

    plan: Plan
    runner: ShardRunner | None
    update: UpdateCounts | None
    due: Due
    started: float
    notes: tuple[str, ...] = ()
    nothing_new: str = ""
    part: str = ""


_at_hand: ContextVar[PlannedRun | None] = ContextVar("run_at_hand", default=None)


@contextmanager
def at_hand(run: PlannedRun) -> Iterator[None]:
    """Make planned_run return this run within the block, so that the flow reuses what the command line planned."""
    token = _at_hand.set(run)
    try:
        yield
    finally:
        _at_hand.reset(token)


@contextmanager
def planned_run(
    config: RunConfig, on_due: OnDue = lambda: lambda: None, on_listed: OnListed = lambda _count: None
) -> Iterator[PlannedRun]:
    """Plan or resume a run, and keep its runner open; the plan is written last, once everything has been checked.

    Args:
        config: the run.
        on_due: called once shards are known to be due, to begin what takes time beside the start of the replicas;
            returns a last check before the plan is written: if it raises, no plan is written.
        on_listed: as for draft_run.

    Raises:
        ReplicaStartError: the cluster has no room for the replicas.
        Others as for draft_run and freeze_plan. In all these cases nothing was written.
    """
    held = _at_hand.get()
    if held is not None and held.plan.run_id == config.output.run_id:
        yield held
        return
    started = time.monotonic()
    with ExitStack() as stack:
        with draft_run(config, on_listed) as draft:
            config, store = draft.config, open_output(config)
            due = None if draft.held is None else left_to_label(store, draft.held, check=config.output.check)
            is_done = not due.commits if due is not None else draft.plan is not None and not draft.plan.num_images
            runner = None
            if not is_done:
                check = on_due()
                # Before the plan is written: a cluster without room for the replicas leaves no plan behind.
                prompts = draft.ids.numbered(config.common_prompts())
                runner = stack.enter_context(open_run_runner(config, draft.run_id, prompts))
                check()
            plan = freeze_plan(config, draft)
        if due is None:
            due = Due(dict.fromkeys(plan.shard_ids(), 0))
        yield PlannedRun(plan, runner, draft.update, due, started, draft.notes, draft.nothing_new)


def left_to_label(store: Store, plan: Plan, *, check: bool = False) -> Due:
    """Return the shards that a planned run has left to label.

    If the run's summary matches the listing of its objects, the run is complete and nothing more is read. With
    ``check`` every committed file is read instead.
    """
    is_whole = not check and is_finished(store, plan)
    return Due({}) if is_whole else due_shards(store, plan, hashes=check)


def choose_run_id(config: RunConfig, store: Store) -> str | None:
    """Return the configured run id, or else that of the only run in the output, or else None. Retries do not count.

    Raises:
        ConfigError: the output has several runs and none is named.
    """
    if config.output.run_id:
        return config.output.run_id
    held = list(retries_by_run(store, by_name=True))
    if len(held) > 1:
        raise ConfigError(
            f"{store.uri} holds several runs ({', '.join(held)}): say which one with a run id (--run-id), or label "
            "what is new with --incremental"
        )
    return held[0] if held else None


def _hashed_names(held: Plan, config: RunConfig) -> dict[str, tuple[str | None, str | None]]:
    """Return the names of what a fingerprint has hashes of, as planned and now."""
    planned = held.facts.get("config") or {}
    model, prompts = (planned.get("model") or {}).get("path"), planned.get("prompts")
    return {"model": (model, config.model.path), "prompts": (prompts, config.prompts)}


def _plan_facts(config: RunConfig, draft: RunDraft) -> dict[str, Any]:
    return {
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.to_dict(),
        "prompts": [{"prompt_id": p.prompt_id, "task": p.task, "text": p.text} for p in config.common_prompts()],
        "versions": dict(versions()),
        "rejected_prompts": [rejected_row(r) for r in draft.rejected],
        "update": draft.update and asdict(draft.update),
        **draft.ids.to_facts(),
        "left_out": draft.left_out.to_dict(),
        **({CANARY: [shard_name(number) for number in draft.plan.canary]} if draft.plan and draft.plan.canary else {}),
    }


def label_job(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> LabelJob:
    """Return what all shards of a run have in common; arguments as for open_run_runner."""
    return LabelJob(
        run_id=run_id,
        prompts=prompts,
        config=config.label,
        source_options=config.source.client_options,
        allow_http=config.source.allow_http,
        tiling=Tiling(tiles=config.tiles, max_masks=config.model.max_masks_per_image) if config.tiles else None,
    )


def open_run_runner(config: RunConfig, run_id: str, prompts: tuple[Prompt, ...]) -> ShardRunner:
    """Return the runner for a run, a context manager; its replicas start when it gets the first shard.

    Args:
        config: the run's config.
        run_id: the run.
        prompts: those of the config, with their numbers in the output.
    """
    # A relative model path is made absolute, because replicas may have another working directory. An included model
    # keeps its name, because their packages may be installed elsewhere.
    is_packaged = config.model.path in INCLUDED_MODELS
    store = open_output(config)
    factory = RunLabelerFactory(
        predictor=config.model if is_packaged else config.model.replace(path=str(model_folder(config.model.path))),
        job=label_job(config, run_id, prompts),
        output_uri=store.root if store.is_local else store.uri,
        output_options=config.output.client_options,
        shards_in_flight=config.pool.shards_in_flight_per_replica,
    )
    return open_runner(factory, config.pool)
