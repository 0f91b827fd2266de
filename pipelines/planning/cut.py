"""Where a plan is cut into shards: how many images each has, and the rows regrouped to that."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from math import ceil
from pathlib import Path

import pyarrow as pa

from pipelines.planning.external_sort import read_spilled
from pipelines.sources.image_batches import BATCH_SIZE

MOST, LEAST = 500, 50
"""Images in a shard that the user has not sized: in most of a large run, and at its end."""
# The last shards are made smaller so early that each replica still gets so many of each size: one that is held up by
# several times the usual time then leaves the others enough to do.
_ROUNDS_LEFT = 6
# Rows are gathered up to this size before they are cut into shards: rows with long texts must not fill the memory.
_CUT_BYTES = 2**25

Sizes = tuple[tuple[int, int], ...]
"""Numbers of consecutive shards, each with the images that every one of them has."""


def even_sizes(num_images: int, size: int) -> Sizes:
    """Return the sizes of shards that all have so many images, but for the last, which has the rest."""
    whole, rest = divmod(num_images, size)
    return tuple((count, images) for count, images in ((whole, size), (1, rest)) if count and images)


def shrinking_sizes(num_images: int, replicas: int) -> Sizes:
    """Return shard sizes with which replicas, each taking the next shard when free, end at about the same time.

    Shards have MOST images as long as that is a small part of what is left, then fewer and fewer. A short run has small
    ones throughout, so that every replica gets some.
    """
    if replicas == 1:
        return even_sizes(num_images, MOST)
    least = min(LEAST, max(1, num_images // replicas))
    sizes, left = list[tuple[int, int]](), num_images
    while left:
        size = min(MOST, max(least, ceil(left / (_ROUNDS_LEFT * replicas))))
        if size == MOST:
            count = 1 + (left - _ROUNDS_LEFT * replicas * (MOST - 1) - 1) // MOST
        else:
            count = replicas if size > least else left
        # Fewer images than a shard should have are left: they become the last shard.
        count, size = (min(count, left // size), size) if left >= size else (1, left)
        sizes.append((count, size))
        left -= count * size
    return tuple(sizes)


CANARY_SHARDS = 32
"""Shards, at most, that a canary consists of: so many places of the collection it tells of."""


def with_canary(sizes: Sizes, images: int) -> tuple[Sizes, tuple[int, ...]]:
    """Put small shards between others, at even distances: together they are a sample of the collection.

    Shards within which one begins are parted there, so that images stay in their order.

    Args:
        sizes: of the shards of all images.
        images: how many images the small shards have together.

    Returns:
        The sizes with them, and the positions of the small shards; none where they would be more than half of all.
    """
    total = sum(count * size for count, size in sizes)
    if not images or 2 * images > total:
        return sizes, ()
    largest = max(size for _, size in sizes)
    num_shards = max(min(CANARY_SHARDS, images), -(-images // largest))
    small = [images // num_shards + (number < images % num_shards) for number in range(num_shards)]
    starts = [(2 * number + 1) * total // (2 * num_shards) - size // 2 for number, size in enumerate(small)]
    ends = [start + size for start, size in zip(starts, small, strict=True)]
    cuts, at = {*starts, *ends}, 0
    for count, size in sizes:
        for edge in range(at, at + count * size, size):
            before = bisect_right(starts, edge) - 1
            if before < 0 or edge >= ends[before]:
                cuts.add(edge)
        at += count * size
    edges = sorted(cuts | {total})
    widths = (after - before for before, after in itertools.pairwise(edges))
    parted = tuple((len(list(alike)), size) for size, alike in itertools.groupby(widths))
    return parted, tuple(bisect_left(edges, start) for start in starts)


def is_even(sizes: Sizes) -> bool:
    """Return whether all shards but the last have the same number of images."""
    return len(sizes) <= 1 or (len(sizes) == 2 and sizes[1][0] == 1 and sizes[1][1] <= sizes[0][1])


def counted(batches: Iterable[pa.RecordBatch], path: Path) -> tuple[int, Iterator[pa.RecordBatch]]:
    """Return the number of rows, and the rows again, which lie in a temporary file meanwhile."""
    num_rows, batches = 0, iter(batches)
    if (first := next(batches, None)) is None:
        return 0, iter(())
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema, options=options) as writer:
        for batch in itertools.chain([first], batches):
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return num_rows, read_spilled(path)


def cut(batches: Iterable[pa.RecordBatch], sizes: Iterable[tuple[int | None, int]]) -> Iterator[tuple[pa.Table, int]]:
    """Regroup rows into tables of one or more whole shards of a size; a last one has the rest.

    Args:
        batches: the rows.
        sizes: numbers of consecutive shards and the images of each; None for as many as there are rows.

    Yields:
        Each table with the size of its shards.
    """
    batches, rest = iter(batches), list[pa.RecordBatch]()

    def taken(limit: int | None) -> Iterator[pa.RecordBatch]:
        while limit is None or limit:
            batch = rest.pop() if rest else next(batches, None)
            if batch is None:
                return
            yield batch.slice(0, limit)
            if limit is not None:
                if batch.num_rows > limit:
                    rest.append(batch.slice(limit))
                limit -= min(limit, batch.num_rows)

    for count, size in sizes:
        for table in _cut_evenly(taken(None if count is None else count * size), size):
            yield table, size


def _cut_evenly(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    held, num_rows = list[pa.RecordBatch](), 0
    for batch in batches:
        held.append(batch)
        num_rows += batch.num_rows
        is_large = sum(one.nbytes for one in held) >= _CUT_BYTES
        if num_rows >= size and (num_rows >= BATCH_SIZE or is_large):
            table, num_rows = pa.Table.from_batches(held), num_rows % size
            yield table.slice(0, table.num_rows - num_rows)
            held = table.slice(table.num_rows - num_rows).to_batches()
    if num_rows:
        yield pa.Table.from_batches(held)
