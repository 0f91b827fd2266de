"""Whether memory grows over thousands of small images: what a process holds after every shard that it labels.

python -m benchmarks.memory_curve draw docs/memory_curve.png: the long form, and a picture of it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from PIL import Image as PilImage
from rich.console import Console

from actors.pool.config import PoolConfig
from actors.pool.in_process import InProcessRunner
from actors.pool.runner import ShardFailure
from actors.predictor.config import PredictorConfig
from actors.predictor.labeler import RunLabeler
from benchmarks.photos import example_photos, random_crop, synthetic_photo
from benchmarks.report import Figure, Report, print_reports
from benchmarks.threshold_predictor import ThresholdPredictor
from benchmarks.timing import peak_rss_mb, run_child
from flows.prompts import named_prompts
from pipelines.labeling.shard import LabelJob
from pipelines.planning.draft import PlanConfig, plan_shards
from pipelines.sources.listing import list_images
from pipelines.types import Predictor

NAME = "memory_curve"
FAKE, TINY_MODEL = "no model", "xsam-tiny"
CATEGORIES = ("cat", "dog", "umbrella", "house")
SIZES_WH = ((200, 150), (150, 200), (192, 128), (160, 160), (240, 160))
FORMATS = (("jpg", "JPEG", {"quality": 90}), ("png", "PNG", {}), ("webp", "WEBP", {"quality": 80}))
_PICTURES = 60
_SHARD = 50
_COUNTS = {FAKE: 2_000, TINY_MODEL: 400}
_LONG_COUNTS = {FAKE: 20_000, TINY_MODEL: 3_000}
_TINY_COUNTS = {FAKE: 8, TINY_MODEL: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Resident memory over a process that labels, in MB of 10**6 bytes.

    Attributes:
        images: labeled so far, when a shard was committed.
        rss_mb: then.
        start_mb: the predictor loaded, nothing labeled.
        peak_mb: the most at any time.
        seconds: of labeling.
        masks: in the table.
    """

    images: Sequence[int]
    rss_mb: Sequence[float]
    start_mb: float
    peak_mb: float
    seconds: float
    masks: int

    def quarter(self, number: int) -> float:
        """Return the median over one quarter of the shards, 0 to 3."""
        edges = [len(self.rss_mb) * edge // 4 for edge in (number, number + 1)]
        return statistics.median(self.rss_mb[slice(*edges)])

    def slope(self) -> float:
        """Return MB for each 1,000 images after the first quarter."""
        first = len(self.images) // 4
        return 1000 * statistics.linear_regression(self.images[first:], self.rss_mb[first:]).slope


def run(*, tiny: bool = False) -> Report:
    """Label a few images with each predictor."""
    return report({name: measure(name, count) for name, count in (_TINY_COUNTS if tiny else _COUNTS).items()})


def measure(predictor: str, count: int, *, settle_every: int = 0) -> Curve:
    """Label images in a process of its own.

    Args:
        predictor: FAKE or TINY_MODEL.
        count: images.
        settle_every: shards that are handed out together; see ``label``.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_small_images(Path(folder, "images"), count)
        size = min(_SHARD, max(1, count // 4))
        command = ("label", predictor, folder, str(size), f"--settle-every={settle_every}")
        return Curve(**run_child("benchmarks.memory_curve", *command))


def write_small_images(folder: Path, count: int) -> None:
    """Write files of FORMATS and SIZES_WH in turn: a few dozen pictures, again and again under other names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    originals = [PilImage.open(path).convert("RGB") for path in example_photos()]
    originals = originals or [synthetic_photo(rng, 1280, 960)]
    pictures = []
    for number in range(min(count, _PICTURES)):
        suffix, file_format, options = FORMATS[number % len(FORMATS)]
        buffer = io.BytesIO()
        picture = random_crop(originals[number % len(originals)], SIZES_WH[number % len(SIZES_WH)], rng)
        picture.save(buffer, file_format, **options)
        pictures.append((suffix, buffer.getvalue()))
    for number in range(count):
        suffix, data = pictures[number % len(pictures)]
        (folder / f"{number:06d}.{suffix}").write_bytes(data)


def decoded_mb() -> float:
    """Return the mean size of a decoded image, in MB."""
    return statistics.mean(3 * width * height for width, height in SIZES_WH) / 1e6


def label(predictor: Predictor, folder: Path, images_per_shard: int, settle_every: int = 0) -> Curve:
    """Label the images of the folder as a replica does, two shards at once, and read the memory after each.

    Args:
        predictor: asked for CATEGORIES.
        folder: holds ``images``; the table goes there too.
        images_per_shard: of the plan.
        settle_every: if positive, memory is read after so many shards instead, when none is under way and malloc has
            given back what is free.
    """
    prompts = tuple(named_prompts("ovseg", CATEGORIES))
    labeler = RunLabeler(predictor, LabelJob(run_id="bench", prompts=prompts), str(folder / "output"))
    shards = plan_shards(list_images(str(folder / "images")), PlanConfig(images_per_shard=images_per_shard))
    wave = settle_every or len(shards)
    memory, started = psutil.Process().memory_info, time.perf_counter()
    start_mb = memory().rss / 1e6
    images, rss_mb, done, masks = list[int](), list[float](), 0, 0
    with InProcessRunner(lambda: labeler, PoolConfig(runner="in_process")) as runner:
        for first in range(0, len(shards), wave):
            for result in runner.map(shards[first : first + wave]):
                if isinstance(result, ShardFailure) or result.status_counts.get("quarantined"):
                    raise RuntimeError(f"a shard failed: {result}")
                done += sum(result.status_counts.values())
                masks += result.num_annotations
                if not settle_every:
                    images.append(done)
                    rss_mb.append(memory().rss / 1e6)
            if settle_every:
                give_back_freed()
                images.append(done)
                rss_mb.append(memory().rss / 1e6)
    seconds = time.perf_counter() - started
    return Curve(images=images, rss_mb=rss_mb, start_mb=start_mb, peak_mb=peak_rss_mb(), seconds=seconds, masks=masks)


def give_back_freed() -> None:
    """Let malloc give free pages back to the system."""
    ctypes.CDLL(None).malloc_trim(0)


def report(curves: Mapping[str, Curve]) -> Report:
    """Say what the curves are."""
    figures: list[Figure] = []
    for name, curve in curves.items():
        about = f"{name}, {curve.images[-1]:,} images"
        figures += [
            Figure(what=f"{about}: ready, nothing labeled", value=curve.start_mb, unit="MB"),
            Figure(what=f"{about}: second quarter", value=curve.quarter(1), unit="MB"),
            Figure(what=f"{about}: last quarter", value=curve.quarter(3), unit="MB"),
            Figure(what=f"{about}: growth after the first quarter", value=curve.slope(), unit="MB/1,000 images"),
            Figure(what=f"{about}: most at any time", value=curve.peak_mb, unit="MB"),
        ]
    sizes = ", ".join(f"{width} x {height}" for width, height in SIZES_WH)
    return Report(
        name=NAME,
        question="does memory grow over thousands of small images?",
        method=(
            "Each curve is a process of its own that labels files through the in-process runner, two shards in flight: "
            "fetch, decode, masks, RLE, Parquet, commits to the local disk. Its resident memory is read whenever a "
            'shard is committed; a quarter\'s figure is the median over its shards. "No model" answers with the '
            "blocks above the mean brightness. `python -m benchmarks.memory_curve draw FILE` is the long form."
        ),
        setup={
            "images": f"JPEG, PNG and WebP in turn, of {sizes}: {decoded_mb():.2f} MB decoded on average",
            "shards": f"up to {_SHARD} images",
            "masks": "; ".join(f"{name} {c.masks / c.images[-1]:.1f} for each image" for name, c in curves.items()),
            "took": "; ".join(f"{name} {c.seconds:.0f} s" for name, c in curves.items()),
        },
        figures=tuple(figures),
    )


def draw(curves: Mapping[str, Curve], picture: Path) -> None:
    """Draw the curves beside each other, from zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(8, 2.8), dpi=110, squeeze=False)
    for axis, (name, curve) in zip(axes[0], curves.items(), strict=True):
        axis.plot(curve.images, curve.rss_mb, linewidth=1)
        axis.axhline(curve.quarter(1), color="gray", linewidth=0.8, linestyle="dotted")
        axis.set_ylim(0, 1.15 * curve.peak_mb)
        axis.set_xlim(0, curve.images[-1])
        axis.set_title(f"{name}: {curve.slope():+.2f} MB per 1,000 images", fontsize=9)
        axis.set_xlabel("images labeled", fontsize=9)
        axis.set_ylabel("resident memory, MB", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=5)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(picture)


def load(predictor: str) -> Predictor:
    """Return the predictor of this name."""
    if predictor == FAKE:
        return ThresholdPredictor()
    import torch

    from actors.predictor.predictor import XSamPredictor

    torch.set_num_threads(1)
    with contextlib.redirect_stderr(io.StringIO()):
        return XSamPredictor(PredictorConfig(device="cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory_curve", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="measure the long form, and draw it")
    drawing.add_argument("picture", type=Path)
    labeling = commands.add_parser("label", help="label a folder's images, and print the curve as JSON")
    labeling.add_argument("predictor", choices=(FAKE, TINY_MODEL))
    labeling.add_argument("folder", type=Path)
    labeling.add_argument("images_per_shard", type=int)
    labeling.add_argument("--settle-every", type=int, default=0, metavar="SHARDS")
    options = parser.parse_args()
    if options.command == "label":
        predictor = load(options.predictor)
        curve = label(predictor, options.folder, options.images_per_shard, options.settle_every)
        print(json.dumps(asdict(curve)))
        return
    curves = {name: measure(name, count) for name, count in _LONG_COUNTS.items()}
    draw(curves, options.picture)
    print_reports([report(curves)], Console(width=120))


if __name__ == "__main__":
    main()
