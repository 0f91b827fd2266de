"""Draft a plan in local temporary files: sort listed images by id and cut them into shards.

Memory does not grow with the collection: images are sorted on disk where they do not fit, and each shard is written
before the next is read.
"""

from __future__ import annotations

import errno
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from pipelines.errors import PlanError, StorageError
from pipelines.image_formats import LeftOut
from pipelines.planning.cut import MOST, Sizes, counted, cut, even_sizes, is_even, shrinking_sizes, with_canary
from pipelines.planning.external_sort import sort_batches
from pipelines.planning.image_digest import ImageDigest
from pipelines.planning.plan_files import PlanFileWriter, read_shards
from pipelines.planning.repeated_rows import join_repeated
from pipelines.redaction import quoted, shown
from pipelines.settings import Settings
from pipelines.sources.image_batches import to_batches
from pipelines.types import ImageRef, Shard

SHARDS_PER_PART = 256  # at least; the last part may have fewer
UNLISTED = pa.schema([pa.field("image_id", pa.string(), nullable=False)])
_PLACE = pa.field("place", pa.int64(), nullable=False)  # in the listing, from 1


class PlanConfig(Settings):
    """How images are grouped into shards."""

    images_per_shard: int | None = None
    """Images in one shard: the unit of work, commit and retry. None for 500, or fewer if that leaves some of several
    replicas without work, at the end of the run or all along.
    """
    limit: int | None = None
    """Plan only the first so many images in image_id order; None for all."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.images_per_shard is not None and not 1 <= self.images_per_shard <= 100_000:
            raise ValueError(f"images_per_shard must be between 1 and 100000, got {self.images_per_shard}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1 (or left out for all images), got {self.limit}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftPart:
    """One file of a draft, with one row group for each of its shards."""

    path: Path
    num_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanDraft:
    """Images sorted by id and cut into shards, in the files that the plan will consist of.

    Attributes:
        parts: the files, in order; they are removed when the draft is closed.
        images_per_shard: images in every shard but the last; in the largest if sizes are given.
        sizes: how many images the shards have, if that differs; else empty.
        canary: positions of the shards that are a sample of the images, to be labeled first; empty if there are none.
        num_images, num_bytes: totals as listed; num_bytes counts images whose size is known.
        num_own_prompts, num_with_own: prompts of single images, and the images that have any.
        first_uri, last_uri: of the first and last image in image_id order; None if there are none.
        images_sha256: digest of the images, independent of how they are cut into shards.
        unlisted: ids of images of earlier runs that are not listed any more, with the schema UNLISTED; None if that is
            not to be noted.
        exemplars: the file with the images of the run's exemplars, see exemplars.images; None if it has none.
    """

    parts: tuple[DraftPart, ...]
    images_per_shard: int
    images_sha256: str
    sizes: Sizes = ()
    canary: tuple[int, ...] = ()
    num_images: int = 0
    num_bytes: int = 0
    num_own_prompts: int = 0
    num_with_own: int = 0
    first_uri: str | None = None
    last_uri: str | None = None
    unlisted: pa.Table | None = None
    exemplars: bytes | None = None

    @property
    def num_shards(self) -> int:
        """The number of shards."""
        return sum(part.num_shards for part in self.parts)

    def shards(self) -> Iterator[Shard]:
        """Read the shards in order."""
        for part in self.parts:
            yield from read_shards(part.path.read_bytes(), range(part.num_shards))


@contextmanager
def draft_plan(
    batches: Iterable[pa.RecordBatch],
    config: PlanConfig,
    left: Callable[[Iterable[pa.RecordBatch]], Iterable[pa.RecordBatch]] | None = None,
    *,
    left_out: LeftOut | None = None,
    replicas: int = 1,
    canary: int = 0,
) -> Iterator[PlanDraft]:
    """Sort images by id and cut them into shards; the order of the listing does not matter.

    Rows of the same id and URI are one image, see join_repeated.

    What does not fit into memory lies in the folder for temporary files (TMPDIR): about 30 bytes per image while it is
    sorted, and afterwards as much as the plan will take.

    Args:
        batches: the listing, see image_batches; read once. All batches have the same columns.
        config: how to cut.
        left: given the sorted images, returns those to plan, in the same order and in batches of the same columns; by
            default all are planned.
        left_out: counts the rows that name an image again.
        replicas: how many are to share the work, if the config does not say how to cut it.
        canary: how many images small shards between the others are to have together, see cut.with_canary; 0 for none.

    Yields:
        The draft. Its files are removed at the end.

    Raises:
        PlanError: two images have the same id.
        StorageError: the folder for temporary files is full or cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="xsam-plan-", ignore_cleanup_errors=True) as temporary:
        with _explained(temporary):
            placed = sort_batches(_with_places(batches), "image_id", Path(temporary))
            joined = join_repeated(placed, LeftOut() if left_out is None else left_out)
            images = _unique(_first(joined, config.limit))
            if left is not None:
                images = iter(left(images))
            size, sizes, sample = config.images_per_shard or MOST, Sizes(), tuple[int, ...]()
            is_shrinking = config.images_per_shard is None and replicas > 1
            if is_shrinking or canary:
                num_images, images = counted(images, Path(temporary) / "counted.arrow")
                sizes = shrinking_sizes(num_images, replicas) if is_shrinking else even_sizes(num_images, size)
                size = sizes[0][1] if sizes else MOST
                sizes, sample = with_canary(sizes, canary)
                if sample:
                    size = max(width for _, width in sizes)
            tables = cut(images, sizes or [(None, size)])
            draft = _write_parts(tables, size, Path(temporary))
            (Path(temporary) / "counted.arrow").unlink(missing_ok=True)
            draft = replace(draft, sizes=() if is_even(sizes) else sizes, canary=sample)
        yield draft


