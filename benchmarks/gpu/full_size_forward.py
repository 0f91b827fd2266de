"""How fast the full-size network runs on one GPU, with random weights: images/s, share of the device's peak, memory.

    python -m benchmarks.gpu.full_size_forward              # a CUDA device, under four minutes
    python -m benchmarks.gpu.full_size_forward --size tiny  # anywhere: shows that the program works

Nothing is downloaded: the weights are drawn on the device. Writes full_size_forward.json and .png to ``$OUT``, or to
benchmarks/out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.gpu.flops import count_decoders, flops_per_image
from xsam_model.configuration_xsam import XSamConfig
from xsam_model.image_processing_xsam import XSamImageProcessor
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.testing import build_tokenizer, untrained_tiny_config

# Dense bfloat16 operations per second, from the makers' data sheets.
NOMINAL_PEAK = {"H200": 989e12, "H100": 989e12, "GH200": 989e12, "B200": 2250e12, "A100": 312e12, "L40S": 362e12}
SECONDS_PER_CASE = 2.0
CONVERSATIONS_TOGETHER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One batch size and number of categories, and what was measured.

    Attributes:
        sequence_length: tokens of the language model for each image.
        seconds: median of one pass.
        towers_seconds: median of one pass of what depends on the images alone.
        tflop_per_image: by the formulas of benchmarks.gpu.flops.
        peak_memory_gb: most memory allocated during the passes, weights included; 0 on a CPU.
    """

    batch: int
    categories: int
    sequence_length: int
    repeats: int
    seconds: float
    towers_seconds: float
    images_per_second: float
    tflop_per_image: float
    tflop_per_second: float
    share_of_nominal_peak: float | None
    share_of_measured_peak: float | None
    peak_memory_gb: float
    finite: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptsCase:
    """Several questions about each image of a batch, and what was measured.

    Attributes:
        images, prompts: of the batch; of each image.
        text_tokens: of a conversation, beside its image.
        seconds: median of encoding the images, letting the language model read them, and asking all prompts.
        apart_seconds: of asking each prompt with all of that done anew: as many times the median of one pass.
        largest_difference: of the class logits of the two.
        peak_memory_gb: as in Case.
    """

    images: int
    prompts: int
    text_tokens: int
    seconds: float
    apart_seconds: float
    prompts_per_second: float
    largest_difference: float
    peak_memory_gb: float


