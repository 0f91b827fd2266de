"""Names of the reference checkpoint and of `XSamForSegmentation`, in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

# Prefix in the reference checkpoint -> prefix here. Every other key has the same name in both.
KEY_MAP = {"visual_encoder.vision_model.": "visual_encoder."}


def to_hf(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of the reference implementation for `XSamForSegmentation.load_state_dict`."""
    return _rename(state_dict, KEY_MAP)


def from_hf(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of `XSamForSegmentation` back to the reference implementation's keys."""
    return _rename(state_dict, {ours: theirs for theirs, ours in KEY_MAP.items()})


def _rename(state_dict: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    renamed = {}
    for key, tensor in state_dict.items():
        old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + key.removeprefix(old)] = tensor
    return renamed


__all__ = ["KEY_MAP", "from_hf", "to_hf"]
