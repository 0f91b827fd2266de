"""From a config to a frozen plan and an opened runner: checks and lists first, writes last. Labels nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from actors.config import TINY_MODEL, model_folder
from actors.labeler import RunLabelerFactory
from actors.pool import ShardRunner, open_runner
from flows.config import ConfigError, RunConfig
from flows.summary import rejected_row, versions
from pipelines.fingerprint import check_fingerprint, content_hash, fingerprint_digest
from pipelines.label import LabelJob
from pipelines.manifest import (
    DRIVER_ID,
    Plan,
    plan_shards,
    read_plan,
    retries_by_run,
    write_plan,
)
from pipelines.prompt_table import PromptTable, join_prompts, read_prompt_table, reject
from pipelines.retry import quarantined_images
from pipelines.sources import SourceError, list_images
from pipelines.storage import Store, open_store, probe_create_only
from pipelines.table import committed_shards
from pipelines.types import ImageRef, RejectedPrompt, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A collection cut into shards before anything is written.

    Attributes:
        shards: all shards in order.
        rejected: prompts of single images that were refused before any image was read.
    """

    shards: list[Shard]
    rejected: tuple[RejectedPrompt, ...]

    @property
    def images(self) -> Iterator[ImageRef]:
        """All images, in order."""
        return (ref for shard in self.shards for ref in shard.images)


def open_output(config: RunConfig) -> Store:
    """Open the run's output."""
    return open_store(config.output.uri, config.output.storage_options)


def list_collection(config: RunConfig) -> Listing:
    """List the source, attach the prompts of single images and cut the shards. Nothing is written.

    Of a retry, the quarantined images of the earlier run are listed, with the prompts that they had.

    Raises:
        SourceError, PromptTableError: no images, an unreadable source, an unusable table.
        PlanError: two images have one id.
    """
    if config.retry is not None:
        images = quarantined_images(open_output(config), config.retry.run_id, config.retry.reasons)
        if not images:
            raise SourceError(f"run {config.retry.run_id} has no quarantined images to label again")
        return Listing(shards=plan_shards(images, config.plan), rejected=())
    refs: Iterable[ImageRef] = list_images(
        config.source.uri,
        storage_options=config.source.storage_options,
        image_id_column=config.source.image_id_column,
        uri_column=config.source.uri_column,
    )
    rejected: tuple[RejectedPrompt, ...] = ()
    if config.prompts:
        taken = {prompt.prompt_id for prompt in config.common_prompts()}
        table: PromptTable = read_prompt_table(config.prompts, config.source.storage_options, taken=taken)
        joined = join_prompts(refs, table)
        refs = list(joined)
        rejected = (*table.rejected, *joined.rejected)
    return Listing(shards=plan_shards(refs, config.plan), rejected=rejected)


