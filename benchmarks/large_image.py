"""What the masks of one large image take: memory over the decoded image, and seconds, for one mask and for many."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

from benchmarks.report import Figure, Report
from benchmarks.timing import peak_rss_mb, run_child
from pipelines.types import Image, ImageRef

NAME = "large_image"
SIZES_WH = ((3_000, 2_250), (12_000, 9_000))
MASKS = (1, 10, 100)
_TINY_SIZES_WH, _TINY_MASKS = ((400, 300),), (1, 2)
_WARM_UP_WH = (400, 300)
_BLOCK = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One image asked in a process of its own; sizes in MB of 10**6 bytes.

    Attributes:
        width, height, masks: of the image, and found on it.
        decoded_mb: the image.
        before_mb: resident with the model and the decoded image.
        peak_mb: the most that was resident.
        seconds: of ``predict``: preparing the image, the network, masks, RLE.
        runs: of a mask's RLE, on average.
    """

    width: int
    height: int
    masks: int
    decoded_mb: float
    before_mb: float
    peak_mb: float
    seconds: float
    runs: float

    @property
    def over_mb(self) -> float:
        """Memory that was needed beside the decoded image and the model."""
        return self.peak_mb - self.before_mb

    @property
    def name(self) -> str:
        """Size and masks in words."""
        return f"{self.width:,} x {self.height:,}, {self.masks} {'mask' if self.masks == 1 else 'masks'}"


def run(*, tiny: bool = False) -> Report:
    """Ask about images of each size for few and for many masks."""
    sizes, masks = (_TINY_SIZES_WH, _TINY_MASKS) if tiny else (SIZES_WH, MASKS)
    cases = [measure(size, count) for size in sizes for count in masks]
    figures = []
    for case in cases:
        figures += [
            Figure(what=f"{case.name}: memory over the decoded image", value=case.over_mb, unit="MB"),
            Figure(what=f"{case.name}: of a mask", value=case.runs, unit="runs"),
            Figure(what=f"{case.name}: from decoded pixels to RLE", value=case.seconds, unit="s"),
        ]
    for few, many in zip(cases[:: len(masks)], cases[len(masks) - 1 :: len(masks)], strict=True):
        what = f"{many.name}: memory over the decoded image, to that of one mask"
        figures.append(Figure(what=what, value=many.over_mb / few.over_mb, unit="of the memory"))
    decoded = ", ".join(dict.fromkeys(f"{c.width:,} x {c.height:,}: {c.decoded_mb:,.0f} MB" for c in cases))
    return Report(
        name=NAME,
        question="does memory grow with the masks of a large image?",
        method=(
            "`predict` on one decoded image, in a process of its own and a thread beside the main one, as a replica "
            "has it; torch computes on one thread. The most that was resident (VmHWM) less what was resident before, "
            "with the model and the decoded image. An untrained model with as many queries as masks are wanted, one "
            "category, every mask kept."
        ),
        setup={"decoded": decoded},
        figures=tuple(figures),
        remarks=(
            "Each mask is enlarged, encoded and dropped before the next. The untrained model's masks are the worst "
            "case: they scatter over the whole image, so that none is enlarged in a window smaller than it.",
        ),
    )


def measure(size_wh: tuple[int, int], masks: int) -> Case:
    """Ask about an image of this size for so many masks."""
    return Case(**run_child("benchmarks.large_image", *map(str, (*size_wh, masks))))


def ask(size_wh: tuple[int, int], masks: int) -> Case:
    """Ask about an image in this process, which should have done nothing before."""
    import torch

    from actors.predictor.config import PredictorConfig
    from actors.predictor.predictor import XSamPredictor
    from flows.prompts import named_prompts
    from pipelines.masks import rle
    from xsam_model.testing import save_untrained, untrained_tiny_config

    torch.set_num_threads(1)
    segmentor = {**untrained_tiny_config().segmentor_config.to_dict(), "num_queries": masks}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        save_untrained(Path(folder), config=untrained_tiny_config(segmentor_config=segmentor))
        predictor = XSamPredictor(PredictorConfig(path=folder, device="cpu", min_score=0.0, max_masks_per_image=masks))
    prompts = named_prompts("ovseg", ["cat"])
    with ThreadPoolExecutor(1) as thread:
        thread.submit(predictor.predict, [blocks(_WARM_UP_WH)], [prompts]).result()
        image = blocks(size_wh)
        before_mb, started = psutil.Process().memory_info().rss / 1e6, time.perf_counter()
        (answer,) = thread.submit(predictor.predict, [image], [prompts]).result()
    seconds, peak_mb = time.perf_counter() - started, peak_rss_mb()
    return Case(
        width=size_wh[0],
        height=size_wh[1],
        masks=len(answer.masks),
        decoded_mb=image.pixels.nbytes / 1e6,
        before_mb=before_mb,
        peak_mb=peak_mb,
        seconds=seconds,
        runs=statistics.mean(len(rle.to_runs(mask.segmentation)) for mask in answer.masks),
    )


def blocks(size_wh: tuple[int, int]) -> Image:
    """Return a picture of large blocks of random colors, made without a copy."""
    width, height = size_wh
    colors = np.random.default_rng(0).integers(0, 256, (-(-height // _BLOCK), -(-width // _BLOCK), 3), dtype=np.uint8)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for row in range(height):
        pixels[row] = colors[row // _BLOCK].repeat(_BLOCK, axis=0)[:width]
    return Image(
        ref=ImageRef(image_id="large", uri="large"),
        pixels=pixels,
        exif_orientation=1,
        num_bytes=0,
        content_sha256="",
        decode_ms=0.0,
    )


if __name__ == "__main__":
    width, height, count = map(int, sys.argv[1:])
    print(json.dumps(asdict(ask((width, height), count))))
