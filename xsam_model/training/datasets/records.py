"""RecordSource, on which all readers are built: records that become samples one by one.

A bad record never ends a run: when a source is opened, it is left out and counted; when it is drawn, another one takes
its place.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from xsam_model.training.samples.samples import TrainingSample

MISSING_IMAGE = "image missing"
UNREADABLE_IMAGE = "image unreadable"
OTHER_SIZE = "image of another size"
MALFORMED = "malformed annotation"
UNKNOWN_CATEGORY = "unknown category"
UNKNOWN_IMAGE = "unknown image"
NOTHING_ANNOTATED = "nothing annotated"
RESERVED_WORDS = "reserved words in a text"

# Exceptions of code that reads a record with unexpected structure.
_SHAPE_ERRORS = (LookupError, TypeError, ValueError, AttributeError, OverflowError)
_TRIES = 100
_IDS_SHOWN = 5
# Special tokens of the conversation itself, which no text about an image may contain.
_RESERVED = re.compile(r"<image>|<region>|<SEG>|</?p>|</?s>|<unk>|</?think>|</?tool_\w+>|<\|[^<>|]*\|>")
_logger = logging.getLogger(__name__)


class RecordError(ValueError):
    """One record cannot be used.

    Attributes:
        reason: a few fixed words, by which such records are counted.
        detail: what exactly is wrong.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        # Both arguments, so that the error can be unpickled when a worker process raises it.
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Skipped:
    """Collects the records that are left out, by reason."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def add(self, reason: str, record_id: object) -> None:
        """Count one record."""
        self._ids.setdefault(reason, []).append(str(record_id))

    @contextmanager
    def unless_usable(self, record_id: object) -> Iterator[None]:
        """Count the record instead of failing if the block that reads it finds it unusable."""
        try:
            yield
        except RecordError as error:
            self.add(error.reason, record_id)
        except _SHAPE_ERRORS:
            self.add(MALFORMED, record_id)

    def by_reason(self) -> dict[str, tuple[str, ...]]:
        """Return the ids of the records left out, in order."""
        return {reason: tuple(ids) for reason, ids in self._ids.items()}

    def __str__(self) -> str:
        return "; ".join(
            f"{reason}: {len(ids)} ({', '.join(ids[:_IDS_SHOWN])}{', ...' if len(ids) > _IDS_SHOWN else ''})"
            for reason, ids in self._ids.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Record:
    """One record of a data set, before its image is opened.

    Attributes:
        record_id: id for reports.
        image: argument of the source's `open_image`.
        size_hw: (height, width) that the annotations are for; None if they do not say.
    """

    record_id: str
    image: str
    size_hw: tuple[int, int] | None = None


R = TypeVar("R", bound=Record)


class RecordSource(Generic[R]):
    """A `sources.SampleSource` of records that are held in memory; images are opened as they are drawn.

    Args:
        name: name of the data set.
        where: file or folder that it was read from, for messages.
        records: the usable records.
        skipped: records left out while reading; reported here, once.
        open_image: returns the image of a record, uint8 (H, W, 3); raises RecordError. Must be picklable.
        make: makes a sample from a record, its image and a generator; raises ValueError if it cannot. Picklable too.
        categories: see `sources.SampleSource`.

    Attributes:
        skipped: ids of the records left out, by reason; records found bad when they are drawn are added.

    Raises:
        ValueError: if there is no record.
    """

    def __init__(
        self,
        name: str,
        where: object,
        records: Sequence[R],
        skipped: Skipped,
        *,
        open_image: Callable[[str], NDArray[np.uint8]],
        make: Callable[[R, NDArray[np.uint8], np.random.Generator], TrainingSample],
        categories: tuple[str, ...] = (),
    ) -> None:
        self.name, self.categories, self.skipped = name, categories, skipped.by_reason()
        self._records, self._open_image, self._make = tuple(records), open_image, make
        left_out = sum(len(ids) for ids in self.skipped.values())
        if not records:
            why = f"all {left_out} were left out: {skipped}" if left_out else "it holds none"
            raise ValueError(f"{name}: no usable record in {where} ({why}); correct the data or the source's settings")
        if left_out:
            _logger.warning("%s: %d records of %s are left out: %s", name, left_out, where, skipped)

    def __len__(self) -> int:
        """Return how many records there are."""
        return len(self._records)

    def draw(self, index: int, random: np.random.Generator) -> TrainingSample:
        """Return the sample of a record, or if that cannot be used of another one that `random` chooses.

        Args:
            index: 0 to `len(self) - 1`.
            random: source of all random choices about the sample.

        Raises:
            ValueError: if none of many records tried can be used.
        """
        for _ in range(_TRIES):
            record = self._records[index]
            try:
                image = self._open_image(record.image)
                _check_size(image, record.size_hw)
                return replace(self._make(record, image, random), source=self.name)
            except ValueError as error:
                self._tell(record.record_id, error)
                index, last = int(random.integers(len(self._records))), error
        raise ValueError(f"{self.name}: none of {_TRIES} records that were tried can be used; the last: {last}")

    def _tell(self, record_id: str, error: ValueError) -> None:
        reason = error.reason if isinstance(error, RecordError) else MALFORMED
        known = self.skipped.get(reason, ())
        if record_id not in known:
            self.skipped[reason] = (*known, record_id)
            _logger.warning("%s: record %s cannot be used, others take its place: %s", self.name, record_id, error)


def _check_size(image: NDArray[np.uint8], size_hw: tuple[int, int] | None) -> None:
    if size_hw is not None and image.shape[:2] != size_hw:
        height, width = image.shape[:2]
        detail = f"{width} x {height} pixels, but its annotations are for {size_hw[1]} x {size_hw[0]}"
        raise RecordError(OTHER_SIZE, detail)


def read_json(path: str | Path, what: str, second_encoding: str = "utf-8") -> Any:
    """Read a JSON file, or a file of JSON lines (.jsonl) as a list.

    Args:
        path: path of the file.
        what: what it should contain, for messages.
        second_encoding: encoding to try if the file is not UTF-8.

    Raises:
        ValueError: if it is missing or not JSON.
    """
    try:
        data = Path(path).read_bytes()
        try:
            text = data.decode("utf-8-sig")  # with or without a byte order mark
        except UnicodeDecodeError:
            text = data.decode(second_encoding)
        if Path(path).suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except OSError as error:
        raise ValueError(f"{path}: {what} cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); it should be {what}") from error


def as_list(document: Any, path: object, what: str) -> list[Any]:
    """Return the content of a JSON file if it is a list.

    Raises:
        ValueError: if it is not; says that `what` was expected.
    """
    if not isinstance(document, list):
        raise ValueError(f"{path}: expected {what}, a list of records; found {type(document).__name__}")
    return document


def entry_id(entry: Any, otherwise: str) -> Any:
    """Return the id of an entry of a JSON file for reports, or a name for one without."""
    return entry.get("id", otherwise) if isinstance(entry, dict) else otherwise


def clean_text(value: Any) -> str:
    """Return a text about an image without surrounding white space.

    Raises:
        RecordError: if it is not text, blank, or contains a special token of conversations.
    """
    if not isinstance(value, str) or not value.strip():
        raise RecordError(MALFORMED, f"no text: {value!r}")
    if found := _RESERVED.search(value):
        raise RecordError(RESERVED_WORDS, f"{found.group()} in {value[:80]!r}")
    return value.strip()
