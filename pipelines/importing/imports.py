"""Import a file that people have edited: read it, hold it against the output, and commit what is new as a run.

The run is named after the file's content and the choice, so importing a file again writes nothing, and goes on where a
killed import has stopped. Its shards are committed as those of any run are.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from pipelines.errors import PlanError, SourceError, some_texts
from pipelines.importing.answers import Answer
from pipelines.importing.drafts import ImportDraft
from pipelines.importing.edited import EditedFile, read_bytes
from pipelines.importing.formats.coco import read_coco
from pipelines.importing.formats.cvat import read_cvat
from pipelines.importing.formats.label_studio import exported_ids, read_label_studio
from pipelines.importing.names import Names
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.erasures import check_no_erasure, read_forgotten
from pipelines.planning.fingerprint import IMPORT, check_fingerprint, fingerprint_digest, lists_source
from pipelines.planning.plan import (
    DRIVER_ID,
    Documents,
    Plan,
    check_no_plan_lost,
    plan_documents,
    read_plan,
    write_plan,
)
from pipelines.redaction import shown_name
from pipelines.sources.image_batches import to_batches
from pipelines.storage.store import Store, probe_create_only
from pipelines.table.commits import commit_shard, committed_shards
from pipelines.table.repairs import due_shards
from pipelines.types import ImagePrediction, Shard, Status

READERS: Mapping[str, Callable[[bytes, str], EditedFile]] = {
    "coco": read_coco,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
}
_MAX_KEPT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportChoice:
    """How a file is read.

    Attributes:
        format_name: one of READERS.
        exported: the file as it was exported, by which deleted masks are told; empty if the file itself tells.
        is_reviewed: whether people have looked at every image of the file. Otherwise only at those where something was
            changed, or that the tool says are finished.
        unchanged_iou: masks whose shapes agree at least so well count as unchanged.
    """

    format_name: str
    exported: str = ""
    is_reviewed: bool = False
    unchanged_iou: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import has come to.

    Attributes:
        run_id: the run.
        plan: its plan; None if nothing of the file is new, or nothing was to be written.
        changes: number of masks by change.
        num_images: images that were answered.
        num_unreviewed: images that nobody has looked at, as far as is known.
        num_known: images of which the output holds all that the file says.
        left_out: a row for each image that cannot be used: its place in the file, its id, and why.
        committed_before: shards that had been committed before.
    """

    run_id: str
    plan: Plan | None = None
    changes: Mapping[str, int] = field(default_factory=dict)
    num_images: int = 0
    num_unreviewed: int = 0
    num_known: int = 0
    left_out: tuple[Mapping[str, Any], ...] = ()
    committed_before: int = 0


def import_file(
    store: Store, uri: str, choice: ImportChoice, *, dry_run: bool = False, facts: Mapping[str, Any] | None = None
) -> Imported:
    """Import a file.

    Args:
        store: the output.
        uri: path or URI of the file.
        choice: how it is read.
        dry_run: whether to write nothing.
        facts: of this program, for the plan.

    Raises:
        SourceError: the file cannot be used, or is of another output; nothing is written.
        PlanError: the output has no run, or images are being forgotten, and nothing is written; or another import was
            at work meanwhile, and the same call goes on.
        StorageError: the output cannot be read or written; the same call goes on.
    """
    data = read_bytes(uri)
    exported = read_bytes(choice.exported) if choice.exported else None
    fingerprint = _fingerprint(choice, data, exported)
    run_id = f"import-{fingerprint_digest(fingerprint)[:12]}"
    check_no_plan_lost(store)
    held, due = read_plan(store, run_id), dict[str, int]()
    if held is not None:
        check_fingerprint(run_id, held.fingerprint, fingerprint)
        due = dict(due_shards(store, held, hashes=True).commits)
        if not due:
            return _as_planned(held)
    forgotten = read_forgotten(store)
    check_no_erasure(forgotten, store)
    documents = plan_documents(store, by_name=True)
    others = _other_imports(store, run_id, documents)
    if not documents:
        raise PlanError(f"{store.uri} holds no run: check the spelling, or label something there first")
    edited = _read(data, uri, choice.format_name)
    if exported is not None:
        edited = _with_shown(edited, _exported_ids(exported, choice.exported))
    draft = ImportDraft(
        store=store,
        uri=uri,
        run_id=run_id,
        names=Names.of_runs(documents.values()),
        forgotten=forgotten,
        is_reviewed=choice.is_reviewed,
        unchanged_iou=choice.unchanged_iou,
    )
    shards = () if held is None else held.shards(store, due)
    draft.take(edited, None if held is None else frozenset(ref.image_id for shard in shards for ref in shard.images))
    imported = Imported(
        run_id=run_id,
        plan=held,
        changes=Counter(one.change.value for found in draft.answers.values() for one in found.corrections),
        num_images=len(draft.answers),
        num_unreviewed=draft.num_unreviewed,
        num_known=draft.num_known,
        left_out=tuple(draft.left_out),
    )
    if dry_run or (held is None and not draft.answers):
        return imported
    if held is None:
        held = _planned(draft, fingerprint, imported, documents, facts or {})
        due = dict.fromkeys(held.shard_ids(), 0)
    _check_alone(store, run_id, others)
    _commit(store, held, due, draft.answers)
    return replace(imported, plan=held, committed_before=held.num_shards - len(due))


