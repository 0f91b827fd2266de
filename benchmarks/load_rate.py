"""How fast images are fetched and decoded ahead of the model, against bare Pillow in one thread."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.photos import describe_photos, write_photos
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from pipelines.labeling.shard import LabelConfig, LabelJob, load_images
from pipelines.types import ImageRef

NAME = "load_rate"
THREADS = (1, 2, 4)


def run(*, tiny: bool = False) -> Report:
    """Time bare decoding against the pipeline's loader with 1, 2 and 4 threads."""
    count, rounds = (4, 1) if tiny else (128, 7)
    with tempfile.TemporaryDirectory() as folder:
        refs = write_photos(Path(folder), count, shrink=4 if tiny else 1)
        loops = {"bare": lambda: bare(refs)}
        loops |= {f"{n}": lambda n=n: load(refs, n) for n in THREADS}
        timed = time_in_turn(loops, rounds=rounds)
        setup = {"images": describe_photos(refs), "rounds": str(rounds), "other programs": timed.say_others()}
    rates = {name: tuple(count / s for s in seconds) for name, seconds in timed.seconds.items()}
    figures = [Figure(what="Pillow alone, 1 thread", value=max(rates["bare"]), unit="images/s", repeats=rates["bare"])]
    for threads in THREADS:
        what, rate = f"fetch and decode, {threads} thread{'s' * (threads > 1)}", rates[f"{threads}"]
        figures.append(Figure(what=what, value=max(rate), unit="images/s", repeats=rate))
    for threads in THREADS:
        ratios = timed.speed_ratios(f"{threads}", "bare")
        what = f"the same with {threads} thread{'s' * (threads > 1)} : Pillow alone"
        figures.append(
            Figure(what=what, value=timed.speed_ratio(f"{threads}", "bare"), unit="x", repeats=tuple(ratios))
        )
    return Report(
        name=NAME,
        question="how fast are images fetched and decoded?",
        method=(
            "Pillow alone opens each file, converts to RGB and makes an array. The pipeline's loader does that in "
            "threads, in order and within its byte budget, and besides reads the file through fsspec, checks size and "
            "signature, turns by EXIF and takes the SHA-256 of the bytes. Local files, in the page cache."
        ),
        setup=setup,
        figures=tuple(figures),
    )


def bare(refs: Sequence[ImageRef]) -> None:
    """Decode with Pillow and nothing else."""
    for ref in refs:
        with Image.open(ref.uri) as picture:
            np.asarray(picture.convert("RGB"))


def load(refs: Sequence[ImageRef], threads: int) -> None:
    """Load as a shard does, and drop each image at once."""
    job = LabelJob(run_id="bench", prompts=(), config=LabelConfig(load_threads=threads))
    for item in load_images(refs, job):
        item.release()