def main() -> None:
    arguments = parse_arguments()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and arguments.size == "full":
        raise SystemExit("the full size needs a CUDA device; --size tiny runs anywhere")
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    config = untrained_tiny_config() if arguments.size == "tiny" else XSamConfig()
    model = build_model(config, device)
    facts = describe(model, device, arguments.size)
    facts["load_seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps(facts, indent=1), flush=True)
    document: dict[str, Any] = {"facts": facts, "cases": [], "prompts": [], "parts": []}

    def keep(kind: str, measured: Mapping[str, Any]) -> None:
        document[kind].append(measured)
        facts["seconds_in_all"] = round(time.monotonic() - started, 1)
        (out / "full_size_forward.json").write_text(json.dumps(document, indent=1))
        print(f"{facts['seconds_in_all']:6.1f} s  {json.dumps(rounded(measured))}", flush=True)

    keep("parts", measure_parts(model, device, arguments))
    for case in measure_all(model, device, arguments, facts, started + 60 * arguments.minutes):
        keep("cases", asdict(case))
    for questions in measure_prompts(model, device, arguments, facts):
        keep("prompts", asdict(questions))
    draw(document["cases"], facts, out / "full_size_forward.png")
    if not all(case["finite"] for case in document["cases"]):
        raise SystemExit("some logits were not finite")


def rounded(measured: Any) -> Any:
    """Return what was measured with fewer digits, for people."""
    if isinstance(measured, Mapping):
        return {name: rounded(value) for name, value in measured.items()}
    return float(f"{measured:.4g}") if isinstance(measured, float) else measured


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--categories", type=int, nargs="+", default=[12, 80])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4, 16], help="of each image")
    parser.add_argument("--images", type=int, default=4, help="images that are asked so many prompts")
    parser.add_argument("--minutes", type=float, default=3.0, help="begin no further case after so long")
    parser.add_argument("--out", default=os.environ.get("OUT") or str(Path(__file__).parents[1] / "out"))
    return parser.parse_args()


def build_model(config: XSamConfig, device: torch.device) -> XSamForSegmentation:
    """Draw random weights on the device itself: bfloat16 on a GPU, and float32 where the network insists on it."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = XSamForSegmentation(config)
    finally:
        torch.set_default_dtype(before)
    model.segmentor.pixel_decoder.float()
    # Some parameters of transformers are made where no default device is heeded.
    model = model.to(device).eval().requires_grad_(False)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as XSamPredictor does
    return model


def describe(model: XSamForSegmentation, device: torch.device, size: str) -> dict[str, Any]:
    """Return what the figures depend on."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    name = gpu.name if gpu else platform.processor() or platform.machine()
    return {
        "size": size,
        "device": name,
        "device_memory_gb": gpu.total_memory / 1e9 if gpu else None,
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights_gb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9,
        "attention": model.llm.config._attn_implementation,
        "nominal_peak_tflop_per_second": next((p / 1e12 for key, p in NOMINAL_PEAK.items() if key in name), None),
        "measured_peak_tflop_per_second": matmul_peak(device) / 1e12,
        "versions": {package: version(package) for package in ("torch", "transformers", "numpy")},
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def matmul_peak(device: torch.device) -> float:
    """Return the operations per second of a large square matrix product: what this device gives in practice."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / median(time_passes(lambda: left @ right, device, 1.0))


def example(model: XSamForSegmentation, device: torch.device, batch: int, categories: int) -> dict[str, Any]:
    """Return inputs for one image, again and again."""
    return repeated(prepare(make_processor(model.config), 1, categories, device, model.dtype, {}), batch)


def repeated(one: Mapping[str, torch.Tensor], batch: int) -> dict[str, torch.Tensor]:
    """Return the inputs of one image so many times."""
    return {key: value.expand(batch, *value.shape[1:]).contiguous() for key, value in one.items()}


@torch.inference_mode()
def measure_parts(model: XSamForSegmentation, device: torch.device, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the milliseconds of each part of the network for each image of the largest batch; all else is the rest."""
    batch, spent = max(arguments.batches), defaultdict[str, list[float]](list)
    inputs = example(model, device, batch, arguments.categories[0])

    def timed(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            seconds, result = time_once(lambda: call(*inputs, **options), device)
            spent[part].append(seconds)
            return result

        return run

    parts = {
        "vision tower": (model, "_encode_vision"),
        "mask encoder": (model.segmentor, "encode"),
        "connector": (model.seg_connector, "forward"),
        "pixel decoder": (model.segmentor, "decode_pixels"),
        "language model": (model.llm.base_model, "forward"),
        "transformer decoder": (model.segmentor.decoder, "forward"),
    }
    with contextlib.ExitStack() as stack:
        for part, (owner, name) in parts.items():
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name), part)))
        whole = median(time_passes(lambda: model(**inputs), device, SECONDS_PER_CASE))
    milliseconds = {part: 1000 * median(seconds) / batch for part, seconds in spent.items()}
    milliseconds["all else"] = 1000 * whole / batch - sum(milliseconds.values())
    return {"batch": batch, "categories": arguments.categories[0], "ms_per_image": milliseconds}


def measure_all(
    model: XSamForSegmentation,
    device: torch.device,
    arguments: argparse.Namespace,
    facts: dict[str, Any],
    end: float,
) -> Iterator[Case]:
    """Yield a case for every number of categories and batch size that fits the device and the time."""
    processor = make_processor(model.config)
    for categories in arguments.categories:
        one = prepare(processor, 1, categories, device, model.dtype, facts)
        facts["tflop_of_decoders"] = {part: n / 1e12 for part, n in count_decoders(model, one).items()}
        for batch in arguments.batches:
            if time.monotonic() > end:
                print("out of time: the other cases are left out", flush=True)
                return
            try:
                yield measure(model, repeated(one, batch), categories, facts)
            except torch.OutOfMemoryError:
                print(f"batch {batch} with {categories} categories does not fit", flush=True)
                break
            finally:
                if device.type == "cuda":
                    torch.cuda.empty_cache()


def make_processor(config: XSamConfig) -> XSamProcessor:
    """Return a processor of the model's sizes, with a tokenizer of single bytes."""
    image_processor = XSamImageProcessor(
        vision_size=config.vision_config.image_size, segmentor_size=config.mask_encoder_config.image_size
    )
    return XSamProcessor(image_processor, build_tokenizer(), max_text_length=config.max_text_length)


@torch.inference_mode()
def measure_prompts(
    model: XSamForSegmentation,
    device: torch.device,
    arguments: argparse.Namespace,
    facts: dict[str, Any],
) -> Iterator[PromptsCase]:
    """Yield a case for each number of prompts: with the images encoded and read once for all of them, and each anew."""
    images = arguments.images
    inputs = prepare(make_processor(model.config), images, 4, device, model.dtype, facts)
    pixels = inputs["pixel_values"], inputs["segmentor_pixel_values"]
    text = {name: inputs[name] for name in ("input_ids", "attention_mask", "cond_ids", "seg_ids")}
    before = int((text["input_ids"][0] == model.config.image_token_index).nonzero()[0, 0])

    def together(prompts: int) -> list[torch.Tensor]:
        features = model.encode_images(*pixels)
        prefix = model.read_images(features, text["input_ids"][0, :before])
        found, places = [], torch.arange(images, device=device).repeat(prompts)
        for chunk in torch.arange(images * prompts, device=device).split(CONVERSATIONS_TOGETHER):
            rows = {name: value[places[chunk]] for name, value in text.items()}
            output = model(**rows, image_features=features, image_indices=places[chunk].cpu(), image_prefix=prefix)
            found.append(output.class_logits)
        return found

    anew = median(time_passes(lambda: model(**inputs), device, SECONDS_PER_CASE))
    for prompts in arguments.prompts:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        passes = time_passes(lambda count=prompts: together(count), device, SECONDS_PER_CASE)
        memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
        difference = (torch.cat(together(1)) - model(**inputs).class_logits).abs().max().item()
        yield PromptsCase(
            images=images,
            prompts=prompts,
            text_tokens=text["input_ids"].shape[1] - 1,
            seconds=median(passes),
            apart_seconds=prompts * anew,
            prompts_per_second=images * prompts / median(passes),
            largest_difference=difference,
            peak_memory_gb=memory,
        )


