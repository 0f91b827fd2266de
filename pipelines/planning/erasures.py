"""Which images of an output were forgotten on request: kept as salted hashes of their names, never as the names.

Each request is an object of its own, ``_runs/.erasure-000001``, ``_runs/.erasure-000002``, ..., create-only and never
removed. It is written before anything is erased, so that a crashed erasure can be completed without the names, and it
keeps the images from being planned again. A second object tells that the erasure has ended.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import pyarrow as pa

from pipelines.errors import DamagedError, PlanError
from pipelines.layout import erasure_name
from pipelines.redaction import counted, shown_name
from pipelines.storage.checksummed_json import BLANK, misfit, seal
from pipelines.storage.store import Store

TOMBSTONE = "forgotten-"
"""How the ids of rows begin that stand for forgotten images."""

_DIGITS = 32  # 128 bits: of two names of an output equal ones are not to be expected
_ADVICE = "restore it from a copy: without it, images that were forgotten would be labeled again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """One request to forget images.

    Attributes:
        number: among those of the output, from 1.
        salt: the output's, hex digits.
        asked_at: ISO 8601.
        condition: how the images were chosen, without the values that it names.
        names: salted hashes of their ids.
        uris: salted hashes of the URIs under which they were read.
        labels: salted hashes of the names of prompts that were asked of them alone.
        done: what the object tells that was written at its end; None if it has not ended.
    """

    number: int
    salt: str
    asked_at: str
    condition: str
    names: tuple[str, ...]
    uris: tuple[str, ...]
    labels: tuple[str, ...] = ()
    done: Mapping[str, Any] | None = None

    @property
    def num_images(self) -> int:
        """The number of images that are to be forgotten."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Return what the ledger tells of it, as JSON values; no name and no hash."""
        told = {"asked_at": self.asked_at, "condition": self.condition, "images": self.num_images}
        return {**told, "finished_at": None if self.done is None else self.done["finished_at"]}


@dataclass(frozen=True)
class Forgotten:
    """All images of an output that were forgotten, or are to be.

    Attributes:
        erasures: the requests, in order.
    """

    erasures: tuple[Erasure, ...] = ()

    @cached_property
    def salt(self) -> str:
        """The output's salt; empty if nothing was ever forgotten."""
        return self.erasures[0].salt if self.erasures else ""

    @cached_property
    def _ids(self) -> frozenset[str]:
        return frozenset(name for erasure in self.erasures for name in erasure.names)

    @cached_property
    def _names(self) -> frozenset[str]:
        return self._ids.union(name for erasure in self.erasures for name in erasure.uris)

    @cached_property
    def _labels(self) -> frozenset[str]:
        return frozenset(label for erasure in self.erasures for label in erasure.labels)

    def __bool__(self) -> bool:
        """Return whether any image was forgotten."""
        return bool(self._ids)

    @property
    def unfinished(self) -> list[Erasure]:
        """The erasures that were begun and have not ended."""
        return [erasure for erasure in self.erasures if erasure.done is None]

    def __contains__(self, image_id: str) -> bool:
        """Return whether the image of this id was forgotten."""
        return bool(self._ids) and salted(self.salt, image_id) in self._ids

    def is_tombstone(self, image_id: str) -> bool:
        """Return whether an id stands for a forgotten image."""
        return image_id.startswith(TOMBSTONE) and image_id.removeprefix(TOMBSTONE) in self._ids

    def names(self, text: str) -> bool:
        """Return whether a text is the id or the URI of a forgotten image, in any spelling that prompt tables allow."""
        spelled = unicodedata.normalize("NFC", text.replace("\\", "/").removeprefix("./"))
        return any(salted(self.salt, one) in self._names for one in {text, spelled})

    def is_label(self, name: str) -> bool:
        """Return whether a name is that of a prompt which was asked of forgotten images alone."""
        return bool(self._labels) and salted(self.salt, name) in self._labels

    def aligned(self, image_ids: Iterable[str]) -> list[str]:
        """Return ids as they are once the erasures have ended: forgotten ones as tombstones, at the end, sorted."""
        ids = list(image_ids)
        if not self._ids:
            return ids
        left, gone = list[str](), list[str]()
        for image_id in ids:
            if self.is_tombstone(image_id):
                gone.append(image_id)
            elif (name := salted(self.salt, image_id)) in self._ids:
                gone.append(tombstone(name))
            else:
                left.append(image_id)
        return left + sorted(gone)

    def without(self, batches: Iterable[pa.RecordBatch], left_out: Counter[str]) -> Iterable[pa.RecordBatch]:
        """Return listed images without the forgotten ones, which are counted."""
        return (self._others(one, left_out) for one in batches) if self._ids else batches

    def _others(self, batch: pa.RecordBatch, left_out: Counter[str]) -> pa.RecordBatch:
        is_there = [image_id not in self for image_id in batch["image_id"].to_pylist()]
        left_out["forgotten"] += is_there.count(False)
        return batch.filter(pa.array(is_there, pa.bool_()))