def run_fingerprint(config: RunConfig) -> dict[str, Any]:
    """Return the run's fingerprint; reads the model folder and the prompt table to hash them.

    Raises:
        ConfigError: there is no model at the given path.
        StorageError: the prompt table cannot be read.
    """
    folder = model_folder(config.model.path)
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise ConfigError(f"model {config.model.path!r} {what}; give a folder that save_pretrained wrote")
    prompts = config.prompts
    return config.fingerprint(
        model_sha256=content_hash(str(folder)),
        prompts_sha256=content_hash(prompts, config.source.storage_options) if prompts else None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A run that can be planned or resumed, before anything is written.

    Attributes:
        run_id, fingerprint: which run.
        held: the plan that the output holds already; None for a new run.
        listing: what a new run would label; None where a plan is held.
    """

    run_id: str
    fingerprint: Mapping[str, Any]
    held: Plan | None = None
    listing: Listing | None = None


def draft_run(config: RunConfig) -> Draft:
    """Check everything that can be checked without replicas, and list the collection of a new run; writes nothing.

    Raises:
        PlanError: the output holds a run with another fingerprint, or two images have one id.
        ConfigError, SourceError, PromptTableError, StorageError: see list_collection, run_fingerprint, check_model.
    """
    store, fingerprint = open_output(config), run_fingerprint(config)
    run_id = choose_run_id(config, store, fingerprint)
    held = read_plan(store, run_id)
    if held is not None:
        check_fingerprint(run_id, held.fingerprint, fingerprint)
        return Draft(run_id=run_id, fingerprint=fingerprint, held=held)
    return Draft(run_id=run_id, fingerprint=fingerprint, listing=check_model(config, list_collection(config)))


def check_model(config: RunConfig, listing: Listing) -> Listing:
    """Check that the model can be loaded and takes what is asked, without loading it.

    Returns:
        The listing, without sentences of single images that the model does not take.

    Raises:
        ConfigError: its weights are missing or cut short, there are too many categories, a sentence is too long, or it
            has no processor.
    """
    from actors import predictor

    try:
        sentences = (prompt for ref in listing.images for prompt in ref.prompts if prompt.region is None)
        reasons = predictor.check_model(config.model, config.common_prompts(), sentences)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model {config.model.path!r} cannot be used for this run: {error}") from error
    return _without(listing, reasons) if reasons else listing


def _without(listing: Listing, reasons: Mapping[int, str]) -> Listing:
    """Return a listing without the prompts of these rows, each reported with its reason."""
    rejected = [
        reject(prompt, ref.image_id, reasons[prompt.source_row])
        for ref in listing.images
        for prompt in ref.prompts
        if prompt.source_row in reasons
    ]
    shards = []
    for shard in listing.shards:
        kept = [tuple(prompt for prompt in ref.prompts if prompt.source_row not in reasons) for ref in shard.images]
        images = tuple(replace(ref, prompts=own) for ref, own in zip(shard.images, kept, strict=True))
        shards.append(replace(shard, images=images))
    return Listing(shards=shards, rejected=(*listing.rejected, *rejected))


def freeze_plan(config: RunConfig, draft: Draft) -> Plan:
    """Return the run's frozen plan: the one that the output holds, or the draft, written now.

    Raises:
        StorageError: the output cannot be written, or does not support create-only puts; nothing was written.
        PlanError: another driver has just planned the run with another fingerprint.
    """
    if draft.listing is None:
        assert draft.held is not None, "a draft holds a plan or a listing"
        return draft.held
    store = open_output(config)
    if not config.output.single_driver:
        probe_create_only(store)
    plan = write_plan(
        store,
        draft.run_id,
        draft.listing.shards,
        fingerprint=draft.fingerprint,
        facts=_plan_facts(config, draft.listing.rejected),
        driver_id=DRIVER_ID,
    )
    check_fingerprint(draft.run_id, plan.fingerprint, draft.fingerprint)
    return plan


@contextmanager
def planned_run(
    config: RunConfig, before_writing: Callable[[], None] = lambda: None
) -> Iterator[tuple[Plan, ShardRunner | None]]:
    """Plan or resume a run, and hold its runner open; the plan is written last, once nothing can be refused any more.

    Args:
        config: the run.
        before_writing: a last check, made just before the plan is written; what it raises keeps it from being written.

    Yields:
        The plan, and the runner, which is None if every shard is committed. Replicas start when it is first asked.

    Raises:
        ReplicaStartError: the cluster has no room for the replicas.
        Otherwise as draft_run and freeze_plan do; nothing was written in any of these cases.
    """
    draft = draft_run(config)
    with ExitStack() as stack:
        committed = len(committed_shards(open_output(config), draft.run_id))
        finished = draft.held is not None and committed >= draft.held.num_shards
        runner = None if finished else stack.enter_context(open_run_runner(config, draft.run_id))
        before_writing()
        plan = freeze_plan(config, draft)
        del draft  # the listing of a large collection is not kept for the whole run
        yield plan, runner


def choose_run_id(config: RunConfig, store: Store, fingerprint: Mapping[str, Any]) -> str:
    """Return the run id given, else that of the one run the output holds, else one named after the fingerprint.

    Retries are not counted.

    Raises:
        ConfigError: the output holds several runs and none is named.
    """
    if config.output.run_id:
        return config.output.run_id
    held = list(retries_by_run(store))
    if len(held) > 1:
        raise ConfigError(f"{store.uri} holds several runs ({', '.join(held)}): say which one with a run id")
    return held[0] if held else f"run-{fingerprint_digest(fingerprint)[:12]}"


def _plan_facts(config: RunConfig, rejected: tuple[RejectedPrompt, ...]) -> dict[str, Any]:
    return {
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.to_dict(),
        "prompts": [{"prompt_id": p.prompt_id, "task": p.task, "text": p.text} for p in config.common_prompts()],
        "versions": versions(),
        "rejected_prompts": [rejected_row(r) for r in rejected],
    }


def open_run_runner(config: RunConfig, run_id: str) -> ShardRunner:
    """Return the runner for this run, to be entered with ``with``; its replicas start when the first shard is asked."""
    job = LabelJob(
        run_id=run_id,
        prompts=config.common_prompts(),
        config=config.label,
        source_options=config.source.storage_options,
        allow_http=config.source.allow_http,
    )
    # Replicas may have another working directory, and another place for packages.
    is_packaged = config.model.path == TINY_MODEL
    store = open_output(config)
    factory = RunLabelerFactory(
        predictor=config.model if is_packaged else replace(config.model, path=str(model_folder(config.model.path))),
        job=job,
        output_uri=store.root if store.is_local else store.uri,
        output_options=config.output.storage_options,
    )
    return open_runner(factory, config.pool)
