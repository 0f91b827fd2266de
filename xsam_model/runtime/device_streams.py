"""What a GPU does beside the network: copies to it, and the reading of what the network has found.

Kernels of one stream wait for all that it was given before. Of a network that several threads use in turn that is the
next batch too: results that are read on its own stream come one batch late, and meanwhile the GPU runs dry.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

# Small kernels between the network's large ones: they are to go first.
_READING_PRIORITY = -1


class DeviceStreams:
    """The streams beside the network's, which is the current one; without a GPU everything happens in turn."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._of_thread = threading.local()

    def copy(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to copy to the device; the function that is returned is called before use, on the network's stream."""
        if self._copies is None:
            return lambda: [tensor.to(self._device) for tensor in tensors]
        with torch.cuda.stream(self._copies):
            copies = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            there = self._copies.record_event()

        def copied() -> list[Tensor]:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(there)
            for copy in copies:
                copy.record_stream(stream)
            return copies

        return copied

    def mark(self) -> torch.cuda.Event | None:
        """Return a mark behind all that the network was given so far; None without a GPU."""
        return None if self._copies is None else torch.cuda.current_stream(self._device).record_event()

    @contextmanager
    def beside(self, mark: torch.cuda.Event | None) -> Iterator[None]:
        """Compute, inside, on a stream of the calling thread that waits for the mark and for nothing behind it.

        What was computed before the mark must be held, and what is computed here be copied to the host, before it ends.
        """
        if mark is None:
            yield
            return
        if not hasattr(self._of_thread, "stream"):
            self._of_thread.stream = torch.cuda.Stream(self._device, priority=_READING_PRIORITY)
        self._of_thread.stream.wait_event(mark)
        with torch.cuda.stream(self._of_thread.stream):
            yield


__all__ = ["DeviceStreams"]