def salted(salt: str, name: str) -> str:
    """Return the salted hash of an id, URI or label."""
    return hashlib.sha256(f"{salt}{name}".encode(errors="surrogatepass")).hexdigest()[:_DIGITS]


def tombstone(name: str) -> str:
    """Return the id of the row that stands for a forgotten image, from the salted hash of its id."""
    return f"{TOMBSTONE}{name}"


def read_forgotten(store: Store) -> Forgotten:
    """Return what was forgotten in an output, without listing anything.

    Raises:
        DamagedError: the object of an erasure is damaged.
    """
    # Numbers are given without gaps and never freed, so the first that is missing ends the search.
    numbers = itertools.count(1)
    return Forgotten(tuple(iter(lambda: _read(store, next(numbers)), None)))


def begin_erasure(
    store: Store, *, image_ids: Collection[str], uris: Collection[str], labels: Collection[str], condition: str
) -> Erasure:
    """Write down that images are to be forgotten.

    Args:
        store: the output.
        image_ids, uris: of the images; only their hashes are kept.
        labels: names of the prompts that were asked of them alone; only their hashes are kept.
        condition: how they were chosen, without values.
    """
    while True:
        held = read_forgotten(store).erasures
        salt = held[0].salt if held else secrets.token_hex(16)
        document = {
            # Unique to its writer, as create needs.
            "erasure_id": secrets.token_hex(8),
            "salt": salt,
            "asked_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "condition": condition,
            "images": sorted({salted(salt, image_id) for image_id in image_ids}),
            # As prompt tables and rejected prompts may spell them.
            "uris": sorted({salted(salt, spelled) for uri in uris for spelled in (uri, shown_name(uri))}),
            "labels": sorted({salted(salt, label) for label in labels}),
            **BLANK,
        }
        number = len(held) + 1
        # Another driver may have taken the number, and with the first one given the output another salt.
        if store.create(erasure_name(number), seal(document)):
            erasure = _read(store, number)
            assert erasure is not None, "it was created just now, and nothing removes it"
            return erasure


def end_erasure(store: Store, erasure: Erasure, counts: Mapping[str, int]) -> None:
    """Write down that nothing of the images of an erasure is left, with what was rewritten and removed."""
    name = erasure_name(erasure.number, done=True)
    finished_at = datetime.now(UTC).isoformat(timespec="seconds")
    store.create(name, seal({"finished_at": finished_at, "by": secrets.token_hex(8), **counts, **BLANK}))


def check_no_erasure(forgotten: Forgotten, store: Store) -> None:
    """Refuse to plan a run while an erasure has not ended: the plans before may still name its images.

    Raises:
        PlanError: one was begun, and has not ended.
    """
    if begun := forgotten.unfinished:
        raise PlanError(
            f"{store.uri}: {counted(begun[0].num_images, 'image is', 'images are')} being forgotten since "
            f"{begun[0].asked_at}, and that has "
            f"not ended; xsam-label forget {store.uri} completes it, then the same command plans the run"
        )


def _read(store: Store, number: int) -> Erasure | None:
    name = erasure_name(number)
    try:
        document = store.read_json(name)
        if not isinstance(document["salt"], str) or not document["salt"]:
            raise ValueError("it has no salt")
        erasure = Erasure(
            number=number,
            salt=document["salt"],
            asked_at=str(document["asked_at"]),
            condition=str(document["condition"]),
            names=tuple(map(str, document["images"])),
            uris=tuple(map(str, document["uris"])),
            labels=tuple(map(str, document["labels"])),
            done=_read_end(store, number),
        )
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise DamagedError(f"{error}; {_ADVICE}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{store.uri}/{name}: tells of no erasure ({misfit(document, error)}); {_ADVICE}") from error
    return erasure


def _read_end(store: Store, number: int) -> dict[str, Any] | None:
    try:
        document = store.read_json(erasure_name(number, done=True))
    except FileNotFoundError:
        return None
    return dict(document) if isinstance(document, dict) and "finished_at" in document else None
