"""A plan before it is in an output: listed images sorted by id and cut into shards, in files of this machine.

Memory does not grow with the collection: SQLite sorts on disk, and each shard is written before the next is read.
"""

from __future__ import annotations

import errno
import itertools
import pickle
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pipelines.fingerprint import PlanError
from pipelines.plan_file import ImageColumns, PlanFileWriter, read_shards, shard_name
from pipelines.settings import SETTINGS
from pipelines.storage import StorageError
from pipelines.types import ImageRef, Prompt, Shard

SHARDS_PER_PART = 256
_ONLY_COMMON: tuple[tuple[Prompt, ...], tuple[str, ...] | None] = ((), None)
# The file is read once and thrown away: nothing needs to survive a crash. The cache is in KiB.
_SETTINGS = ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", "cache_size=-65536")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """How a collection is cut.

    Attributes:
        images_per_shard: images in one shard: the unit of work, commit and retry.
        limit: plan only the first so many images in image_id order; None for all.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = SETTINGS

    images_per_shard: int = 500
    limit: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.images_per_shard <= 100_000:
            raise ValueError(f"images_per_shard must be between 1 and 100000, got {self.images_per_shard}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 (or left out for all images), got {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPart:
    """One file of a draft: one row group for each of its consecutive shards."""

    path: Path
    num_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDraft:
    """Images sorted by id and cut into shards, as the files that a plan is made of.

    Attributes:
        parts: the files, in order; they go when the draft is closed.
        images_per_shard: images in every shard but the last.
        num_images, num_bytes: totals as listed; num_bytes counts images whose size is known.
        num_own_prompts: prompts of single images.
        first_uri, last_uri: of the first and last image in image_id order; None if there are none.
    """

    parts: tuple[DraftPart, ...]
    images_per_shard: int
    num_images: int = 0
    num_bytes: int = 0
    num_own_prompts: int = 0
    first_uri: str | None = None
    last_uri: str | None = None

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return sum(part.num_shards for part in self.parts)

    def shards(self) -> Iterator[Shard]:
        """Read the shards in order."""
        for part in self.parts:
            yield from read_shards(part.path.read_bytes(), range(part.num_shards))


@contextmanager
def draft_plan(
    refs: Iterable[ImageRef], config: PlanConfig, left: Callable[[Iterable[ImageRef]], Iterable[ImageRef]] | None = None
) -> Iterator[PlanDraft]:
    """Sort images by id and cut them into shards; the listing's own order does not matter.

    What does not fit into some 100 MB is in the folder for temporary files (TMPDIR): about 0.4 kB an image while it is
    sorted, and then, compressed, what the plan will take.

    Args:
        refs: the listing; read once.
        config: how to cut.
        left: given the sorted images, returns those to plan, in the same order; all by default.

    Yields:
        The draft. Its files are removed at the end.

    Raises:
        PlanError: two images have one id.
        StorageError: the folder for temporary files is full or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="xsam-plan-", ignore_cleanup_errors=True) as temporary:
        with _explained(temporary), _sorted(refs, Path(temporary, "images.sqlite")) as database:
            draft = _write_parts(_planned_rows(database, config, left), config, Path(temporary))
        yield draft


def plan_shards(refs: Iterable[ImageRef], config: PlanConfig) -> list[Shard]:
    """Return the shards of a collection that is small enough for memory; otherwise as draft_plan."""
    with draft_plan(refs, config) as draft:
        return list(draft.shards())


@contextmanager
def _sorted(refs: Iterable[ImageRef], path: Path) -> Iterator[sqlite3.Connection]:
    """Put a listing into a table of its own file, which is removed at the end."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        for setting in _SETTINGS:
            database.execute(f"PRAGMA {setting}")
        database.execute(
            "CREATE TABLE images (image_id TEXT, uri TEXT, num_bytes INTEGER, etag TEXT, source_columns TEXT, "
            "asked BLOB, version INTEGER)"
        )
        database.execute("BEGIN")
        database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", map(_row, refs))
        database.execute("COMMIT")
        yield database
    finally:
        database.close()
        path.unlink(missing_ok=True)


def _row(ref: ImageRef) -> tuple[object, ...]:
    asked = (ref.prompts, ref.common)
    packed = None if asked == _ONLY_COMMON else pickle.dumps(asked)
    return ref.image_id, ref.uri, ref.num_bytes, ref.etag, ref.source_columns, packed, ref.version


def _ref(row: tuple[Any, ...]) -> ImageRef:
    image_id, uri, num_bytes, etag, source_columns, packed, version = row
    prompts, common = pickle.loads(packed) if packed else _ONLY_COMMON
    return ImageRef(
        image_id=image_id,
        uri=uri,
        num_bytes=num_bytes,
        etag=etag,
        source_columns=source_columns,
        prompts=prompts,
        common=common,
        version=version,
    )


def _planned_rows(
    database: sqlite3.Connection,
    config: PlanConfig,
    left: Callable[[Iterable[ImageRef]], Iterable[ImageRef]] | None,
) -> Iterator[tuple[Any, ...]]:
    """Yield the images to plan in the order of their ids.

    Raises:
        PlanError: an id occurs twice.
    """
    # SQLite compares UTF-8 bytes, whose order is that of Python's strings.
    rows = database.execute("SELECT * FROM images ORDER BY image_id LIMIT ?", (config.limit or -1,))
    unique = _unique(rows, database)
    return unique if left is None else map(_row, left(map(_ref, unique)))


def _unique(rows: Iterable[tuple[Any, ...]], database: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
    before = None
    for row in rows:
        if row[0] == before:
            raise PlanError(_say_twice(row[0], database))
        before = row[0]
        yield row


def _say_twice(image_id: str, database: sqlite3.Connection) -> str:
    found = "SELECT rowid, uri FROM images WHERE image_id = ? ORDER BY rowid LIMIT 2"
    (one, uri), (other, other_uri) = database.execute(found, (image_id,))
    return (
        f"image_id {image_id!r} stands for both {uri} and {other_uri}, images {one:,} and {other:,} of the source; "
        "ids must be unique: see source.image_id_column"
    )


def _write_parts(rows: Iterator[tuple[Any, ...]], config: PlanConfig, folder: Path) -> PlanDraft:
    """Write images shard after shard and part after part."""
    chunks = enumerate(iter(lambda: list(itertools.islice(rows, config.images_per_shard)), []))
    totals, parts = _Totals(), list[DraftPart]()
    while (first := next(chunks, None)) is not None:
        path, num_shards = folder / f"part-{len(parts):05d}.parquet", 0
        with PlanFileWriter(path) as writer:
            for number, chunk in itertools.chain([first], itertools.islice(chunks, SHARDS_PER_PART - 1)):
                columns = _columns(chunk)
                totals.add(columns)
                writer.write(shard_name(number), columns)
                num_shards += 1
        parts.append(DraftPart(path=path, num_shards=num_shards))
    return totals.draft(tuple(parts), config)


def _columns(rows: Sequence[tuple[Any, ...]]) -> ImageColumns:
    ids, uris, sizes, etags, others, packed, versions = zip(*rows, strict=True)
    asked = [pickle.loads(one) if one else _ONLY_COMMON for one in packed]
    prompts, common = zip(*asked, strict=True)
    return ImageColumns(ids, uris, sizes, etags, others, prompts, common, versions)


class _Totals:
    """What is counted while sorted images pass by."""

    def __init__(self) -> None:
        self._num_images = self._num_bytes = self._num_own_prompts = 0
        self._first_uri: str | None = None
        self._last_uri: str | None = None

    def add(self, columns: ImageColumns) -> None:
        """Count the next images."""
        self._num_images += len(columns.image_id)
        self._num_bytes += sum(filter(None, columns.num_bytes))
        self._num_own_prompts += sum(map(len, columns.prompts))
        self._first_uri = self._first_uri or columns.uri[0]
        self._last_uri = columns.uri[-1]

    def draft(self, parts: tuple[DraftPart, ...], config: PlanConfig) -> PlanDraft:
        """Return the draft of all images that were counted."""
        return PlanDraft(
            parts=parts,
            images_per_shard=config.images_per_shard,
            num_images=self._num_images,
            num_bytes=self._num_bytes,
            num_own_prompts=self._num_own_prompts,
            first_uri=self._first_uri,
            last_uri=self._last_uri,
        )


@contextmanager
def _explained(folder: str) -> Iterator[None]:
    """Say which folder is full or cannot be written."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise StorageError(
            f"{folder}: the listing cannot be sorted there ({error}); planning needs about 0.5 GB for a million "
            "images: make room, or set TMPDIR and SQLITE_TMPDIR to a folder that has it"
        ) from error
