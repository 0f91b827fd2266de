"""Images that are asked much: in batches of like texts against batches in order, and beyond the window of attention."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch

from actors.predictor.predictor import XSamPredictor
from benchmarks.many_prompts import load_proportional
from benchmarks.models import num_parameters, one_torch_thread
from benchmarks.photos import describe_photos, write_photos
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from flows.prompts import named_prompts
from pipelines.labeling import shard
from pipelines.labeling.isolation import ModelClock
from pipelines.labeling.shard import LabelConfig, LabelJob, label_images
from pipelines.types import ImagePrediction
from xsam_model.layers.language_layers import read_right_padded

NAME = "text_lengths"
_BATCH = 2
_BEYOND = 412  # tokens, as 80 categories have beyond a window of 2,047


def run(*, tiny: bool = False) -> Report:
    """Time both; the masks have to be the same."""
    count, num_categories, rounds = (4, 6, 1) if tiny else (4, 80, 3)
    categories = tuple(named_prompts("ovseg", [f"thing of kind {number}" for number in range(num_categories)]))
    with tempfile.TemporaryDirectory() as folder, one_torch_thread():
        predictor = load_proportional(Path(folder) / "model", tiny=tiny)
        photos = write_photos(Path(folder) / "photos", count)
        one = (categories[0].prompt_id,)
        asked = [replace(ref, common=one) if number % 2 else ref for number, ref in enumerate(photos)]
        job = LabelJob(run_id="bench", prompts=categories, config=LabelConfig(batch_size=_BATCH))

        def alike() -> list[ImagePrediction]:
            return label_images(asked, job, predictor, ModelClock())

        def in_order() -> list[ImagePrediction]:
            with patch.object(shard, "order_by_text", lambda images, _: list(range(len(images)))):
                return alike()

        num_masks = [[len(outcome.masks) for outcome in loop()] for loop in (alike, in_order)]
        if num_masks[0] != num_masks[1]:
            raise RuntimeError(f"the two find other masks: {num_masks}")
        timed = time_in_turn({"alike": alike, "in order": in_order}, rounds=rounds, warm_up=False)  # that was one
        readings = two_readings(predictor)
        reading = time_in_turn(readings, rounds=1 if tiny else 4)
        parameters = num_parameters(predictor) / 1e6
    rates = tuple(count / seconds for seconds in timed.seconds["alike"])
    window = predictor.segmenter.model.config.text_config.sliding_window
    return Report(
        name=NAME,
        question="what is it worth to ask images with much text and such with little apart?",
        method=(
            "Every second image is asked all categories, the others one of them: as in an incremental run in which "
            "categories were added and images too. A shard's images go through the model in batches of like texts, "
            "against batches in the order of the plan, whose texts are padded to the longest. From files to RLE. "
            "And the language model alone, on texts longer than its window of attention: the window cut out of what "
            "fused kernels are given, against transformers' mask of all pairs."
        ),
        setup={
            "model": f"untrained, {parameters:.0f} M parameters, float32: that of many_prompts",
            "images": describe_photos(photos),
            "asked": f"{num_categories} categories or 1; batches of {_BATCH}",
            "beyond the window": f"{_BATCH} texts of {window + _BEYOND:,} tokens, a window of {window:,}",
            "threads": "torch 1",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=(
            Figure(what="batches of like texts", value=max(rates), unit="images/s", repeats=rates),
            Figure(
                what="processor time, batches in order : of like texts",
                value=timed.cpu_ratio("in order", "alike"),
                unit="of the time",
                repeats=tuple(timed.cpu_ratios("in order", "alike")),
            ),
            Figure(
                what="processor time, language model with a mask : without",
                value=reading.cpu_ratio("mask", "cut"),
                unit="of the time",
                repeats=tuple(reading.cpu_ratios("mask", "cut")),
            ),
        ),
    )


def two_readings(predictor: XSamPredictor) -> Mapping[str, Callable[[], torch.Tensor]]:
    """Return the language model on texts longer than its window, as it is used and with a mask; both say the same."""
    config = predictor.segmenter.model.config.text_config
    model = predictor.segmenter.model.llm.base_model
    embeds = torch.randn(_BATCH, config.sliding_window + _BEYOND, config.hidden_size)

    def cut() -> torch.Tensor:
        with torch.inference_mode():
            return read_right_padded(model, embeds)

    def mask() -> torch.Tensor:
        with torch.inference_mode():
            hidden: torch.Tensor = model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            return hidden

    torch.testing.assert_close(cut(), mask(), atol=1e-4, rtol=1e-4)
    return {"cut": cut, "mask": mask}
