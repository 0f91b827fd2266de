"""Starts training from the command line, by xsam_model.training. No Ray."""

from __future__ import annotations

from pathlib import Path

from pipelines.errors import UserError


class TrainingError(UserError, ValueError):
    """A training run cannot start; the message says what to change in its file."""


def train_model(config: Path, output: str | None, max_minutes: float | None, processes: int) -> int:
    """Run or resume the training that a TOML file describes; see `xsam_model.training.loop.launch`.

    Raises:
        TrainingError: if the file cannot be read or holds a mistake.
    """
    from xsam_model.training.loop.config import read_config
    from xsam_model.training.loop.launch import launch

    try:
        read_config(config)
    except (ValueError, OSError) as error:
        raise TrainingError(str(error)) from error
    return launch(config, output, max_minutes, processes)
