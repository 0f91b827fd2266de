"""XSamPredictor: the single seam between the network and the data. Images and prompts in, RLE masks out. No Ray."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from actors.config import PredictorConfig
from actors.pool import ReplicaUnusable
from pipelines import rle
from pipelines.fingerprint import content_hash
from pipelines.prompt_table import reject
from pipelines.types import (
    Answer,
    Image,
    MaskPrediction,
    PredictionError,
    Prompt,
    Reason,
    Region,
    RejectedPrompt,
    Task,
)
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.post_processing_xsam import InstanceSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.untrained import save_untrained
from xsam_model.visual_prompts import draw_region

TEXT_TASKS: tuple[Task, ...] = ("genseg", "ovseg")
_KNOWN_TASKS = (*TEXT_TASKS, "vgdseg")

_AUTO_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}

# Mask logits enlarged together. On the CPU few enough that their memory, 8 MiB, is used again and again: larger blocks
# go back to the system each time, and faulting their pages in again costs more than the arithmetic.
_CHUNK_PIXELS = {"cuda": 2**25, "cpu": 2**21}


class XSamPredictor:
    """A loaded X-SAM: pipelines.types.Predictor on xsam_model.

    From several threads, one batch is prepared or read out while the network computes another.
    """

    def __init__(self, config: PredictorConfig) -> None:
        """Load model and processor.

        Raises:
            ValueError: device "cuda" is asked for and there is none.
            OSError: the folder holds no model.
        """
        self._config = config
        self._device = _device(config.device)
        self._turn = threading.Lock()
        dtype = _AUTO_DTYPE[self._device.type] if config.dtype == "auto" else config.dtype
        options = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
        self._processor = XSamProcessor.from_pretrained(config.path)
        model = XSamForSegmentation.from_pretrained(config.path, dtype=getattr(torch, dtype), **options)
        model.config.region_sampling = config.region_sampling
        self._model = model.eval().to(self._device)
        self._facts = {
            "weights_sha256": content_hash(str(Path(config.path).expanduser())),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "dtype": dtype,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance: weights hash, device, dtype, library versions."""
        return self._facts

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Try the text prompts that every image of a run will be asked, on a blank image.

        Raises:
            ValueError: they do not fit the model, e.g. more categories than its text holds; says how many fit.
        """
        _check(self._processor, prompts)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """Answer every image's prompts; see pipelines.types.Predictor.

        All phrases of one task are asked of an image together, and so are all its regions: they compete for each mask.

        Raises:
            PredictionError: out of memory, or scores that are not finite.
            ReplicaUnusable: a CUDA error that leaves the process without a working device.
        """
        masks: list[list[MaskPrediction]] = [[] for _ in images]
        rejected: list[list[RejectedPrompt]] = [[] for _ in images]
        try:
            for task in dict.fromkeys(prompt.task for asked in prompts for prompt in asked):
                if task not in _KNOWN_TASKS:
                    raise NotImplementedError(f"task {task} cannot be asked yet; known: {', '.join(_KNOWN_TASKS)}")
                asked = [[prompt for prompt in group if prompt.task == task] for group in prompts]
                self._predict_task(task, images, asked, masks, rejected)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise PredictionError(Reason.OUT_OF_MEMORY, f"batch of {len(images)}: {error}") from error
        except FloatingPointError as error:
            raise PredictionError(Reason.NON_FINITE_SCORES, str(error)) from error
        except RuntimeError as error:
            if "CUDA error" in str(error):
                # Such an error sticks to its process: every later batch would fail for it.
                raise ReplicaUnusable(f"batch of {len(images)}: {error}") from error
            raise
        return [
            Answer(masks=tuple(found), rejected=tuple(refused)) for found, refused in zip(masks, rejected, strict=True)
        ]

    @torch.inference_mode()
    def _predict_task(
        self,
        task: Task,
        images: Sequence[Image],
        prompts: Sequence[Sequence[Prompt]],
        masks: list[list[MaskPrediction]],
        rejected: list[list[RejectedPrompt]],
    ) -> None:
        """Ask one task of the images that have prompts for it, in one pass; add to ``masks`` and ``rejected``."""
        places: list[int] = []
        asked: list[list[Prompt]] = []
        drawn: list[list[NDArray[np.bool_]]] = []
        for place, (image, group) in enumerate(zip(images, prompts, strict=True)):
            good, regions, refused = (list(group), [], []) if task in TEXT_TASKS else _draw(image, group)
            rejected[place] += refused
            if good:
                places.append(place)
                asked.append(good)
                drawn.append(regions)
        if not places:
            return
        inputs = self._processor(
            images=[images[place].pixels for place in places],
            task=task,
            conditions=[[prompt.text for prompt in group] for group in asked] if task in TEXT_TASKS else None,
            visual_prompts=drawn if task not in TEXT_TASKS else None,
        )
        arguments = inputs.to(self._device, self._model.dtype).for_model()
        with self._turn:
            outputs = self._model(**arguments)
        for index, place in enumerate(places):
            chunks = self._processor.iter_instance_masks(
                outputs,
                index,
                inputs["scaled_sizes"][index],
                inputs["original_sizes"][index],
                threshold=self._config.min_score,
                max_chunk_pixels=_CHUNK_PIXELS[self._device.type],
            )
            found = [mask for chunk in chunks for mask in _encode(chunk, asked[index])]
            found.sort(key=lambda mask: -mask.score)
            masks[place] += found[: self._config.max_masks_per_image]


def check_model(config: PredictorConfig, prompts: Sequence[Prompt]) -> None:
    """Try a run's text prompts on the model's processor, and see that its weight files are whole, without loading them.

    Raises:
        ValueError: the prompts do not fit the model, e.g. more categories than its text holds (says how many fit), or a
            weight file is cut short or damaged.
        OSError: the folder holds no processor, or no weights.
    """
    folder = Path(config.path).expanduser()
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file.name} is cut short or damaged ({error}); copy it again") from error
    _check(XSamProcessor.from_pretrained(str(folder)), prompts)


def _check(processor: XSamProcessor, prompts: Sequence[Prompt]) -> None:
    blank = np.zeros((64, 64, 3), dtype=np.uint8)
    if unknown := [prompt.task for prompt in prompts if prompt.task not in _KNOWN_TASKS]:
        raise ValueError(f"task {unknown[0]} cannot be asked yet; known: {', '.join(_KNOWN_TASKS)}")
    for task in TEXT_TASKS:
        if phrases := [prompt.text for prompt in prompts if prompt.task == task]:
            processor(images=[blank], task=task, conditions=[phrases])


def write_untrained_model(folder: str | Path) -> None:
    """Write a small model with random weights, always the same ones: for the demo and for dry runs."""
    save_untrained(folder)


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is asked for, but torch sees no GPU; give the replica one, or use 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _draw(
    image: Image, prompts: Sequence[Prompt]
) -> tuple[list[Prompt], list[NDArray[np.bool_]], list[RejectedPrompt]]:
    """Draw an image's visual prompts as bool (H, W) masks at its size; those that cannot be drawn are refused."""
    good, drawn, refused = [], [], []
    for prompt in prompts:
        region = prompt.region or Region(kind="mask")
        try:
            mask = rle.decode(region.mask) if region.mask else None
            drawn.append(draw_region(region.kind, region.coordinates, image.size_hw, mask))
            good.append(prompt)
        except ValueError as error:
            refused.append(reject(prompt, image.ref.image_id, str(error)))
    return good, drawn, refused


def _encode(chunk: InstanceSegmentation, prompts: Sequence[Prompt]) -> Iterator[MaskPrediction]:
    """Turn a chunk of dense masks into RLE, one mask for all labels of a query; the dense masks end here."""
    dense = chunk.masks.cpu().numpy()
    encoded: dict[int, tuple[rle.Rle, tuple[float, float, float, float], int]] = {}
    rows = zip(
        chunk.scores.tolist(), chunk.mask_scores.tolist(), chunk.labels.tolist(), chunk.query_indices.tolist(),
        dense, strict=True,
    )  # fmt: skip
    for score, mask_score, label, query, mask in rows:
        if query not in encoded:
            segmentation = rle.encode(mask)
            encoded[query] = segmentation, rle.bbox_xywh(segmentation), int(np.count_nonzero(mask))
        segmentation, box, area = encoded[query]
        yield MaskPrediction(
            prompt=prompts[label],
            score=min(1.0, score),
            mask_score=min(1.0, mask_score),
            segmentation=segmentation,
            bbox_xywh=box,
            area=area,
        )
