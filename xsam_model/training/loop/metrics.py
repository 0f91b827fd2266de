"""Reports metrics of a run: a CSV file, TensorBoard if it is installed, and lines with rate and remaining time."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLUMNS = (
    "stage", "step", "samples", "seconds", "samples_per_second", "learning_rate", "gradient_norm",
    "total", "language", "classes", "mask", "dice", "dense", "tokens",
)  # fmt: skip


class Metrics:
    """Writes the metrics of one stage, one row every few steps.

    Losses are weighted, and averaged over all processes and the steps since the previous row or since the run was
    resumed.

    Args:
        folder: receives `metrics.csv`, and TensorBoard's files in `tensorboard/`.
        stage: name of the stage.
        first_step: rows of later steps, left over by a killed run, are removed.
    """

    def __init__(self, folder: Path, stage: str, first_step: int) -> None:
        self._stage, self._path = stage, folder / "metrics.csv"
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        if self._path.is_file():
            with self._path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if row["step"] and int(row["step"]) <= first_step]
        self._write(rows, "w")
        self._board = _open_board(folder / "tensorboard", first_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write one row; values with unknown names are left out, missing values are empty."""
        row = {name: f"{value:.6g}" for name, value in values.items() if name in COLUMNS}
        self._write([{**row, "stage": self._stage, "step": str(step)}], "a")
        for name, value in values.items():
            if self._board is not None:
                self._board.add_scalar(f"{self._stage}/{name}", value, step)

    def _write(self, rows: list[dict[str, str]], mode: str) -> None:
        with self._path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


def progress_line(stage: str, step: int, steps: int, values: Mapping[str, float]) -> str:
    """Return a line with the stage's progress, losses, rate and remaining time."""
    losses = " ".join(f"{name} {values[name]:.3f}" for name in COLUMNS[7:] if name in values)
    rate = values["samples_per_second"]
    remaining = (steps - step) * values["samples"] / max(step, 1) / max(rate, 1e-9)
    return f"{stage} {step}/{steps}  {losses}  {rate:.1f} images/s  {_duration(remaining)} left"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes} min"


def _open_board(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step + 1)