def plan_shards(refs: Iterable[ImageRef], config: PlanConfig) -> list[Shard]:
    """Return the shards of a collection small enough to be held in memory; arguments and errors as for draft_plan."""
    with draft_plan(to_batches(refs), config) as draft:
        return list(draft.shards())


def _with_places(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    # Places in the listing are only for the message about an id that occurs twice.
    next_place = 1
    for batch in batches:
        places = pa.array(np.arange(next_place, next_place + batch.num_rows))
        yield batch.append_column(_PLACE, places)
        next_place += batch.num_rows


def _first(batches: Iterable[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """Yield the first ``limit`` rows."""
    for batch in batches:
        yield batch if limit is None else batch.slice(0, limit)
        if limit is not None and (limit := limit - batch.num_rows) <= 0:
            return


def _unique(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Check that sorted images have different ids, and drop the column with their places in the listing.

    Raises:
        PlanError: an id occurs twice.
    """
    before: list[pa.RecordBatch] = []
    for batch in batches:
        # With the last row of the batch before: equal ids may be parted by a batch's end.
        _refuse_twice(pa.Table.from_batches([*before, batch]))
        before = [batch.slice(batch.num_rows - 1)]
        yield batch.drop_columns([_PLACE.name])


def _refuse_twice(images: pa.Table) -> None:
    ids = images["image_id"]
    if (first := pc.index(pc.equal(ids.slice(1), ids.slice(0, len(ids) - 1)), True).as_py()) < 0:
        return
    one, other = sorted(
        images.slice(first, 2).select(["place", "uri", "image_id"]).to_pylist(), key=itemgetter("place")
    )
    raise PlanError(
        f"image_id {quoted(one['image_id'])} stands for both {shown(one['uri'])} and {shown(other['uri'])}, images "
        f"{one['place']:,} and {other['place']:,} of the source; ids must be unique: see source.image_id_column"
    )


def _write_parts(tables: Iterator[tuple[pa.Table, int]], images_per_shard: int, folder: Path) -> PlanDraft:
    """Write images to part files, shard by shard."""
    totals, digest, parts, next_shard = _Totals(), ImageDigest(), list[DraftPart](), 0
    while (first := next(tables, None)) is not None:
        path, begun = folder / f"part-{len(parts):05d}.parquet", next_shard
        with PlanFileWriter(path, first[0].schema) as writer:
            for images, size in itertools.chain([first], tables):
                totals.add(images)
                digest.add(images)
                next_shard += writer.write(next_shard, images, size)
                if next_shard - begun >= SHARDS_PER_PART:
                    break
        parts.append(DraftPart(path=path, num_shards=next_shard - begun))
    return PlanDraft(
        parts=tuple(parts),
        images_per_shard=images_per_shard,
        images_sha256=digest.hexdigest(),
        **asdict(totals),
    )


@dataclass(slots=True)
class _Totals:
    """Totals over the images of a draft, collected while they are written; fields as those of PlanDraft."""

    num_images: int = 0
    num_bytes: int = 0
    num_own_prompts: int = 0
    num_with_own: int = 0
    first_uri: str | None = None
    last_uri: str | None = None

    def add(self, images: pa.Table) -> None:
        """Add the next images."""
        self.num_images += images.num_rows
        self.num_bytes += pc.sum(images["num_bytes"]).as_py() or 0
        if "prompts" in images.schema.names:
            lengths = pc.fill_null(pc.list_value_length(images["prompts"]), 0)
            self.num_own_prompts += pc.sum(lengths).as_py() or 0
            self.num_with_own += pc.sum(pc.greater(lengths, 0)).as_py() or 0
        self.first_uri = self.first_uri or images["uri"][0].as_py()
        self.last_uri = images["uri"][-1].as_py()


@contextmanager
def _explained(folder: str) -> Iterator[None]:
    """Raise a StorageError that names the folder if it is full or read-only."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        raise StorageError(
            f"{folder}: the listing cannot be sorted there ({error}); planning needs some 0.1 GB for a million "
            "images: make room, or set TMPDIR to a folder that has it"
        ) from error
