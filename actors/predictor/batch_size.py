"""How many images go through the model together on a GPU: as many as its free memory holds, found by trying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_BATCH_SIZE = 16
"""Beyond it a batch of images of a thousand tokens and more keeps no GPU busier, and failures cost more to isolate."""

# What is left to fragmentation, longer prompts and images with more masks than those that were tried.
_USABLE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Bytes that a batch takes on the device beside the weights: some once, some for each image."""

    fixed: float
    per_image: float

    @classmethod
    def between(cls, one: int, two: int) -> MemoryUse:
        """Read it from the peaks of a batch of one image and of one of two."""
        per_image = max(two - one, 1)
        return cls(fixed=max(one - per_image, 0), per_image=per_image)

    def of(self, num_images: int) -> float:
        """Return the bytes that a batch takes."""
        return self.fixed + self.per_image * num_images


def find_batch_size(peak_bytes: Callable[[int], int | None], free_bytes: Callable[[], int], *, shards: int = 1) -> int:
    """Find the largest batch that fits, a power of two so that replicas on GPUs of one kind agree.

    Args:
        peak_bytes: runs a batch of so many images and returns the most that it held at a time beside the weights, in
            bytes; None if it ran out of memory.
        free_bytes: memory of the device that nothing holds while no batch is under way.
        shards: batches that may hold memory at once, one for each shard in flight.

    Returns:
        1 to MAX_BATCH_SIZE.
    """
    peak_bytes(1)  # libraries make room for themselves the first time
    one = peak_bytes(1)
    two = peak_bytes(2) if one is not None else None
    if one is None or two is None:
        return 1
    use, usable = MemoryUse.between(one, two), _USABLE * free_bytes() / shards
    size = MAX_BATCH_SIZE
    while size > 1 and use.of(size) > usable:
        size //= 2
    # What was reckoned is tried: memory need not grow in proportion.
    while size > 2 and peak_bytes(size) is None:
        size //= 2
    return size
