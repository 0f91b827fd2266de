"""Read the rates of a run (nothing found, masks per image, best score, quarantined) from some of its shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.errors import DamagedError, StorageError
from pipelines.storage.store import Store
from pipelines.table.shard_commit import ShardCommit
from pipelines.types import Status

MOST_SHARDS = 64
"""Shards that are read of a whole run, spread over it."""
_MOST_PROMPTS = 1000
# Images that lie together are alike, so that the spread of blocks of them tells how sure a rate is, not that of images.
_LEAST_BLOCKS = 16
_READERS = 8
# Two runs with the same scores to this much are not told apart by chance alone.
_LEAST_SCORE_DEVIATION = 0.05
METRICS = {
    "quarantined": "images that could not be labeled",
    "empty": "images in which nothing was found",
    "masks": "masks per image",
    "score": "mean best score of an image",
}
"""The rates, in words."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A mean over images.

    Attributes:
        mean: the mean.
        error: its standard error.
        images: number of images.
        blocks: number of blocks of neighboring images from whose spread the error is known.
    """

    mean: float
    error: float
    images: int
    blocks: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """The rates of a part of a run.

    Attributes:
        images: number of images read.
        whole: by metric, of all prompts of an image together.
        prompts: by prompt and metric; of prompts asked of every image, the first thousand.
    """

    images: int
    whole: Mapping[str, Rate] = field(default_factory=dict)
    prompts: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""

        def plain(rates: Mapping[str, Rate]) -> dict[str, list[float]]:
            return {name: [one.mean, one.error, one.images, one.blocks] for name, one in rates.items()}

        prompts = {name: plain(rates) for name, rates in self.prompts.items()}
        return {"images": self.images, "whole": plain(self.whole), "prompts": prompts}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """Read the values of to_dict.

        Raises:
            KeyError, TypeError, ValueError: it holds others.
        """

        def read(values: Mapping[str, Sequence[Any]]) -> dict[str, Rate]:
            return {
                name: Rate(mean=float(mean), error=float(error), images=int(images), blocks=int(blocks))
                for name, (mean, error, images, blocks) in values.items()
            }

        prompts = {name: read(rates) for name, rates in document["prompts"].items()}
        return cls(images=int(document["images"]), whole=read(document["whole"]), prompts=prompts)


def spread(items: Sequence[_T], count: int) -> list[_T]:
    """Return so many items at even distances; all if there are no more."""
    if len(items) <= count:
        return list(items)
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def read_rates(store: Store, commits: Sequence[ShardCommit], prompts: Iterable[str]) -> Rates:
    """Read the rates of some shards.

    Args:
        store: the output.
        commits: those of the shards.
        prompts: ids of the prompts asked of every image, that are looked for as masks.

    Raises:
        StorageError: a file cannot be read, or is gone.
    """

    def read(commit: ShardCommit) -> pa.Table:
        name = commit.images.name
        try:
            return pq.read_table(io.BytesIO(store.read(name)), columns=["status", "per_prompt"])
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise DamagedError(f"{store.uri}/{name}: cannot be read ({error})") from error

    with ThreadPoolExecutor(_READERS) as readers:
        tables = readers.map(read, (commit for commit in commits if commit.images.rows))
        return rates_of(tables, prompts, len(commits))


def rates_of(tables: Iterable[pa.Table], prompts: Iterable[str], num_tables: int) -> Rates:
    """Return the rates of some shards.

    Args:
        tables: of each shard the columns ``status`` and ``per_prompt`` of its rows of ``images``.
        prompts: ids of the prompts asked of every image.
        num_tables: about how many tables there are; those of a few are parted into blocks.
    """
    names = list(dict.fromkeys(prompts))[:_MOST_PROMPTS]
    blocks, sums = -(-_LEAST_BLOCKS // max(1, num_tables)), [_Sums.empty(len(names))]
    for table in tables:
        sums += _sums(table.combine_chunks(), names, blocks)
    return _rates(_Sums.joined(sums), names)


@dataclass(frozen=True, slots=True)
class _Sums:
    """Sums by block: of whole images (6, B), and of prompts (5, P, B).

    Those of images are: images, quarantined, answered, empty, masks, images with masks, their best scores. Those of
    prompts are without the first two.
    """

    whole: NDArray[np.float64]
    prompts: NDArray[np.float64]

    @classmethod
    def empty(cls, num_prompts: int) -> _Sums:
        return cls(np.zeros((7, 0)), np.zeros((5, num_prompts, 0)))

    @classmethod
    def joined(cls, parts: Sequence[_Sums]) -> _Sums:
        return cls(
            np.concatenate([part.whole for part in parts], axis=-1),
            np.concatenate([part.prompts for part in parts], axis=-1),
        )


def _sums(table: pa.Table, names: Sequence[str], blocks: int) -> Iterator[_Sums]:
    """Yield the sums of a shard's blocks."""
    size = -(-table.num_rows // blocks)
    for start in range(0, table.num_rows, size):
        yield _sums_of_block(table.slice(start, size), names)


def _sums_of_block(table: pa.Table, names: Sequence[str]) -> _Sums:
    entries = table["per_prompt"].combine_chunks()
    parents = pc.list_parent_indices(entries).to_numpy(zero_copy_only=False)
    flat = pc.list_flatten(entries)
    prompt = pc.fill_null(pc.index_in(flat.field("prompt_id"), pa.array(names, pa.string())), -1)
    count = pc.cast(flat.field("n"), pa.float64()).to_numpy(zero_copy_only=False)
    score = pc.cast(flat.field("max_score"), pa.float64()).to_numpy(zero_copy_only=False)
    # Answers in words alone tell nothing of masks: of such a task an entry counts only with one.
    is_words = pc.starts_with(flat.field("prompt_id"), "chat:").to_numpy(zero_copy_only=False)
    answered = ~np.isnan(count) & ~is_words
    place, parents = prompt.to_numpy(zero_copy_only=False)[answered], parents[answered]
    count, score = count[answered], np.where(np.isnan(score[answered]), 0.0, score[answered])
    masks = np.bincount(parents, count, table.num_rows)
    best = np.zeros(table.num_rows)
    np.maximum.at(best, parents, score)
    asked = np.bincount(parents, minlength=table.num_rows) > 0
    bad = pc.equal(table["status"], Status.QUARANTINED.value).to_numpy(zero_copy_only=False)
    there = ~pc.equal(table["status"], Status.FORGOTTEN.value).to_numpy(zero_copy_only=False)
    has = asked & (masks > 0)
    whole = [there.sum(), bad.sum(), asked.sum(), (asked & ~has).sum(), masks.sum(), has.sum(), best[has].sum()]
    known = place >= 0
    place, count, score = place[known], count[known], score[known]
    found = count > 0

    def summed(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(place, values.astype(np.float64), len(names)).astype(np.float64)

    of_prompts = [summed(np.ones(len(place))), summed(~found), summed(count), summed(found), summed(score * found)]
    return _Sums(np.array(whole, np.float64)[:, None], np.stack(of_prompts)[..., None])


def _rates(sums: _Sums, names: Sequence[str]) -> Rates:
    images, bad, *rest = sums.whole
    whole = {"quarantined": _share(bad, images), **_found_rates(*rest)}
    prompts = {name: _found_rates(*sums.prompts[:, place]) for place, name in enumerate(names)}
    return Rates(
        images=int(images.sum()),
        whole={name: rate for name, rate in whole.items() if rate is not None},
        prompts={
            name: {metric: rate for metric, rate in rates.items() if rate is not None}
            for name, rates in prompts.items()
            if any(rates.values())
        },
    )


def _found_rates(*sums: NDArray[np.float64]) -> dict[str, Rate | None]:
    asked, empty, masks, found, score = sums
    # A mask more or less is the least that two means of counts can differ by.
    masks_floor = (float(masks.sum()) + 0.5) / max(1.0, float(asked.sum()))
    return {
        "empty": _share(empty, asked),
        "masks": _rate(masks, asked, masks_floor),
        "score": _rate(score, found, _LEAST_SCORE_DEVIATION**2),
    }


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> Rate | None:
    likely = (part.sum() + 0.5) / (whole.sum() + 1)
    return _rate(part, whole, float(likely * (1 - likely)))


def _rate(part: NDArray[np.float64], whole: NDArray[np.float64], variance: float) -> Rate | None:
    """Return a mean over images; None of no images.

    Args:
        part, whole: sums and numbers of images, by block.
        variance: the least that the images' values can be taken to have.
    """
    images, blocks = float(whole.sum()), int(np.count_nonzero(whole))
    if not images:
        return None
    mean = float(part.sum()) / images
    spread_of_blocks = float(((part - mean * whole) ** 2).sum()) * blocks / max(1, blocks - 1) / images**2
    error = max(spread_of_blocks, variance / images) ** 0.5
    return Rate(mean=mean, error=error, images=int(images), blocks=blocks)
