"""How many images each shard has where the user does not say, and that a plan keeps that."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import DamagedError
from pipelines.layout import plan_name
from pipelines.planning.cut import (
    CANARY_SHARDS,
    LEAST,
    MOST,
    Sizes,
    even_sizes,
    is_even,
    shrinking_sizes,
    with_canary,
)
from pipelines.planning.draft import PlanConfig, draft_plan
from pipelines.planning.plan import read_plan, write_plan
from pipelines.sources.image_batches import BATCH_SIZE, to_batches
from pipelines.storage.store import Store, open_store
from pipelines.types import ImageRef
from tests.support.documents import change_document

CASES = [
    (1, 2),
    (10, 2),
    (9, 8),
    (16, 5),
    (1001, 1000),
    (61, 4),
    (400, 2),
    (4_000, 8),
    (64_000, 8),
    (6_001, 2),
    (50_000_000, 1000),
    (499, 1),
    (1500, 1),
]


@pytest.mark.parametrize(("num_images", "replicas"), CASES)
def test_every_image_has_a_place_and_shards_shrink(num_images: int, replicas: int) -> None:
    sizes = shrinking_sizes(num_images, replicas)
    assert sum(count * images for count, images in sizes) == num_images
    each = [images for _, images in sizes]
    assert each == sorted(each, reverse=True)
    assert all(count >= 1 and 1 <= images <= MOST for count, images in sizes)


@pytest.mark.parametrize(("num_images", "replicas"), CASES)
def test_every_replica_gets_work_and_the_last_shards_are_a_small_part_of_it(num_images: int, replicas: int) -> None:
    sizes = shrinking_sizes(num_images, replicas)
    assert sum(count for count, _ in sizes) >= min(replicas, num_images)
    if replicas > 1 and num_images > 10 * LEAST * replicas:
        assert sizes[-1][1] <= LEAST
        # Most of the images of a long run are in large shards.
        if num_images > 20 * MOST * replicas:
            assert sizes[0][0] * MOST > num_images / 2


@pytest.mark.parametrize("sizes", [even_sizes(100_000, 500), shrinking_sizes(64_000, 8), even_sizes(700, 500)])
def test_a_canary_is_small_shards_at_even_distances_and_every_image_keeps_its_place(sizes: Sizes) -> None:
    total = sum(count * images for count, images in sizes)
    parted, canary = with_canary(sizes, 256)
    each = [images for count, images in parted for _ in range(count)]
    assert sum(each) == total
    assert min(each) > 0
    assert [each[place] for place in canary] == [8] * CANARY_SHARDS
    starts = [sum(each[:place]) for place in canary]
    assert max(abs(start + 4 - (2 * n + 1) * total / 64) for n, start in enumerate(starts)) <= 1
    # Beside the small shards and what they part, all is as it was.
    assert len(each) <= sum(count for count, _ in sizes) + 2 * CANARY_SHARDS


def test_a_canary_of_odd_size_is_whole_and_of_a_small_collection_there_is_none() -> None:
    parted, canary = with_canary(even_sizes(1000, 500), 101)
    each = [images for count, images in parted for _ in range(count)]
    assert (sum(each), sum(each[place] for place in canary)) == (1000, 101)
    assert with_canary(even_sizes(200, 500), 101) == (even_sizes(200, 500), ())
    assert with_canary(even_sizes(200, 500), 0) == (even_sizes(200, 500), ())


def test_one_replica_gets_shards_of_one_size() -> None:
    assert shrinking_sizes(1250, 1) == ((2, 500), (1, 250))
    assert is_even(shrinking_sizes(1250, 1))
    assert not is_even(shrinking_sizes(64_000, 8))


def _planned(store: Store, num_images: int, config: PlanConfig, replicas: int):
    refs = [ImageRef(image_id=f"{n:06}", uri=f"/p/{n}.jpg") for n in range(num_images)]
    with draft_plan(to_batches(refs), config, replicas=replicas) as draft:
        return write_plan(store, "run-1", draft, fingerprint={}, facts={}, driver_id="d1")


@pytest.mark.parametrize("num_images", [1_400, 6_001, BATCH_SIZE + 1])
def test_a_plan_knows_the_size_of_each_shard_and_holds_every_image_in_order(tmp_path: Path, num_images: int) -> None:
    store = open_store(str(tmp_path))
    plan = _planned(store, num_images, PlanConfig(), 2)
    assert plan.sizes == shrinking_sizes(num_images, 2)
    shards = list(plan.shards(store))
    assert [plan.images_in(shard.shard_id) for shard in shards] == [len(shard.images) for shard in shards]
    assert [ref.image_id for shard in shards for ref in shard.images] == [f"{n:06}" for n in range(num_images)]
    for count in (0, 3, len(shards)):
        assert plan.images_in_first(count) == sum(len(shard.images) for shard in shards[:count])


@pytest.mark.parametrize(("config", "replicas"), [(PlanConfig(images_per_shard=7), 8), (PlanConfig(), 1)])
def test_a_size_that_the_user_fixed_and_that_of_one_replica_hold_for_all(
    tmp_path: Path, config: PlanConfig, replicas: int
) -> None:
    plan = _planned(open_store(str(tmp_path)), 20, config, replicas)
    assert (plan.images_per_shard, plan.sizes) == (config.images_per_shard or MOST, ())


def test_sizes_of_other_shards_than_the_plan_has_are_damage(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    _planned(store, 1_400, PlanConfig(), 2)
    change_document(store, plan_name("run-1"), lambda plan: plan["shard_sizes"].append([1, 5]))
    with pytest.raises(DamagedError, match="does not tell the sizes of"):
        read_plan(store, "run-1")


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("total", [64, 65, 66, 96, 193])
def test_a_plan_with_a_canary_knows_how_many_images_each_shard_has(total: int, replicas: int) -> None:
    refs = [ImageRef(image_id=f"{number:04}", uri=f"s3://b/{number:04}") for number in range(total)]
    store = open_store(f"memory://canary-{total}-{replicas}")
    with draft_plan(to_batches(refs), PlanConfig(), replicas=replicas, canary=32) as draft:
        plan = write_plan(store, "run", draft, fingerprint={}, facts={}, driver_id="d1")
    shards = list(plan.shards(store))
    assert [plan.images_in(one.shard_id) for one in shards] == [len(one.images) for one in shards]
    assert sum(len(shards[place].images) for place in draft.canary) == 32
