"""Saves and restores checkpoints of a stage, and keeps the moving average of its weights.

A checkpoint is written under a temporary name and then renamed, so that a kill leaves the previous one intact.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xsam_model.conversion.new_output import whole_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

_STATE_FILE = "progress.json"
# File names that accelerate chooses.
_WEIGHTS_FILE, _AVERAGE_FILE = "model.safetensors", "custom_checkpoint_0.pkl"


class MovingAverage:
    """Exponential moving average of the trainable parameters.

    Args:
        network: the network whose parameters are averaged.
        decay: share of the old average that each update keeps, 0 to 1. It is smaller in early updates, so that the
            first random weights are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        learning = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self._names, self._parameters = list(learning), list(learning.values())
        self._averages = [parameter.detach().clone() for parameter in self._parameters]
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the current weights."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        # One call for all parameters: of a small network the calls would cost more than the arithmetic.
        torch._foreach_lerp_(self._averages, [one.detach() for one in self._parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Swap the average with the weights; a second call swaps them back."""
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from: `averages` by parameter name, and `updates`."""
        return {"averages": dict(zip(self._names, self._averages, strict=True)), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state."""
        averages: dict[str, Tensor] = state["averages"]
        for name, mine in zip(self._names, self._averages, strict=True):
            mine.copy_(averages[name])
        self._updates = state["updates"]


def read_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the model's weights in a checkpoint by name, or their moving average if the stage keeps one.

    Raises:
        ValueError: if the folder is not a checkpoint of a stage.
    """
    try:
        state = load_file(checkpoint / _WEIGHTS_FILE)
        averaged = checkpoint / _AVERAGE_FILE
        if averaged.is_file():
            state |= torch.load(averaged, map_location="cpu", weights_only=True)["averages"]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{checkpoint} is no checkpoint of a training stage: {error}") from error
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


class Checkpoints:
    """The checkpoints of one stage.

    Args:
        folder: folder that holds nothing but these checkpoints.
        accelerator: saves and loads weights, optimizer, random states and registered objects.
        settings: settings of the stage as JSON values; a checkpoint with other settings is refused.
        keep: number of checkpoints to keep, the newest ones.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, settings: dict[str, Any], keep: int) -> None:
        self._folder, self._accelerator, self._keep = folder, accelerator, keep
        # Through JSON once, which turns tuples into lists, to compare equal with settings read from a checkpoint.
        self._settings = json.loads(json.dumps(settings))

    def save(self, step: int, seconds: float) -> None:
        """Save the state after `step` updates; every process must call this.

        Args:
            step: number of updates so far.
            seconds: time spent on the stage so far.
        """
        final, is_main = self._folder / f"step-{step:08d}", self._accelerator.is_main_process
        # A step may be due twice: by count or time, and as the last one.
        if final.is_dir():
            return
        self._accelerator.wait_for_everyone()
        with whole_folder(final, is_owner=is_main) as beside:
            # No process writes before the folder is empty, and it gets its name after all have written their parts.
            self._accelerator.wait_for_everyone()
            self._accelerator.save_state(str(beside))
            self._accelerator.wait_for_everyone()
            if is_main:
                state = {"step": step, "seconds": seconds, "settings": self._settings}
                (beside / _STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if is_main:
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old)
        self._accelerator.wait_for_everyone()

    def restore(self) -> tuple[int, float]:
        """Restore the latest checkpoint.

        Returns:
            Number of updates and seconds so far; 0 and 0 if there is no checkpoint.

        Raises:
            ValueError: if it was written with other settings.
        """
        found = self._all()
        if not found:
            return 0, 0.0
        state = json.loads((found[-1] / _STATE_FILE).read_text(encoding="utf-8"))
        differ = [
            name
            for name in sorted({*state["settings"], *self._settings})
            if state["settings"].get(name) != self._settings.get(name)
        ]
        if differ:
            raise ValueError(
                f"{found[-1]} was written with other settings of {', '.join(differ)}: choose another output"
            )
        self._accelerator.load_state(str(found[-1]))
        return state["step"], state["seconds"]

    def _all(self) -> list[Path]:
        return sorted(self._folder.glob("step-*"))
