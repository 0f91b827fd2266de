"""What the last released version did otherwise, kept as it was: outputs that it began are gone on with now.

Its drivers removed their own uncommitted files at their end, planned twice, named updates by their number alone, and
took any plan with the same configuration for their own. So they may break promises; a run of this version mends that.
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from flows.commands import launch
from flows.run import engine, planning
from flows.run.run_names import first_run
from pipelines.errors import PlanError
from pipelines.labeling import shard as label
from pipelines.layout import (
    KINDS,
    PLAN_FORMAT,
    SCHEMA_VERSION,
    commit_name,
    data_name,
    plan_name,
    run_folder,
    split_data_name,
)
from pipelines.planning.fingerprint import check_fingerprint, fingerprint_digest
from pipelines.planning.plan import Plan, next_sequence, plan_documents, read_plan, retries_by_run
from pipelines.storage.store import Store
from pipelines.table import commits
from pipelines.table.leftovers import Removal
from pipelines.table.repairs import Due
from pipelines.table.shard_commit import DataFile, ShardCommit
from pipelines.types import ImagePrediction, Shard, ShardReceipt


def write_plan(
    store: Store,
    run_id: str,
    draft: Any,
    *,
    fingerprint: Mapping[str, Any],
    facts: Mapping[str, Any],
    driver_id: str,
    before: Mapping[str, int] | None = None,
    register: bool = False,
) -> Plan:
    """Freeze a plan; names of parts are unique to the driver, and the loser removes its own by name."""
    names = []
    for number, part in enumerate(draft.parts):
        names.append(f"plan-{driver_id}-{number:05d}.parquet")
        store.write(f"{run_folder(run_id)}/{names[-1]}", part.path.read_bytes())
    document = {
        "format": PLAN_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "driver_id": driver_id,
        "sequence": next_sequence(store),
        "num_images": draft.num_images,
        "num_bytes": draft.num_bytes,
        "num_shards": draft.num_shards,
        "images_per_shard": draft.images_per_shard,
        "fingerprint_sha256": fingerprint_digest(fingerprint),
        "fingerprint": dict(fingerprint),
        "parts": [{"name": name, "num_shards": part.num_shards} for name, part in zip(names, draft.parts, strict=True)],
        "facts": dict(facts),
    }
    if not store.create(plan_name(run_id), json.dumps(document, indent=1).encode()):
        for name in names:
            store.delete(f"{run_folder(run_id)}/{name}")
    plan = read_plan(store, run_id)
    if plan is None:
        raise PlanError(f"{store.uri}: the plan of run {run_id} was removed while it was being written")
    check_fingerprint(run_id, plan.fingerprint, fingerprint)
    return plan


def commit_shard(
    store: Store,
    run_id: str,
    shard: Shard,
    predictions: Sequence[ImagePrediction],
    *,
    attempt: str,
    started: float,
    model_s: float,
    predictor: Mapping[str, str],
) -> ShardReceipt:
    """Write a shard's two files and its commit; the loser removes its own files."""
    ids = {"run_id": run_id, "shard_id": shard.shard_id, "attempt": attempt}
    rows = {
        "annotations": commits.annotations_table(predictions, **ids),
        "images": commits.images_table(predictions, **ids),
    }
    files = {}
    for kind in KINDS:
        data = commits.parquet_bytes(rows[kind], kind, {**predictor, **ids})
        name = data_name(kind, run_id, shard.shard_id, attempt)
        store.write(name, data)
        files[kind] = DataFile(
            name=name, num_bytes=len(data), sha256=sha256(data).hexdigest(), rows=rows[kind].num_rows
        )
    commit = ShardCommit(
        run_id=run_id,
        shard_id=shard.shard_id,
        attempt=attempt,
        annotations=files["annotations"],
        images=files["images"],
        status_counts=dict(Counter(p.status.value for p in predictions)),
        reason_counts=dict(Counter(p.reason.value for p in predictions if p.reason)),
        predictor=dict(predictor),
    )
    if store.create(commit_name(run_id, shard.shard_id), commit.to_json()):
        return commit.receipt(committed_here=True)
    for file in commit.files():
        store.delete(file.name)
    return commits.read_commit(store, run_id, shard.shard_id).receipt(committed_here=False)


def first_commits(store: Store, run_id: str) -> set[str]:
    """List the shards that have a first commit: it knew no others."""
    names = store.find(f"{run_folder(run_id)}/commits")
    return {PurePosixPath(name).stem for name in names if name.endswith(".json")}


def remove_own_leftovers(store: Store, run_id: str) -> Removal:
    """Remove losers of committed shards, and this driver's uncommitted attempts."""
    driver_id, by_shard = planning.DRIVER_ID, dict[str, list[str]]()
    for kind in KINDS:
        for name in store.find(f"{kind}/{run_id}"):
            split = split_data_name(name)
            assert split is not None
            by_shard.setdefault(split[0], []).append(name)
    committed = first_commits(store, run_id)
    removal = Removal()
    for shard_id, names in sorted(by_shard.items()):
        if shard_id in committed and len(names) <= len(KINDS):
            continue
        commit = None
        with contextlib.suppress(FileNotFoundError):
            commit = commits.read_commit(store, run_id, shard_id)
        named = {file.name for file in commit.files()} if commit else set()
        for name in sorted(set(names) - named):
            if commit is not None or f"{shard_id}-{driver_id}-" in name:
                store.delete(name)
                removal.removed.append(name)
    return removal


def left_to_label(store: Store, plan: Plan, *, check: bool = False) -> Due:
    """Return what has no first commit."""
    committed = first_commits(store, plan.run_id)
    return Due({shard_id: 0 for shard_id in plan.shard_ids() if shard_id not in committed})


def find_run(config: Any, store: Store) -> tuple[str, Plan | None, dict[str, Any]]:
    """Return the name of the run, its plan and its fingerprint; what a listing does not show was not looked for."""
    run_id = planning.choose_run_id(config, store)
    held = read_plan(store, run_id) if run_id else None
    fingerprint = planning.run_fingerprint(config, held)
    return run_id or first_run(fingerprint), held, fingerprint


def listed_runs(_config: Any, store: Store, _known: Any) -> tuple[list[Plan], str]:
    """Return the runs that an update follows, as a listing shows them, and its name, which is that of its number."""
    plans = [read_plan(store, run_id) for run_id in plan_documents(store)]
    return [plan for plan in plans if plan is not None and plan.retry_of is None], f"update-{next_sequence(store)}"


@contextmanager
def _planned_again(_run: Any) -> Iterator[None]:
    """The flow planned once more what the command line had planned."""
    yield


CHANGES: Mapping[tuple[Any, str], Any] = {
    (planning, "write_plan"): write_plan,
    (planning, "left_to_label"): left_to_label,
    (planning, "_find_run"): find_run,
    (planning, "_earlier_runs"): listed_runs,
    (planning, "newest_history"): lambda _store: None,
    (engine, "gather_history"): lambda _store, _plan: [],
    (planning, "plan_documents"): lambda store, by_name: plan_documents(store),
    (planning, "retries_by_run"): lambda store, by_name: retries_by_run(store),
    (planning, "check_new_name"): lambda _run_id, _retried: None,
    (planning, "at_hand"): _planned_again,
    (launch, "_named"): lambda config, _run_id: config,
    (label, "commit_shard"): commit_shard,
    (engine, "remove_losers"): remove_own_leftovers,
}
"""By module and name, what its processes have instead of what is there now."""
