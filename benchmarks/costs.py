"""Where the time of labeling goes: the parts of the network and what surrounds it, in milliseconds."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

from actors.predictor import predictor as predictor_module
from actors.predictor.config import PredictorConfig
from actors.predictor.predictor import XSamPredictor
from benchmarks.many_prompts import load_proportional, phrases
from benchmarks.models import one_torch_thread
from benchmarks.photos import write_photos
from benchmarks.report import Figure, Report
from benchmarks.tiny_rate import SCENES, read_scenes
from flows.prompts import named_prompts
from pipelines.images.decode import decode_image
from pipelines.types import Image, Prompt

NAME = "costs"
_REST = "all else"


@contextlib.contextmanager
def watched(predictor: XSamPredictor, spent: Counter[str]) -> Iterator[None]:
    """Add up the seconds of every part, none of which runs inside another."""
    model, processor = predictor.segmenter.model, predictor.segmenter.processor
    parts: list[tuple[str, Any, str]] = [
        ("preparing images", type(processor.image_processor), "__call__"),
        ("vision tower", model, "_encode_vision"),
        ("mask encoder", model.segmentor, "encode"),
        ("connector", model.seg_connector, "forward"),
        ("pixel decoder", model.segmentor.pixel_decoder, "forward"),
        ("language model", model.llm.base_model, "forward"),
        ("transformer decoder", model.segmentor.decoder, "forward"),
        ("masks to RLE", predictor_module, "find_masks"),
    ]
    with ExitStack() as stack:
        for what, owner, name in parts:
            stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), what, spent)))
        yield


def _timed(call: Callable[..., Any], what: str, spent: Counter[str]) -> Callable[..., Any]:
    def timed(*arguments: Any, **options: Any) -> Any:
        begun = time.perf_counter()
        try:
            result = call(*arguments, **options)
            return list(result) if isinstance(result, Iterator) else result
        finally:
            spent[what] += time.perf_counter() - begun  # type: ignore[assignment]  (a Counter of seconds)

    return timed


def spend(predictor: XSamPredictor, images: Sequence[Image], prompts: Sequence[Prompt], rounds: int) -> Counter[str]:
    """Return the milliseconds of each part for each image, of the fastest of several rounds."""
    asked, passes = [prompts] * len(images), list[tuple[float, Counter[str]]]()
    predictor.predict(images, asked)
    for _ in range(rounds):
        spent: Counter[str] = Counter()
        with watched(predictor, spent):
            begun = time.perf_counter()
            predictor.predict(images, asked)
            passes.append((time.perf_counter() - begun, spent))
    whole, spent = min(passes, key=lambda one: one[0])
    spent[_REST] = whole - sum(spent.values())  # type: ignore[assignment]
    return Counter({part: 1000 * seconds / len(images) for part, seconds in spent.items()})


def run(*, tiny: bool = False) -> Report:
    """Take labeling apart: xsam-tiny with names, and a model of the full one's shape with 1 and 16 phrases."""
    rounds = 1 if tiny else 5
    names = [one["name"] for one in json.loads((SCENES / "instances.json").read_text())["categories"]]
    with tempfile.TemporaryDirectory() as folder, one_torch_thread():
        with contextlib.redirect_stderr(io.StringIO()):
            small = XSamPredictor(PredictorConfig(device="cpu"))
        (ref,) = write_photos(Path(folder) / "photos", 1)
        photo = decode_image(Path(ref.uri).read_bytes(), ref)
        shaped = load_proportional(Path(folder) / "model", tiny=tiny)
        found = {
            "xsam-tiny": spend(small, read_scenes()[:8], tuple(named_prompts("ovseg", names[:16])), rounds),
            "1 phrase": spend(shaped, [photo], phrases(1), rounds),
            "16 phrases": spend(shaped, [photo], phrases(16), rounds),
        }
    return Report(
        name=NAME,
        question="where does the time of labeling go?",
        method=(
            "Milliseconds for each image of `predict`, on one torch thread, the fastest round. xsam-tiny: 8 example "
            "scenes at once, 16 names asked of each. Phrases: those of many_prompts, of one image, with its model."
        ),
        setup={"rounds": str(rounds)},
        figures=tuple(
            Figure(what=f"{case}: {part}", value=milliseconds, unit="ms/image")
            for case, spent in found.items()
            for part, milliseconds in (*spent.most_common(), ("in all", sum(spent.values())))
        ),
        remarks=tuple(_largest(case, spent) for case, spent in found.items()),
    )


def _largest(case: str, spent: Counter[str]) -> str:
    whole = sum(spent.values())
    parts = [f"{part} {100 * cost / whole:.0f} %" for part, cost in spent.most_common(3)]
    return f"{case}: the three largest costs are {', '.join(parts)} of {whole:.0f} ms."
