"""The frozen plan of a run: the listed images in shards, and the config's fingerprint, written create-only.

A resumed run reads the plan and never lists its source again, so it labels the same images whatever has changed there.
"""

from __future__ import annotations

import hashlib
import io
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import DamagedError, PlanError, StorageError
from pipelines.layout import (
    PLAN_FORMAT,
    SCHEMA_VERSION,
    plan_name,
    run_folder,
    shard_name,
    shard_number,
    split_commit_name,
)
from pipelines.planning.cut import Sizes
from pipelines.planning.draft import UNLISTED, PlanDraft
from pipelines.planning.fingerprint import IMPORT, check_fingerprint, fingerprint_digest, lists_source
from pipelines.planning.plan_files import planned_batches, read_image_ids, read_shards
from pipelines.planning.plan_versions import newest_document
from pipelines.planning.registered_runs import register_run, registered_runs
from pipelines.storage.checksummed_json import BLANK, misfit, seal
from pipelines.storage.store import Store
from pipelines.types import Shard

DRIVER_ID = secrets.token_hex(4)
"""Identifies this process in plan parts and attempt ids, so that two drivers never write the same object."""


CANARY = "canary_shards"
"""Among a plan's facts: the ids of the shards that are labeled first, a sample of its images."""

Documents = Mapping[str, Mapping[str, Any]]
"""Parsed plans by run id."""
NONE_KNOWN: Documents = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanPart:
    """One file of the plan: one row group for each of its consecutive shards.

    Attributes:
        name: relative to the run's folder.
        num_shards: how many it holds.
        num_bytes, sha256: of the file; None in plans of earlier versions, which do not record them.
    """

    name: str
    num_shards: int
    num_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The frozen plan of one run, as read from ``plan.json``.

    Attributes:
        run_id: the run that it belongs to.
        num_images, num_bytes, num_shards: totals as listed; num_bytes counts images whose size is known.
        images_per_shard: images in every shard but the last; 0 if that differs, and in plans of earlier versions, which
            do not record it.
        sizes: how many images the shards have, if that differs; else empty.
        fingerprint: every setting that can change a row, by name; a resumed run must match it.
        parts: the files that hold the image lists.
        images_sha256: digest of the images; None in plans of earlier versions, which do not record it.
        sequence: its number among the output's runs, from 1 in the order of planning; 0 in plans of earlier versions.
        facts: config and provenance, for people and for issue reports.
        notes_listing: whether it notes which images of earlier runs its listing lacked, as incremental runs of a whole
            listing do.
        unlisted: the file with their ids; None if there are none.
        exemplars: the file with the images of its exemplars, see exemplars.images; None if it has none.
    """

    run_id: str
    num_images: int
    num_bytes: int
    num_shards: int
    images_per_shard: int
    fingerprint: Mapping[str, Any]
    parts: tuple[PlanPart, ...]
    images_sha256: str | None = None
    sizes: Sizes = ()
    sequence: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes_listing: bool = False
    unlisted: PlanPart | None = None
    exemplars: PlanPart | None = None

    @property
    def files(self) -> tuple[PlanPart, ...]:
        """All files of the plan beside plan.json."""
        return (*self.parts, *filter(None, [self.unlisted, self.exemplars]))

    @property
    def canary_shards(self) -> tuple[str, ...]:
        """The shards that are labeled first, a sample of the images; empty if it was planned without."""
        return tuple(self.facts.get(CANARY, ()))

    @property
    def retry_of(self) -> str | None:
        """The run whose quarantined images this one labels again; None if this run is not a retry."""
        return _retry_of(self.fingerprint)

    @property
    def lists_source(self) -> bool:
        """Whether the run labels what its source lists: see fingerprint.lists_source."""
        return lists_source(self.fingerprint)

    @property
    def is_import(self) -> bool:
        """Whether the run holds what a person has corrected, which no model labels again."""
        return self.fingerprint.get(IMPORT) is not None

    def shard_ids(self) -> list[str]:
        """Return all shard ids in order, without reading the image lists."""
        return [shard_name(number) for number in range(self.num_shards)]

    def images_in(self, shard_id: str) -> int | None:
        """Return how many images a shard has, without reading the image lists; None if the plan does not record it."""
        number = shard_number(shard_id)
        for count, images in self.sizes:
            if number < count:
                return images
            number -= count
        if not self.images_per_shard:
            return 0 if self.sizes else None
        return max(0, min(self.images_per_shard, self.num_images - number * self.images_per_shard))

    def images_in_first(self, num_shards: int) -> int:
        """Return about how many images the first so many shards have, without reading the image lists."""
        if not self.sizes:
            return round(self.num_images * num_shards / self.num_shards) if self.num_shards else 0
        found = 0
        for count, images in self.sizes:
            found += min(count, num_shards) * images
            num_shards -= min(count, num_shards)
        return found

    def shards(self, store: Store, wanted: Iterable[str] | None = None) -> Iterator[Shard]:
        """Read planned shards in order, part by part: those wanted, by default all."""
        names = set(self.shard_ids() if wanted is None else wanted)
        for part, shard_ids in self.shards_by_part():
            numbers = [number for number, shard_id in enumerate(shard_ids) if shard_id in names]
            if numbers:
                with self.open_part(store, part) as data:
                    yield from read_shards(data, numbers)

    def shards_by_part(self) -> Iterator[tuple[PlanPart, list[str]]]:
        """Yield the plan's files in order, each with the ids of its shards, without reading them."""
        first = 0
        for part in self.parts:
            yield part, [shard_name(first + number) for number in range(part.num_shards)]
            first += part.num_shards

    def image_ids(self, store: Store, part: PlanPart) -> Iterator[tuple[str, list[str]]]:
        """Read the shard ids of a plan file, each with its image ids; works for plans of any format.

        Raises:
            DamagedError: the file does not match the plan.
        """
        with self.open_part(store, part) as data:
            yield from read_image_ids(data, range(part.num_shards))

    def part_problem(self, store: Store, part: PlanPart) -> str | None:
        """Describe what is wrong with the size of a plan file, without reading it; None if nothing is."""
        name = f"{run_folder(self.run_id)}/{part.name}"
        size = store.size(name)
        if size is None:
            return f"{store.uri}/{name}: this part of the plan is missing; restore it from a copy"
        if part.num_bytes is None or size == part.num_bytes:
            return None
        return f"{store.uri}/{name}: this part of the plan has {size} bytes, planned {part.num_bytes}"

    def unlisted_ids(self, store: Store) -> pa.Table:
        """Return the ids of unlisted images as a table with one column, ``image_id``.

        Raises:
            DamagedError: the file does not match the plan.
        """
        if self.unlisted is None:
            return UNLISTED.empty_table()
        with self.open_part(store, self.unlisted) as data:
            return pq.read_table(io.BytesIO(data), schema=UNLISTED)

    def planned_batches(self, store: Store) -> Iterator[pa.RecordBatch]:
        """Read what was planned for each image, in image_id order, part by part, as batches of plan_files.PLANNED."""
        for part in self.parts:
            with self.open_part(store, part) as data:
                yield from planned_batches(data)

    @contextmanager
    def open_part(self, store: Store, part: PlanPart) -> Iterator[bytes]:
        """Provide the bytes of a file of the plan to a block that reads them.

        Raises:
            DamagedError: the file is missing, does not match the plan, or the block cannot read it: plans of earlier
                versions have no checksum, so that only reading shows that bytes are missing.
            PlanError: images were forgotten meanwhile.
        """
        name = f"{store.uri}/{run_folder(self.run_id)}/{part.name}"
        try:
            data = store.read(f"{run_folder(self.run_id)}/{part.name}")
        except FileNotFoundError as error:
            if part not in require_plan(store, self.run_id, oldest=1).files:
                raise PlanError(
                    f"{name}: images were forgotten while it was read; run the same command again"
                ) from error
            raise DamagedError(f"{name}: this part of the plan is missing; restore it from a copy") from error
        if part.sha256 is not None and hashlib.sha256(data).hexdigest() != part.sha256:
            raise DamagedError(f"{name}: this part of the plan does not have the SHA-256 that the plan states")
        try:
            yield data
        except (pa.ArrowException, ValueError, KeyError, IndexError, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise DamagedError(f"{name}: what was read is no whole plan file ({error})") from error


def write_plan(
    store: Store,
    run_id: str,
    draft: PlanDraft,
    *,
    fingerprint: Mapping[str, Any],
    facts: Mapping[str, Any],
    driver_id: str,
    before: Mapping[str, int] | None = None,
    register: bool = False,
) -> Plan:
    """Freeze a plan. If several drivers plan the same run at once, the first one's plan holds for all of them.

    Args:
        store: the output.
        run_id: the run.
        draft: the images, sorted and cut.
        fingerprint: see fingerprint_digest; JSON values only.
        facts: anything else worth keeping, JSON values only.
        driver_id: unique to this process; it is part of the file names.
        before: sequence numbers by run of plans that this one must follow, even if no listing shows them yet.
        register: whether to record the run's id under a number, because whoever plans next cannot know its name.

    Returns:
        The plan that holds: this one, or that of the driver that was first.

    Raises:
        PlanError: another driver was first, with another fingerprint or other images.
    """
    # Parts first: once plan.json exists, everything that it names is there.
    parts, gone, kept = _write_parts(store, run_id, draft, driver_id)
    written = [*parts, *filter(None, [gone, kept])]
    checks = {part.name: {"num_bytes": part.num_bytes, "sha256": part.sha256} for part in written}
    document = {
        "format": PLAN_FORMAT,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "driver_id": driver_id,
        # The listing may not show the run that this one follows.
        "sequence": next_sequence(store, before),
        "num_images": draft.num_images,
        "num_bytes": draft.num_bytes,
        "num_shards": draft.num_shards,
        # Earlier versions know one size for all; with 0 they take it for unknown.
        "images_per_shard": 0 if draft.sizes else draft.images_per_shard,
        **({"shard_sizes": draft.sizes} if draft.sizes else {}),
        "images_sha256": draft.images_sha256,
        "fingerprint_sha256": fingerprint_digest(fingerprint),
        "fingerprint": dict(fingerprint),
        "parts": [{"name": part.name, "num_shards": part.num_shards} for part in parts],
        # Not within the parts: earlier versions refuse keys there that they do not know.
        "part_checks": {part.name: checks[part.name] for part in parts},
        # Left out where it was not noted: the latest run that has it tells.
        **({} if draft.unlisted is None else {"unlisted": gone and {"name": gone.name, **checks[gone.name]}}),
        **({} if kept is None else {"exemplars": {"name": kept.name, **checks[kept.name]}}),
        "facts": dict(facts),
        **BLANK,
    }
    if register:
        register_run(store, run_id)
    is_ours = store.create(plan_name(run_id), seal(document))
    plan = read_plan(store, run_id)
    if plan is None:
        raise PlanError(f"{store.uri}: the plan of run {run_id} was removed while it was being written")
    if not is_ours:
        for part in set(written) - set(plan.files):
            with suppress(StorageError):  # a part that cannot be removed is a leftover for vacuum
                store.delete(f"{run_folder(run_id)}/{part.name}")
        check_fingerprint(run_id, plan.fingerprint, fingerprint)
        _check_same_images(store, plan, draft)
    return plan


def _write_parts(
    store: Store, run_id: str, draft: PlanDraft, driver_id: str
) -> tuple[list[PlanPart], PlanPart | None, PlanPart | None]:
    """Write the files of a plan under names unique to this call, so that the loser of a race removes only its own."""
    parts, unique = [], f"{driver_id}-{secrets.token_hex(4)}"

    def write(name: str, data: bytes, num_shards: int) -> PlanPart:
        store.write(f"{run_folder(run_id)}/{name}", data)
        digest = hashlib.sha256(data).hexdigest()
        return PlanPart(name=name, num_shards=num_shards, num_bytes=len(data), sha256=digest)

    for number, drafted in enumerate(draft.parts):
        data = drafted.path.read_bytes()
        parts.append(write(f"plan-{unique}-{number:05d}.parquet", data, drafted.num_shards))
    gone = kept = None
    if draft.unlisted is not None and draft.unlisted.num_rows:
        buffer = io.BytesIO()
        pq.write_table(draft.unlisted, buffer, compression="zstd")
        gone = write(f"plan-{unique}-unlisted.parquet", buffer.getvalue(), 0)
    if draft.exemplars is not None:
        kept = write(f"plan-{unique}-exemplars.parquet", draft.exemplars, 0)
    return parts, gone, kept


def _check_same_images(store: Store, plan: Plan, draft: PlanDraft) -> None:
    """Refuse another driver's plan with other images: those that only this driver listed would silently be left out."""
    # Plans of earlier versions have no digest: totals are all that can be compared.
    if plan.images_sha256 is not None:
        is_same = plan.images_sha256 == draft.images_sha256
    else:
        is_same = (plan.num_images, plan.num_bytes) == (draft.num_images, draft.num_bytes)
    if not is_same:
        raise PlanError(
            f"{store.uri}: another driver has just planned run {plan.run_id!r} with other images: {plan.num_images:,} "
            f"with {plan.num_bytes:,} bytes, here {draft.num_images:,} with {draft.num_bytes:,}. The same command goes "
            "on with that run"
        )


def read_plan(store: Store, run_id: str, *, oldest: int = PLAN_FORMAT) -> Plan | None:
    """Read a run's plan; None if the run was never planned.

    Args:
        store: the output.
        run_id: the run.
        oldest: the oldest format that is acceptable; of format 1 only totals and ids can be read.

    Raises:
        PlanError: the plan was written by a newer version, or by one whose plans are no longer read.
        DamagedError: the object is not a valid plan of this run.
    """
    try:
        document = _read_document(store, run_id, oldest=oldest)
    except FileNotFoundError:
        return None
    return plan_of(store, document, oldest=oldest)


def plan_of(store: Store, document: Mapping[str, Any], *, oldest: int = PLAN_FORMAT) -> Plan:
    """Return the plan that a parsed one describes, as plan_documents returns it; arguments and errors of read_plan."""
    run_id = document["run_id"]
    if document["format"] < oldest:
        raise _older(store, run_id, document)
    if document["format"] > PLAN_FORMAT:
        raise _newer(store, run_id, document)
    checks = document.get("part_checks", {})
    return Plan(
        run_id=document["run_id"],
        num_images=document["num_images"],
        num_bytes=document["num_bytes"],
        num_shards=document["num_shards"],
        images_per_shard=document.get("images_per_shard", 0),
        fingerprint=document["fingerprint"],
        parts=tuple(PlanPart(**part, **checks.get(part["name"], {})) for part in document["parts"]),
        images_sha256=document.get("images_sha256"),
        sizes=tuple((count, images) for count, images in document.get("shard_sizes", ())),
        sequence=document.get("sequence", 0),
        facts=document["facts"],
        notes_listing="unlisted" in document,
        unlisted=PlanPart(**document["unlisted"], num_shards=0) if document.get("unlisted") else None,
        exemplars=PlanPart(**document["exemplars"], num_shards=0) if document.get("exemplars") else None,
    )


def require_plan(store: Store, run_id: str, *, oldest: int = PLAN_FORMAT) -> Plan:
    """Read a run's plan, as read_plan does.

    Raises:
        PlanError: there is no such run; otherwise as for read_plan.
    """
    plan = read_plan(store, run_id, oldest=oldest)
    if plan is None:
        raise PlanError(f"{store.uri} holds no run {run_id!r}")
    return plan


def planned_runs(store: Store, *, by_name: bool = False, known: Collection[str] = ()) -> list[str]:
    """List the ids of the planned runs in an output, sorted.

    Args:
        store: the output.
        by_name: whether to include registered runs that a listing does not show yet; needed where a plan depends on
            all runs before it.
        known: runs whose plans are known to be there; they are not looked up.
    """
    names = {*store.folders("_runs"), *known, *(registered_runs(store) if by_name else ())}
    return [run_id for run_id in sorted(names) if run_id in known or store.exists(plan_name(run_id))]


def check_no_plan_lost(store: Store, known: Collection[str] = ()) -> None:
    """Check that every run with commits has its plan; otherwise its rows would silently be left out.

    Args:
        store: the output.
        known: runs that are not looked at.

    Raises:
        DamagedError: plans are missing; the message names them.
    """
    runs = [run for run in store.folders("_runs") if run not in known and not store.exists(plan_name(run))]
    if lost := [f"{store.uri}/{plan_name(run)}" for run in runs if _is_committed(store, run)]:
        raise DamagedError(f"{', '.join(lost)}: missing, although there are commits; restore it from a copy")


def _is_committed(store: Store, run_id: str) -> bool:
    return any(split_commit_name(name) for name in store.find(f"{run_folder(run_id)}/commits"))


def plan_documents(store: Store, *, by_name: bool = False, known: Documents = NONE_KNOWN) -> Documents:
    """Return the parsed plan of every run, of any version, by run id in the order of planning.

    The order matters: of two rows about one prompt of one image, the one of the later run is current. The runs are
    those of planned_runs.

    Args:
        store: the output.
        by_name: as for planned_runs.
        known: plans that need not be read.

    Raises:
        PlanError: a newer version wrote one of them in a form that cannot be read.
        DamagedError: one of them is not a valid plan of its run.
    """
    runs = planned_runs(store, by_name=by_name, known=known)
    found = {run_id: known[run_id] if run_id in known else _read_document(store, run_id) for run_id in runs}
    return dict(sorted(found.items(), key=_place))


def _read_document(store: Store, run_id: str, *, oldest: int = 1) -> dict[str, Any]:
    """Read and check a parsed plan.

    Of a plan of a newer version only what is needed to read the rows of its run is checked.

    Raises:
        FileNotFoundError: the run was never planned.
        PlanError: it was planned by a version whose plans cannot be read here.
        DamagedError: the object is not a valid plan of this run.
    """
    name, document = newest_document(store, run_id)
    try:
        if type(document["format"]) is not int:
            raise TypeError(f"format is {document['format']!r}")
        if document["format"] < oldest:
            raise _older(store, run_id, document)
        _check_document(document, run_id)
    except PlanError:  # a ValueError, too, and already what the user needs to know
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # A newer plan may lack what this version expects: it is not damaged.
        if isinstance(document, dict) and type(document.get("format")) is int and document["format"] > PLAN_FORMAT:
            raise _newer(store, run_id, document) from error
        raise DamagedError(
            f"{store.uri}/{name}: no plan of run {run_id} ({misfit(document, error)}); restore it from a copy"
        ) from error
    return dict(document)


def _older(store: Store, run_id: str, document: Mapping[str, Any]) -> PlanError:
    return PlanError(
        f"{store.uri}: run {run_id} was planned by an older version (plan format {document['format']}), and this one "
        "cannot go on with it. Its rows stay readable (query, export, report, status and verify); give another run id "
        "or output to label anew."
    )


def _newer(store: Store, run_id: str, document: Mapping[str, Any]) -> PlanError:
    number = document["format"]
    return PlanError(f"{store.uri}: run {run_id} was planned by a newer version (plan format {number}); upgrade")


def _check_document(document: Mapping[str, Any], run_id: str) -> None:
    kinds: dict[str, type] = {
        **dict.fromkeys(("format", "num_images", "num_bytes", "num_shards"), int),
        **{"run_id": str, "parts": list, "fingerprint": dict, "facts": dict},
    }
    for name, kind in kinds.items():
        if type(document[name]) is not kind:
            raise TypeError(f"{name} is {document[name]!r}")
    if document["run_id"] != run_id:
        raise ValueError(f"it is that of run {document['run_id']}")
    if sum(part["num_shards"] for part in document["parts"]) != document["num_shards"]:
        raise ValueError(f"its parts do not hold {document['num_shards']} shards")
    if "shard_sizes" in document and sum(count for count, _ in document["shard_sizes"]) != document["num_shards"]:
        raise ValueError(f"it does not tell the sizes of {document['num_shards']} shards")
    if document["fingerprint_sha256"] != fingerprint_digest(document["fingerprint"]):
        raise ValueError("its fingerprint does not have the SHA-256 that it states")


def next_sequence(store: Store, before: Mapping[str, int] | None = None) -> int:
    """Return the sequence number for the next run to be planned in an output.

    Args:
        store: the output.
        before: sequence numbers by run of plans that need not be read.
    """
    known = before or {}
    unknown = [run_id for run_id in planned_runs(store, known=known) if run_id not in known]
    numbers = (_read_document(store, run_id).get("sequence", 0) for run_id in unknown)
    return 1 + max([*known.values(), *numbers], default=0)


def _place(item: tuple[str, Mapping[str, Any]]) -> tuple[int, str, int, str]:
    """Return the sort key of a plan: its sequence number; plans of earlier versions have only a time and a name."""
    run_id, document = item
    planned_at = str(document.get("facts", {}).get("planned_at", ""))
    # The name's length before the name, so that NAME-retry-10 comes after NAME-retry-9.
    return document.get("sequence", 0), planned_at, len(run_id), run_id


def retries_by_run(store: Store, *, by_name: bool = False) -> dict[str, list[str]]:
    """Return every planned run that labels what its source lists, with its retries in the order of planning.

    Retries of other runs are there, too, under the id of their run.

    Plans of every version are read: the rows of runs that this version cannot resume stay readable. The runs are those
    of planned_runs.
    """
    documents = plan_documents(store, by_name=by_name)
    fingerprints = {run: plan.get("fingerprint", {}) for run, plan in documents.items()}
    retried = {run: _retry_of(fingerprint) for run, fingerprint in fingerprints.items()}
    found: dict[str, list[str]] = {run: [] for run, fingerprint in fingerprints.items() if lists_source(fingerprint)}
    for run, first in retried.items():
        if first is not None:
            found.setdefault(first, []).append(run)
    return found


def _retry_of(fingerprint: Mapping[str, Any]) -> str | None:
    retry = fingerprint.get("retry")
    return None if retry is None else str(retry["run_id"])
