"""How many images go through a GPU together, on a device that is a formula."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from actors.predictor.batch_size import MAX_BATCH_SIZE, find_batch_size

GIB = 2**30


@dataclass
class Device:
    """Memory that is free, and what batches take of it."""

    free: int
    fixed: int = GIB
    per_image: int = GIB
    tried: list[int] = field(default_factory=list)
    bend: float = 1.0  # above 1 memory grows faster than the number of images

    def peak_bytes(self, count: int) -> int | None:
        self.tried.append(count)
        peak = self.fixed + int(self.per_image * count**self.bend)
        return peak if peak <= self.free else None

    def find(self, shards: int = 1) -> int:
        return find_batch_size(self.peak_bytes, lambda: self.free, shards=shards)


@pytest.mark.parametrize(("free_gib", "size"), [(1.5, 1), (2.5, 1), (4, 2), (6.3, 4), (11.3, 8), (22, 16), (140, 16)])
def test_the_largest_power_of_two_that_leaves_a_fifth_free(free_gib: float, size: int) -> None:
    assert Device(free=int(free_gib * GIB)).find() == size <= MAX_BATCH_SIZE


def test_every_shard_in_flight_has_its_part() -> None:
    assert [Device(free=24 * GIB).find(shards) for shards in (1, 2, 4)] == [16, 8, 2]


def test_what_was_reckoned_is_tried_and_halved_until_it_holds() -> None:
    device = Device(free=38 * GIB, bend=1.5)
    assert device.find() == 8
    assert device.tried[-2:] == [16, 8]
