"""How many images a second xsam-tiny labels on one core, from decoded pixels to masks as RLE."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

from actors.predictor.config import PredictorConfig
from actors.predictor.predictor import XSamPredictor
from benchmarks.models import num_parameters, one_torch_thread
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from flows.prompts import named_prompts
from pipelines.images.decode import decode_image
from pipelines.types import Image, ImageRef, Prompt

NAME = "tiny_rate"
SCENES = Path(__file__).parents[1] / "examples" / "scenes"
BATCHES = (1, 8)


def run(*, tiny: bool = False) -> Report:
    """Time labeling the example scenes one by one and eight at a time."""
    copies, rounds = (1, 1) if tiny else (4, 5)
    images = read_scenes()[: 8 if tiny else None] * copies
    names = [one["name"] for one in json.loads((SCENES / "instances.json").read_text())["categories"]]
    prompts = tuple(named_prompts("ovseg", names[:16]))
    with contextlib.redirect_stderr(io.StringIO()):
        predictor = XSamPredictor(PredictorConfig(device="cpu"))
    with one_torch_thread():
        loops = {f"{size}": lambda size=size: label(predictor, images, prompts, size) for size in BATCHES}
        timed = time_in_turn(loops, rounds=rounds)
        answers = predictor.predict(images[:8], [prompts] * 8)
    masks = sum(len(answer.masks) for answer in answers) / len(answers)
    figures = [
        Figure(
            what=f"xsam-tiny, one core, batch {size}",
            value=len(images) / timed.best(f"{size}"),
            unit="images/s",
            repeats=tuple(len(images) / seconds for seconds in timed.seconds[f"{size}"]),
        )
        for size in BATCHES
    ]
    ratio = timed.speed_ratio("8", "1")
    figures.append(Figure(what="batch 8 : batch 1", value=ratio, unit="x", repeats=tuple(timed.speed_ratios("8", "1"))))
    return Report(
        name=NAME,
        question="how fast does xsam-tiny label?",
        method=(
            "`predict` on decoded images: preparing them, the network, enlarging each mask to its image and encoding "
            "it. torch computes on one thread."
        ),
        setup={
            "model": f"xsam-tiny, {num_parameters(predictor) / 1e6:.1f} M parameters, float32",
            "images": f"{len(images)}, the example scenes of 256 x 256 pixels",
            "asked": f"{len(prompts)} names; {masks:.1f} masks for each image",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=tuple(figures),
    )


def read_scenes() -> list[Image]:
    """Read the example scenes."""
    return [
        decode_image(path.read_bytes(), ImageRef(image_id=path.name, uri=str(path)))
        for path in sorted(SCENES.glob("*.png"))
    ]


def label(predictor: XSamPredictor, images: Sequence[Image], prompts: Sequence[Prompt], size: int) -> None:
    """Ask the prompts of all images, so many at a time."""
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        predictor.predict(batch, [prompts] * len(batch))
