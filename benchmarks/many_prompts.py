"""One image and many prompts: the product's path against what the reference implementation does for each of them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional
from transformers import LogitsProcessor, LogitsProcessorList

from actors.predictor.config import TINY_MODEL, PredictorConfig, model_folder
from actors.predictor.predictor import XSamPredictor
from benchmarks.models import num_parameters, one_torch_thread
from benchmarks.photos import write_photos
from benchmarks.report import Figure, Report
from benchmarks.timing import time_in_turn
from flows.prompts import named_prompts
from pipelines.images.decode import decode_image
from pipelines.types import Image, Prompt
from xsam_model.configuration_xsam import XSamConfig
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.testing import save_untrained

NAME = "many_prompts"
COUNTS = (1, 4, 16)
_ANSWER = "It is <SEG>.<|end|>"
_MAX_DIFFERENCE = 0.01


class Forced(LogitsProcessor):
    """Makes the language model give one answer: random weights would not end theirs."""

    def __init__(self, answer: Sequence[int]) -> None:
        self._answer, self._step = answer, 0

    def __call__(self, _input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._answer[self._step]] = 0
        self._step += 1
        return forced


# Narrow layers, but as many tokens of an image (1,753), queries and mask predictions as the released model has.
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "vision_config": {
        **{"image_size": 384, "patch_size": 14, "num_hidden_layers": 4},
        **{"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4},
    },
    "mask_encoder_config": {
        **{"image_size": 1024, "patch_size": 16, "num_hidden_layers": 4, "global_attn_indexes": [3], "window_size": 14},
        **{"hidden_size": 96, "mlp_dim": 384, "num_attention_heads": 3},
    },
    "text_config": {
        **{"num_hidden_layers": 6, "max_position_embeddings": 4096, "sliding_window": 2047},
        **{"hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8, "num_key_value_heads": 8},
    },
    "segmentor_config": {"num_queries": 200, "decoder_layers": 10},
}


def load_proportional(folder: Path, *, tiny: bool) -> XSamPredictor:
    """Write and load an untrained model of _SIZES, which cuts text into words as xsam-tiny does."""
    tiny_model = str(model_folder(TINY_MODEL))
    values = XSamConfig.from_pretrained(tiny_model).to_dict()
    for part, sizes in () if tiny else _SIZES.items():
        values[part] |= sizes
    tokenizer = XSamProcessor.from_pretrained(tiny_model).tokenizer
    with contextlib.redirect_stderr(io.StringIO()):
        save_untrained(folder, config=XSamConfig(**values), tokenizer=tokenizer)
        return XSamPredictor(PredictorConfig(path=str(folder), device="cpu", min_score=0.0))


def phrases(count: int) -> tuple[Prompt, ...]:
    """Return so many phrases, each asked alone."""
    places = ("left", "right", "top", "bottom", "middle", "corner", "back", "front")
    names = [f"the {'small' if number % 2 else 'large'} thing at the {places[number // 2]}" for number in range(count)]
    return tuple(named_prompts("refseg", names))


@torch.inference_mode()
def reference_procedure(predictor: XSamPredictor, image: Image, prompt: Prompt) -> tuple[float, dict[str, object]]:
    """Do for one prompt what the reference does: encode the image anew, generate the answer, enlarge every mask.

    X-SAM's released evaluation runs one prompt at a time through `generate`, and enlarges the mask logits of all
    queries of every decoder layer to the canvas, then those of the last one to the image (FP32, on this device).

    Returns:
        The score, and COCO RLE.
    """
    segmenter = predictor.segmenter
    model, processor = segmenter.model, segmenter.processor
    inputs = processor(images=[image.pixels], task="refseg", conditions=[[prompt.text]], generate=True)
    answer = processor.tokenizer(_ANSWER, add_special_tokens=False).input_ids
    output = model.generate(
        **inputs.for_model(),
        stop_token_ids=[answer[-1]],
        max_new_tokens=len(answer),
        logits_processor=LogitsProcessorList([Forced(answer)]),
    )
    side = model.config.mask_encoder_config.image_size
    for _ in range(1 + model.config.segmentor_config.decoder_layers):  # all but the last of them nobody reads
        canvas = functional.interpolate(output.mask_logits, (side, side), mode="bilinear")
    (scaled, size) = inputs["scaled_sizes"][0], image.size_hw
    cut = canvas[:, :, : scaled[0], : scaled[1]]
    masks = functional.interpolate(cut, size, mode="bilinear")[0].sigmoid()
    scores = output.class_logits[0].softmax(-1)[:, 0]
    best = int(scores.argmax())
    mask = (masks[best] > 0.5).numpy()
    return float(scores[best]), coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def run(*, tiny: bool = False) -> Report:
    """Time both for 1, 4 and 16 prompts, and compare their masks."""
    counts, rounds = ((1, 2), 1) if tiny else (COUNTS, 2)
    with tempfile.TemporaryDirectory() as folder, one_torch_thread():
        predictor = load_proportional(Path(folder) / "model", tiny=tiny)
        (ref,) = write_photos(Path(folder) / "photos", 1)
        image = decode_image(Path(ref.uri).read_bytes(), ref)
        asked = {count: phrases(count) for count in counts}
        worst = max(_difference(predictor, image, prompt) for prompt in asked[counts[-1]])
        if worst > _MAX_DIFFERENCE:
            raise RuntimeError(f"the two give other masks: {worst:.2%} of the pixels differ")
        loops = {}
        for count in counts:
            loops[f"ours {count}"] = lambda count=count: predictor.predict([image], [asked[count]])
            loops[f"reference {count}"] = lambda count=count: [
                reference_procedure(predictor, image, prompt) for prompt in asked[count]
            ]
        timed = time_in_turn(loops, rounds=rounds, warm_up=False)  # comparing was that
        parameters, decoder = num_parameters(predictor) / 1e6, predictor.segmenter.model.config.segmentor_config
        features = predictor.segmenter.encode([image.pixels]).features
        num_tokens = features.vision_tokens.shape[1] + features.segmentor_tokens.shape[1]
    figures = []
    for count in counts:
        named = f"{count} prompt{'s' * (count > 1)}"
        rates = tuple(count / seconds for seconds in timed.seconds[f"ours {count}"])
        figures.append(Figure(what=f"{named} of an image", value=max(rates), unit="prompts/s", repeats=rates))
        ratios = tuple(timed.speed_ratios(f"ours {count}", f"reference {count}"))
        ratio = timed.speed_ratio(f"ours {count}", f"reference {count}")
        figures.append(Figure(what=f"{named}: product : reference procedure", value=ratio, unit="x", repeats=ratios))
    return Report(
        name=NAME,
        question="what does a further prompt of an image cost?",
        method=(
            "Referring phrases of one image. The product encodes the image once, lets the language model read it "
            "once, and asks all phrases together, up to RLE. The reference procedure, with the same network and "
            "weights, does for each phrase what the released evaluation does: encodes the image, generates the answer "
            "token by token, enlarges the masks of all queries of every layer, then those of the last layer to the "
            "image, and encodes one with pycocotools. Their masks are compared first."
        ),
        setup={
            "model": (
                f"untrained, {parameters:.0f} M parameters, float32; images of {num_tokens:,} tokens, "
                f"{decoder.num_queries} queries and {decoder.decoder_layers} mask predictions of each"
            ),
            "image": f"one JPEG of {image.size_hw[1]} x {image.size_hw[0]}",
            "masks": f"differ in {worst:.3%} of the pixels at most",
            "threads": "torch 1",
            "rounds": str(rounds),
            "other programs": timed.say_others(),
        },
        figures=tuple(figures),
    )


def _difference(predictor: XSamPredictor, image: Image, prompt: Prompt) -> float:
    """Return the share of the pixels in which the two masks of a prompt differ."""
    (answer,) = predictor.predict([image], [[prompt]])
    _, theirs = reference_procedure(predictor, image, prompt)
    size = np.prod(image.size_hw)
    ours = coco_mask.decode(answer.masks[0].segmentation.to_coco()) if answer.masks else np.zeros(image.size_hw)
    return float(np.count_nonzero(ours != coco_mask.decode(theirs)) / size)
