"""CUDA streams for copying inputs and reading results while the network computes.

Work in a stream waits for everything queued there before it. If several threads use a network in turn, the next batch
may be queued before the results of the last one are read; on the network's own stream they would then arrive one batch
late, and meanwhile the GPU runs idle.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

# A higher priority, since these are small kernels that should not queue behind the network's large ones.
_READING_PRIORITY = -1


class DeviceStreams:
    """Side streams of a GPU; the network runs on the current stream. Without a GPU everything happens in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._of_thread = threading.local()

    def copy(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Start copying tensors to the device; call the returned function on the network's stream to get the copies."""
        if self._copies is None:
            return lambda: [tensor.to(self._device) for tensor in tensors]
        with torch.cuda.stream(self._copies):
            # Copies from pageable memory would block the calling thread.
            copies = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            there = self._copies.record_event()

        def copied() -> list[Tensor]:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(there)
            # Otherwise the allocator could reuse a copy's memory for the next one while the network still reads it.
            for copy in copies:
                copy.record_stream(stream)
            return copies

        return copied

    def mark(self) -> torch.cuda.Event | None:
        """Return an event after everything that the network was given so far; None without a GPU."""
        return None if self._copies is None else torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def beside(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """Run a block on a stream of the calling thread that waits for the mark, but for nothing queued after it.

        Inside the block, keep references to what was computed before the mark, and copy results to the host before it
        ends.
        """
        if mark is None:
            yield
            return
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self._device, priority=_READING_PRIORITY)
        self._of_thread.stream.wait_event(mark)
        with torch.cuda.stream(self._of_thread.stream):
            yield
