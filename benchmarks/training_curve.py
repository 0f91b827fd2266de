"""Draws the losses of a training run over its images: python -m benchmarks.training_curve RUN --output curve.png"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_LOSSES = ("classes", "mask", "dice", "language", "dense", "tokens")


def draw_curve(run: Path, output: Path, smooth: int = 5) -> Path:
    """Draw every loss of every stage, as means over `smooth` rows of `metrics.csv`, each relative to its first.

    Args:
        run: folder whose folders, in order of their names, hold `metrics.csv`.
        output: picture to write.
        smooth: rows of a mean.
    """
    figure, axes = pyplot.subplots(figsize=(8, 3.6), dpi=110)
    seen = 0
    first: dict[str, float] = {}
    colors = dict(zip(_LOSSES, matplotlib.colormaps["tab10"].colors, strict=False))
    for path in sorted(run.glob("*/metrics.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name in _LOSSES:
            points = [(seen + int(row["samples"]), float(row[name])) for row in rows if row.get(name)]
            means = [
                (points[place][0], sum(value for _, value in points[max(0, place - smooth + 1) : place + 1]) / smooth)
                for place in range(smooth - 1, len(points))
            ]
            if means:
                label = None if name in first else name
                start = first.setdefault(name, means[0][1])
                axes.plot(
                    [at for at, _ in means], [value / start for _, value in means], color=colors[name], label=label
                )
        seen += int(rows[-1]["samples"])
        axes.axvline(seen, color="lightgray", linewidth=1, zorder=0)
        axes.text(seen, 1.05, path.parent.name + " ", ha="right", color="gray", fontsize=8)
    axes.set(xlabel="images", ylabel="loss, relative to its start", ylim=(0, 1.15))
    axes.legend(frameon=False, fontsize=8, ncols=len(_LOSSES), loc="lower left")
    figure.tight_layout()
    figure.savefig(output)
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    print(draw_curve(options.run, options.output))


if __name__ == "__main__":
    main()
