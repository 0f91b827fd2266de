"""Whose turn it is on a device: one pass of the network at a time, other threads' copies and masks beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


class Turns:
    """Lets several threads use one loaded network: while it computes one batch, another is prepared or read out.

    On the CPU this is a lock. On a GPU every thread copies and makes masks on a stream of its own, which the network's
    passes, all on the device's default stream, neither wait for nor hold up.

    Args:
        device: where the network is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turn = threading.Lock()
        self._local = threading.local()

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Do what follows beside other threads' passes; everything it began on a GPU must be read out at its end."""
        if self._device.type != "cuda":
            yield
            return
        if not hasattr(self._local, "stream"):
            # A high priority: masks are small work that would otherwise wait for the other batch's whole pass.
            self._local.stream = torch.cuda.Stream(self._device, priority=-1)
        with torch.cuda.stream(self._local.stream):
            yield

    def network(self, run: Callable[[], T]) -> T:
        """Run the network inside ``beside``: what the thread did before is seen by it, its output by what follows."""
        with self._turn:
            if self._device.type != "cuda":
                return run()
            mine, network = torch.cuda.current_stream(self._device), torch.cuda.default_stream(self._device)
            network.wait_stream(mine)
            with torch.cuda.stream(network):
                output = run()
            # Inside the turn: the next thread's pass is not to be waited for.
            mine.wait_stream(network)
            return output
