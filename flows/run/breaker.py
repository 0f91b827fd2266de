"""Stop a run if too many of its images are quarantined, because the images are then unlikely to be the cause."""

from __future__ import annotations

from collections import Counter

from flows.config import LimitsConfig
from pipelines.types import ShardReceipt, Status


class CircuitBreaker:
    """Counts the images that this invocation labeled or quarantined, and says when to stop.

    Args:
        limits: the limits at which to stop.

    Attributes:
        reason: why the run is to stop; empty while it may go on.
    """

    def __init__(self, limits: LimitsConfig) -> None:
        self.reason = ""
        self._limits = limits
        self._images: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    def add(self, receipt: ShardReceipt) -> bool:
        """Count a shard; return True once, when the limit is exceeded."""
        self._images.update(receipt.status_counts)
        self._reasons.update(receipt.reason_counts)
        seen, bad = self._images.total() - self._images[Status.FORGOTTEN], self._images[Status.QUARANTINED]
        limit = self._limits.max_quarantined_share
        if self.reason or seen < self._limits.after_images or bad <= limit * seen:
            return False
        most, count = self._reasons.most_common(1)[0]
        self.reason = (
            f"stopped: {bad} of {seen} images could not be labeled (limits.max_quarantined_share is {limit:g}), most "
            f"of them, {count}, for {most!r}; their rows in `images` say more, and a higher limit lets the run go on"
        )
        return True
