"""Finds the batch size of a GPU: the most images that its free memory holds, measured by running batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MAX_BATCH_SIZE = 16
"""With over a thousand tokens an image, larger batches make a GPU no faster, and a failing image is harder to isolate.

On an H200 batches of 8, 16 and 32 took the same time for each image (benchmarks/RESULTS.md).
"""

# The rest is left to fragmentation, longer prompts, and images with more masks than those that were tried.
_USABLE = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """Device memory of a batch besides the weights, in bytes: a fixed part, and one for each image."""

    fixed: float
    per_image: float

    @classmethod
    def between(cls, one: int, two: int) -> MemoryUse:
        """Derive it from the peaks of a batch of one image and of a batch of two."""
        per_image = max(two - one, 1)
        return cls(fixed=max(one - per_image, 0), per_image=per_image)

    def of(self, num_images: int) -> float:
        """Return the bytes that a batch of so many images takes."""
        return self.fixed + self.per_image * num_images


def find_batch_size(peak_bytes: Callable[[int], int | None], free_bytes: Callable[[], int], *, shards: int = 1) -> int:
    """Find the largest batch that fits, a power of two so that replicas on GPUs of the same kind agree.

    Args:
        peak_bytes: runs a batch of so many images and returns its peak memory besides the weights, in bytes; None if it
            ran out of memory.
        free_bytes: returns the free memory of the device while no batch is running, in bytes.
        shards: number of batches that may hold memory at once, one for each shard in flight.

    Returns:
        1 to MAX_BATCH_SIZE.
    """
    peak_bytes(1)  # a warm-up: libraries allocate their workspaces at first use
    one = peak_bytes(1)
    two = peak_bytes(2) if one is not None else None
    if one is None or two is None:
        return 1
    use, usable = MemoryUse.between(one, two), _USABLE * free_bytes() / shards
    size = MAX_BATCH_SIZE
    while size > 1 and use.of(size) > usable:
        size //= 2
    # Run the predicted size too: memory need not grow linearly with the batch.
    while size > 2 and peak_bytes(size) is None:
        size //= 2
    return size
