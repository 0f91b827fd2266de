"""Find the shards that hold some images without reading the whole plan: its ids are sorted."""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Iterable

import pyarrow.parquet as pq

from pipelines.planning.plan import Plan
from pipelines.storage.store import Store
from pipelines.table.commits import find_commit
from pipelines.table.shard_commit import ShardCommit

# Greater than every id.
_AFTER_ALL = "\U0010ffff"


def commits_of_images(store: Store, plan: Plan, image_ids: Iterable[str]) -> list[ShardCommit]:
    """Return the commits of the shards in which images would be, in order; errors as for ``shards_of_images``.

    Raises:
        DamagedError: a commit is damaged.
    """
    found = (find_commit(store, plan.run_id, shard_id) for shard_id in shards_of_images(store, plan, image_ids))
    return [commit for commit in found if commit is not None]


def shards_of_images(store: Store, plan: Plan, image_ids: Iterable[str]) -> list[str]:
    """Return the ids of the shards in which images would be, in order; whether they are there their rows tell.

    Of the plan's files, each with some 256 shards, as many are read as a binary search asks for.

    Raises:
        DamagedError: a file of the plan does not match it.
    """
    parts = list(plan.shards_by_part())

    @functools.cache
    def opened(part: int) -> pq.ParquetFile:
        with plan.open_part(store, parts[part][0]) as data:
            return pq.ParquetFile(io.BytesIO(data))

    @functools.cache
    def own_first_id(part: int, shard: int) -> str | None:
        file = opened(part)
        columns = [name for name in ("image_id", "is_forgotten") if name in file.schema_arrow.names]
        group = file.read_row_group(shard, columns=columns)
        # Of a shard that is forgotten as a whole only the hashes of its ids are left, in no order. They come last.
        is_gone = "is_forgotten" in columns and group["is_forgotten"][0].as_py()
        return None if is_gone else str(group["image_id"][0])

    def first_id(part: int, shard: int) -> str:
        for place in range(part, len(parts)):
            for number in range(shard if place == part else 0, len(parts[place][1])):
                if (found := own_first_id(place, number)) is not None:
                    return found
        return _AFTER_ALL

    found = set()
    for image_id in set(image_ids):
        part = bisect_right(range(len(parts)), image_id, key=lambda part: first_id(part, 0)) - 1
        if part < 0:
            continue
        shard_ids = parts[part][1]
        shard = bisect_right(range(len(shard_ids)), image_id, key=functools.partial(first_id, part)) - 1
        found.add((part, shard))
    return [parts[part][1][shard] for part, shard in sorted(found)]
