"""``python -m benchmarks.gpu.aims FOLDER``: what was measured on a GPU beside what is aimed at."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SHARE_OF_MATRIX_RATE = 0.5
BUSY_SHARE = 0.95


class Reached(NamedTuple):
    """A share that was measured, None where it could not be, and the least that is aimed at."""

    what: str
    value: float | None
    aim: float

    @property
    def is_met(self) -> bool:
        """Whether it was measured and is as large as is aimed at."""
        return self.value is not None and self.value >= self.aim


def compare(forward: dict[str, Any], whole_run: dict[str, Any]) -> Iterator[Reached]:
    """Yield what full_size_forward.json and whole_run.json say of the aims."""
    best = max(forward["cases"], key=lambda case: float(case["tflop_per_second"]))
    what = f"a large matrix product's rate, batch {best['batch']}, {best['categories']} categories"
    yield Reached(what, best["share_of_measured_peak"], SHARE_OF_MATRIX_RATE)
    yield Reached("device busy in a whole run", whole_run["device_busy_share"], BUSY_SHARE)


def main(folder: Path) -> int:
    """Print them, and return 0 if all are met."""
    forward, whole_run = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("full_size_forward", "whole_run")
    )
    reached = list(compare(forward, whole_run))
    for one in reached:
        value = "not measured" if one.value is None else f"{one.value:.1%}"
        print(f"{'met   ' if one.is_met else 'MISSED'} {one.what}: {value}, aim {one.aim:.0%}")
    return 0 if all(one.is_met for one in reached) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