def prepare(
    processor: XSamProcessor,
    batch: int,
    categories: int,
    device: torch.device,
    dtype: torch.dtype,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return inputs for synthetic images of 1024 x 1024, and note how long the CPU took to make them.

    The tokenizer knows single bytes. Category names of three letters make about as many tokens as everyday names do in
    a real vocabulary: seven, with the marks around them and the comma.
    """
    images = list(np.random.default_rng(0).integers(0, 256, (batch, 1024, 1024, 3), dtype=np.uint8))
    letters = "abcdefghijklmnopqrstuvwxyz"
    names = [letters[n // 26] + letters[n % 26] + "x" for n in range(categories)]
    started = time.perf_counter()
    inputs = processor(images=images, task="ovseg", conditions=[names] * batch)
    facts.setdefault("prepare_ms_per_image", {})[categories] = 1000 * (time.perf_counter() - started) / batch
    return dict(inputs.to(device, dtype).for_model())


@torch.inference_mode()
def measure(
    model: XSamForSegmentation,
    inputs: Mapping[str, Any],
    categories: int,
    facts: Mapping[str, Any],
) -> Case:
    """Time one batch."""
    device, batch = model.device, len(inputs["input_ids"])
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    output = model(**inputs)
    finite = bool(torch.isfinite(output.class_logits).all() and torch.isfinite(output.mask_logits).all())
    del output
    passes = time_passes(lambda: model(**inputs), device, SECONDS_PER_CASE)
    images = inputs["pixel_values"], inputs["segmentor_pixel_values"]
    towers = time_passes(lambda: model.encode_images(*images), device, SECONDS_PER_CASE / 4)
    # The image takes the place of its one pseudo token.
    length = inputs["input_ids"].shape[1] - 1 + model.config.num_image_tokens
    flops = sum(flops_per_image(model.config, length).values()) + 1e12 * sum(facts["tflop_of_decoders"].values())
    rate = batch / median(passes)

    def share(peak: float | None) -> float | None:
        return rate * flops / 1e12 / peak if peak else None

    return Case(
        batch=batch,
        categories=categories,
        sequence_length=length,
        repeats=len(passes),
        seconds=median(passes),
        towers_seconds=median(towers),
        images_per_second=rate,
        tflop_per_image=flops / 1e12,
        tflop_per_second=rate * flops / 1e12,
        share_of_nominal_peak=share(facts["nominal_peak_tflop_per_second"]),
        share_of_measured_peak=share(facts["measured_peak_tflop_per_second"]),
        peak_memory_gb=torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0,
        finite=finite,
    )


def time_passes(run: Any, device: torch.device, seconds: float) -> list[float]:
    """Time a call again and again for so long, at least three times, after two untimed calls."""
    for _ in range(2):
        time_once(run, device)
    passes: list[float] = []
    while len(passes) < 3 or sum(passes) < seconds:
        passes.append(time_once(run, device)[0])
    return passes


def time_once(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Return the seconds of one call, from an idle device to an idle device, and its result."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    result = run()
    wait()
    return time.perf_counter() - started, result


def draw(cases: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], path: Path) -> None:
    """Draw images/s and share of the peak over the batch size; without matplotlib there is no picture."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no picture", flush=True)
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rate, share = figure.subplots(1, 2)
    for categories in dict.fromkeys(case["categories"] for case in cases):
        mine = [case for case in cases if case["categories"] == categories]
        batches, label = [case["batch"] for case in mine], f"{categories} categories"
        rate.plot(batches, [case["images_per_second"] for case in mine], "o-", label=label)
        share.plot(batches, [100 * (case["share_of_measured_peak"] or 0) for case in mine], "o-", label=label)
    ticks = sorted({case["batch"] for case in cases})
    for axes, title in ((rate, "images/s"), (share, "% of a large matrix product's rate")):
        axes.set(xlabel="batch", ylabel=title, xscale="log", ylim=(0, None))
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    rate.legend()
    figure.suptitle(f"X-SAM, {facts['size']} size, random weights, {facts['dtype']}, {facts['device']}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