def _fingerprint(choice: ImportChoice, data: bytes, exported: bytes | None) -> dict[str, Any]:
    read = {
        "file_sha256": hashlib.sha256(data).hexdigest(),
        "format": choice.format_name,
        "exported_sha256": None if exported is None else hashlib.sha256(exported).hexdigest(),
        "is_reviewed": choice.is_reviewed,
        "unchanged_iou": choice.unchanged_iou,
    }
    return {IMPORT: read}


def _as_planned(plan: Plan) -> Imported:
    told = plan.facts["imported"]
    return Imported(
        run_id=plan.run_id,
        plan=plan,
        changes=told["changes"],
        num_images=plan.num_images,
        left_out=tuple(plan.facts["rejected_prompts"]),
        committed_before=plan.num_shards,
    )


def _read(data: bytes, uri: str, format_name: str) -> EditedFile:
    if format_name not in READERS:
        raise SourceError(f"format {format_name!r} is none of {', '.join(READERS)}")
    return READERS[format_name](data, uri)


def _exported_ids(data: bytes, uri: str) -> dict[str, frozenset[str]]:
    """Return the ids of the masks of each image of a file as it was exported, which may be of another format."""
    if data.lstrip().startswith(b"["):
        return exported_ids(data, uri)
    images = (read_cvat if data.lstrip().startswith(b"<") else read_coco)(data, uri).images
    masks = {image.image_id: (mask.annotation_id for mask in image.masks) for image in images}
    return {
        image.image_id: frozenset(filter(None, masks[image.image_id])) if image.shown is None else image.shown
        for image in images
    }


def _with_shown(edited: EditedFile, ids: Mapping[str, frozenset[str]]) -> EditedFile:
    """Return a file with the ids of the masks that each image was exported with."""
    images = tuple(replace(image, shown=ids.get(image.image_id, frozenset())) for image in edited.images)
    return replace(edited, images=images)


def _planned(
    draft: ImportDraft,
    fingerprint: Mapping[str, Any],
    imported: Imported,
    documents: Documents,
    facts: Mapping[str, Any],
) -> Plan:
    """Freeze the plan of an import."""
    store = draft.store
    probe_create_only(store)
    told = {"file": shown_name(draft.uri), "format": fingerprint[IMPORT]["format"], "changes": dict(imported.changes)}
    every = {
        **facts,
        "planned_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {"source": _access(documents)},
        "prompts": [],
        "rejected_prompts": draft.left_out[:_MAX_KEPT],
        "imported": told,
        **draft.names.ids.to_facts(),
    }
    refs = [found.prediction().ref for found in draft.answers.values()]
    with draft_plan(to_batches(refs), PlanConfig()) as drafted:
        return write_plan(
            store,
            draft.run_id,
            drafted,
            fingerprint=fingerprint,
            facts=every,
            driver_id=DRIVER_ID,
            before={run: document.get("sequence", 0) for run, document in documents.items()},
            register=True,
        )


def _other_imports(store: Store, run_id: str, documents: Documents) -> dict[str, frozenset[str]]:
    """Return what the other imports of an output have committed: their shards by run."""
    runs = (one for one, plan in documents.items() if one != run_id and plan.get("fingerprint", {}).get(IMPORT))
    return {one: frozenset(committed_shards(store, one)) for one in runs}


def _check_alone(store: Store, run_id: str, before: Mapping[str, frozenset[str]]) -> None:
    """Refuse to commit answers that do not know of what another import has committed, or is about to.

    An answer is whole, so that it would replace the other's. The plan stays: the next call answers its images anew.

    Raises:
        PlanError: another import was planned, or has committed, since the output was read.
    """
    now = _other_imports(store, run_id, plan_documents(store, by_name=True))
    if changed := [one for one, shards in now.items() if before.get(one) != shards]:
        raise PlanError(
            f"{store.uri}: another import, {some_texts(changed)}, was at work meanwhile; once it has ended, run the "
            "same command again. Nothing was imported"
        )


def _access(documents: Documents) -> dict[str, Any]:
    """Return how the images of an output are fetched, as its newest run has it: reports show an import's, too."""
    listing = (one for one in reversed(list(documents.values())) if lists_source(one.get("fingerprint", {})))
    source = next(listing, {}).get("facts", {}).get("config", {}).get("source") or {}
    return {name: source[name] for name in ("storage_options", "http", "allow_http") if name in source}


def _commit(store: Store, plan: Plan, due: Mapping[str, int], answers: Mapping[str, Answer]) -> None:
    """Commit the shards that are due."""
    for shard in plan.shards(store, due):
        started = time.monotonic()
        one = replace(shard, repair=due[shard.shard_id])
        commit_shard(
            store,
            plan.run_id,
            one,
            list(_outcomes(one, answers)),
            attempt=f"{DRIVER_ID}-{secrets.token_hex(4)}",
            started=started,
            model_s=0.0,
            predictor={},
        )


def _outcomes(shard: Shard, answers: Mapping[str, Answer]) -> Iterator[ImagePrediction]:
    for ref in shard.images:
        if ref.image_id in answers:
            yield answers[ref.image_id].prediction(ref)
        else:  # what was planned cannot be answered any more: the image has changed, or was forgotten
            yield ImagePrediction(ref=ref, status=Status.FORGOTTEN if ref.is_forgotten else Status.NOT_ASKED)
