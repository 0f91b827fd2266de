"""``python -m benchmarks.plots``: draw what RESULTS.md holds as docs/measured.png, for the README."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).with_name("RESULTS.md")
PICTURE = Path(__file__).parents[1] / "docs" / "measured.png"


def read_figures(path: Path) -> dict[str, dict[str, float]]:
    """Return the figures of RESULTS.md: by section, by what was measured."""
    found: dict[str, dict[str, float]] = {}
    for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = re.findall(r"^\| (.+?) \| ([\d.,e+-]+) \|", part, re.MULTILINE)
        found[part.partition(":")[0]] = {what: float(value.replace(",", "")) for what, value in rows}
    return found


def draw(figures: dict[str, dict[str, float]], path: Path) -> None:
    """Draw prompts, replicas, RLE and costs side by side.

    Raises:
        KeyError: a section is missing; run its benchmark first.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(12, 5.6), layout="constrained")
    places = canvas.subplot_mosaic("AABBCC;DDDEEE")
    prompts, replicas, rle, peers, costs = (places[name] for name in "ABCDE")
    ratio = " : reference procedure"
    bars(prompts, figures["many_prompts"], rf"(\d+) prompts?: product{ratio}", "{:.1f}x", "prompts of an image")
    prompts.set_title("times as fast as the\nreference procedure")
    bars(replicas, figures["orchestration"], r"(\d+) replicas?", "{:.2f}", "replicas")
    replicas.set_title("share of the time\nat work")
    bars(rle, figures["rle_rate"], r"(\S+(?: x \d+)?), row-major : pycocotools", "{:.1f}x", "size of a mask")
    rle.set_title("RLE: times as fast as\npycocotools")
    parts = {
        what.removeprefix("xsam-tiny: "): value
        for what, value in figures["costs"].items()
        if what.startswith("xsam-tiny: ") and not what.endswith("in all")
    }
    names = list(reversed(parts))
    costs.barh(names, [parts[name] for name in names], color="tab:gray")
    costs.set_title("xsam-tiny on one core:\nms an image")
    whole = ": whole command"
    engines = {what.removesuffix(whole): value for what, value in figures["peers"].items() if what.endswith(whole)}
    slowest_first = sorted(engines, key=engines.__getitem__, reverse=True)
    colors = ["tab:blue" if name.startswith("ours") else "tab:gray" for name in slowest_first]
    labels = [re.sub(r",? 2 (actors|processes|replicas)", "", name) for name in slowest_first]
    drawn = peers.barh(labels, [engines[name] for name in slowest_first], color=colors)
    peers.bar_label(drawn, fmt="%.0f", padding=2)
    peers.margins(x=0.1)
    peers.set_title("400 images on two cores:\nseconds of a whole command, two workers")
    for axes in (prompts, replicas, rle, peers, costs):
        axes.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, dpi=110)


def bars(axes: Axes, figures: dict[str, float], pattern: str, label: str, what: str) -> None:
    """Draw the figures whose name fits, by the part of it that the pattern holds.

    Raises:
        KeyError: none does.
    """
    found = {match[1]: value for name, value in figures.items() if (match := re.fullmatch(pattern, name))}
    if not found:
        raise KeyError(f"no figure is called like {pattern!r}: {', '.join(figures)}")
    drawn = axes.bar([fill(name, 6) for name in found], list(found.values()), color="tab:blue")
    axes.bar_label(drawn, [label.format(value) for value in found.values()])
    axes.margins(y=0.15)
    axes.set_xlabel(what)


if __name__ == "__main__":
    draw(read_figures(RESULTS), PICTURE)
    print(f"drew {PICTURE}")
