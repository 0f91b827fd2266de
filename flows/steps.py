"""The steps of a run as plain functions: plan, cut into waves, label a wave, finish. The Prefect flow calls these."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.labeler import RunLabelerFactory
from actors.pool import ShardFailure, ShardRunner, open_runner
from flows.config import ConfigError, RunConfig
from flows.observer import RunObserver
from flows.summary import RunSummary, rejected_row, summarise, versions
from pipelines.fingerprint import check_fingerprint, content_hash, fingerprint_digest
from pipelines.integrity import remove_own_leftovers, verify
from pipelines.label import LabelJob
from pipelines.manifest import (
    DRIVER_ID,
    Plan,
    plan_shards,
    planned_runs,
    read_plan,
    run_folder,
    write_plan,
)
from pipelines.prompt_table import PromptTable, join_prompts, read_prompt_table
from pipelines.sources import list_images
from pipelines.storage import Store, open_store, probe_create_only
from pipelines.table import committed_shards
from pipelines.types import ImageRef, RejectedPrompt, Shard

_SHARDS_PER_SLOT_AND_WAVE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A collection cut into shards before anything is written.

    Attributes:
        shards: all shards in order.
        rejected: visual prompts that were refused before any image was read.
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
    """List the source, attach the visual prompts and cut the shards. Nothing is written.

    Raises:
        SourceError, PromptTableError: no images, an unreadable source, an unusable table.
        PlanError: two images have one id.
    """
    refs: Iterable[ImageRef] = list_images(
        config.source.uri,
        storage_options=config.source.storage_options,
        image_id_column=config.source.image_id_column,
        uri_column=config.source.uri_column,
    )
    rejected: tuple[RejectedPrompt, ...] = ()
    if config.visual_prompts:
        table: PromptTable = read_prompt_table(config.visual_prompts, storage_options=config.source.storage_options)
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
    folder = Path(config.model.path).expanduser()
    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise ConfigError(f"model {config.model.path!r} {what}; give a folder that save_pretrained wrote")
    prompts = config.visual_prompts
    return config.fingerprint(
        model_sha256=content_hash(str(folder)),
        visual_prompts_sha256=content_hash(prompts, config.source.storage_options) if prompts else None,
    )


def plan_run(config: RunConfig) -> Plan:
    """Return the run's frozen plan: the one that the output holds, or a new one.

    Raises:
        PlanError: the output holds a run with another fingerprint.
        ConfigError, SourceError, PromptTableError, StorageError: see list_collection and run_fingerprint; the output
            cannot be written, or does not support create-only puts. Nothing is written in any of these cases.
    """
    store = open_output(config)
    fingerprint = run_fingerprint(config)
    run_id = choose_run_id(config, store, fingerprint)
    plan = read_plan(store, run_id)
    if plan is None:
        listing = list_collection(config)
        if not config.output.single_driver:
            probe_create_only(store)
        plan = write_plan(
            store,
            run_id,
            listing.shards,
            fingerprint=fingerprint,
            facts=_plan_facts(config, listing.rejected),
            driver_id=DRIVER_ID,
        )
    check_fingerprint(run_id, plan.fingerprint, fingerprint)
    return plan


def choose_run_id(config: RunConfig, store: Store, fingerprint: Mapping[str, Any]) -> str:
    """Return the run id given, else that of the one run the output holds, else one named after the fingerprint.

    Raises:
        ConfigError: the output holds several runs and none is named.
    """
    if config.output.run_id:
        return config.output.run_id
    held = planned_runs(store)
    if len(held) > 1:
        raise ConfigError(f"{store.uri} holds several runs ({', '.join(held)}): say which one with a run id")
    return held[0] if held else f"run-{fingerprint_digest(fingerprint)[:12]}"


def _plan_facts(config: RunConfig, rejected: tuple[RejectedPrompt, ...]) -> dict[str, Any]:
    return {
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config.to_dict(),
        "prompts": [{"prompt_id": p.prompt_id, "task": p.task, "text": p.text} for p in config.prompts()],
        "versions": versions(),
        "rejected_prompts": [rejected_row(r) for r in rejected],
    }


def open_run_runner(config: RunConfig, plan: Plan) -> ShardRunner:
    """Return the runner for this run, to be entered with ``with``; its replicas start when the first shard is asked."""
    job = LabelJob(
        run_id=plan.run_id,
        prompts=config.prompts(),
        config=config.label,
        source_options=config.source.storage_options,
    )
    factory = RunLabelerFactory(
        predictor=config.model,
        job=job,
        output_uri=config.output.uri,
        output_options=config.output.storage_options,
    )
    return open_runner(factory, config.pool)


def cut_waves(shard_ids: list[str], config: RunConfig) -> list[list[str]]:
    """Group shards into waves: enough of them to show progress, never more than max_waves."""
    slots = config.pool.replicas * config.pool.shards_in_flight_per_replica
    size = max(math.ceil(len(shard_ids) / config.waves.max_waves), slots * _SHARDS_PER_SLOT_AND_WAVE)
    return [shard_ids[start : start + size] for start in range(0, len(shard_ids), size)]


def label_shards(
    runner: ShardRunner, store: Store, plan: Plan, shard_ids: Iterable[str], observer: RunObserver
) -> list[ShardFailure]:
    """Label the shards of a wave that are not committed yet.

    Returns:
        The failures; the shards' images stay unlabelled until the run is resumed.
    """
    todo = sorted(set(shard_ids) - committed_shards(store, plan.run_id))
    failures = []
    for result in runner.map(plan.shards(store, todo), on_event=observer.on_event):
        if isinstance(result, ShardFailure):
            failures.append(result)
            observer.on_failure(result)
        else:
            observer.on_receipt(result)
    return failures


def finish_run(
    config: RunConfig, plan: Plan, *, failures: list[ShardFailure], committed_before: int, started: float
) -> RunSummary:
    """Remove leftovers, verify, and write the summary; a run that had nothing to do writes nothing.

    Args:
        config: the run's config.
        plan: its plan.
        failures: shards that were given up.
        committed_before: shards that were committed when this invocation began.
        started: time.monotonic() at its beginning.
    """
    store = open_output(config)
    remove_own_leftovers(store, plan.run_id, DRIVER_ID)
    report = verify(store, plan.run_id, deep=False)
    summary = summarise(
        store, plan, report, failures=failures, committed_before=committed_before, elapsed_s=time.monotonic() - started
    )
    name = f"{run_folder(plan.run_id)}/summary.json"
    if summary.labelled_now or not store.exists(name):
        store.write(name, json.dumps(summary.to_dict(), indent=1).encode())
    return summary


def run_directly(config: RunConfig, observer: RunObserver) -> RunSummary:
    """Run without Prefect: the same steps in one go.

    Raises:
        As label_collection does, except that an incomplete run returns its summary with the problems.
    """
    started = time.monotonic()
    plan, store = plan_run(config), open_output(config)
    committed = committed_shards(store, plan.run_id)
    todo = [shard_id for shard_id in plan.shard_ids() if shard_id not in committed]
    observer.on_plan(plan, len(committed))
    failures: list[ShardFailure] = []
    if todo:
        with open_run_runner(config, plan) as runner:
            failures = label_shards(runner, store, plan, todo, observer)
    return finish_run(config, plan, failures=failures, committed_before=len(committed), started=started)
