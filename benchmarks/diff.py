"""What comparing two outputs costs: memory and time, of a table and of one with four times the masks."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.export import write_output
from benchmarks.report import Figure, Report
from benchmarks.sql import encode_some
from benchmarks.timing import peak_rss_mb, run_child
from pipelines.masks import rle
from pipelines.storage.store import open_store
from pipelines.types import Rle

NAME = "diff"
_MASKS_PER_IMAGE = 20
_MOVED_PX = 12
_MOVED_SHARE = 0.3


def run(*, tiny: bool = False) -> Report:
    """Compare two outputs, and two with four times the images, each pair in a process of its own."""
    few = 20 if tiny else 5_000
    encoded = encode_some()
    with tempfile.TemporaryDirectory() as folder:
        measured = {}
        for images in (few, 4 * few):
            for side, shapes in (("before", encoded), ("after", _moved(encoded))):
                write_output(Path(folder) / f"{side}-{images}", images, shapes)
            measured[images] = run_child("benchmarks.diff", folder, str(images))
    figures = []
    for images, found in measured.items():
        masks = images * _MASKS_PER_IMAGE
        if found["kept"] + found["moved"] != masks:
            raise RuntimeError(f"{found['kept'] + found['moved']:,} of {masks:,} masks were found again")
        what = f"twice {masks:,} masks"
        figures += [
            Figure(what=f"{what}: most memory", value=found["peak_rss_mb"], unit="MB"),
            Figure(what=f"{what}: time", value=found["seconds"], unit="s"),
            Figure(what=f"{what}: processor time", value=found["cpu_seconds"], unit="s"),
            Figure(what=f"{what}: share that has moved", value=100 * found["moved"] / masks, unit="%"),
        ]
    return Report(
        name=NAME,
        question="does the memory of a comparison grow with the tables?",
        method=(
            "Each case is a process of its own that compares two local outputs and writes the table of changes; the "
            "figure is the most memory that it ever held (VmHWM), libraries included."
        ),
        setup={
            "rows": f"{_MASKS_PER_IMAGE} masks an image, 80 categories, in shards of 500 images",
            "masks": f"of smooth outlines at 640 x 480: a hundred, of which {100 * _MOVED_SHARE:.0f} moved by "
            f"{_MOVED_PX} pixels",
        },
        figures=tuple(figures),
        remarks=("DuckDB may hold 700 MB for sorting each side, and spills the rest.",),
    )


def _moved(encoded: list[Rle]) -> list[Rle]:
    """Return masks of which the first ones lie a little further to the right."""
    number = int(_MOVED_SHARE * len(encoded))
    return [*(rle.encode(np.roll(rle.decode(one), _MOVED_PX, axis=1)) for one in encoded[:number]), *encoded[number:]]


def _compare(folder: Path, images: int) -> dict[str, float]:
    from pipelines.diff.comparison import compare_sides
    from pipelines.diff.sides import Chosen

    sides = [Chosen(store=open_store(str(folder / f"{side}-{images}"))) for side in ("before", "after")]
    place = folder / f"place-{images}"
    place.mkdir()
    started, cpu = time.perf_counter(), time.process_time()
    found = compare_sides(*sides, place, table=place / "changes.parquet", num_largest=12)
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_mb": peak_rss_mb(),
        "kept": found.total.to_dict()["kept"],
        "moved": found.total.to_dict()["moved"],
    }


if __name__ == "__main__":
    print(json.dumps(_compare(Path(sys.argv[1]), int(sys.argv[2]))))
