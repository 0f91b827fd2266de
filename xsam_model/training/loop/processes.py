"""Collective operations of the processes of a run: means, decisions, and when to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor

from xsam_model.training.loop.config import TrainingConfig


class Stop:
    """Tells all processes alike when to stop: at a deadline, or after SIGTERM or Ctrl-C.

    Inside its context it handles these signals; on leaving, the previous handlers are restored.

    Args:
        accelerator: accelerator of the run.
        deadline: on the clock of `time.monotonic`; None for none.
    """

    def __init__(self, accelerator: Accelerator, deadline: float | None) -> None:
        self._accelerator, self._deadline, self._asked = accelerator, deadline, False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._before[number] = signal.signal(number, self._ask)
            except ValueError:  # not in the main thread, where signals cannot be handled; the caller stops the run
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Return whether to stop; every process must call this after every update."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return agree(self._accelerator, self._asked or late)

    def _ask(self, *_: object) -> None:
        # A signal may come in the middle of an update: the flag is looked at after it, by all processes together.
        self._asked = True


def open_accelerator(config: TrainingConfig) -> Accelerator:
    """Return the accelerator that manages the devices and processes of a run."""
    return Accelerator(
        cpu=config.device == "cpu",
        mixed_precision="bf16" if config.precision == "bfloat16" else "no",
        kwargs_handlers=[DistributedDataParallelKwargs()],
    )


def mean_over(accelerator: Accelerator) -> Callable[[Tensor], Tensor]:
    """Return a function that averages a tensor over all processes, without gradient."""

    def mean(value: Tensor) -> Tensor:
        if accelerator.num_processes == 1:
            return value
        return accelerator.reduce(value.detach().clone(), "mean")

    return mean


def agree(accelerator: Accelerator, asked: bool) -> bool:
    """Return on every process whether any process asks."""
    if accelerator.num_processes == 1:
        return asked
    # A process that acted alone would leave the others waiting for it in their next collective operation.
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum") > 0)
