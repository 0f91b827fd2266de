"""XSamPredictor answers prompts about images with RLE masks and text, by one loaded X-SAM. No Ray.

``conversations`` decides which prompts share a conversation; ``predictions`` reads masks and captions from the output.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import torch
from transformers.utils import logging

from actors.predictor.batch_size import find_batch_size
from actors.predictor.config import PredictorConfig, model_folder
from actors.predictor.conversations import (
    Ask,
    Conversation,
    batched,
    check_prompts,
    divided,
    drafts,
    draw,
    prepare,
)
from actors.predictor.predictions import (
    ImagePredictions,
    find_closely,
    find_masks,
    phrase_prompts,
    read_caption,
    without_doubles,
)
from pipelines.storage.content_hash import content_hash
from pipelines.types import (
    Answer,
    Exemplar,
    Image,
    ImageRef,
    MaskPrediction,
    PredictionError,
    Prompt,
    Reason,
    ReplicaUnusable,
)
from xsam_model.layers.region_sampling import together
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.prompts.templates import SPOKEN_TASKS
from xsam_model.runtime.host_memory import keep_freed_memory
from xsam_model.segmenter import EncodedImages, Replies, XSamSegmenter

_AUTO_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}

# Mask logits upsampled at once. On the CPU so few that their 8 MiB stay allocated between chunks: larger blocks go back
# to the system each time, and faulting their pages in again costs more than the arithmetic.
_CHUNK_PIXELS = {"cuda": 2**25, "cpu": 2**21}

# Conversations in one pass of the language model if it has cached prefixes of their images: each adds just its text.
_SHARING_CONVERSATIONS = 16


class XSamPredictor:
    """A pipelines.types.Predictor on a loaded X-SAM.

    Several threads may call it. The network serves one of them at a time; meanwhile the others prepare their batches or
    read out their masks.

    Attributes:
        segmenter: the network with its processor.
    """

    def __init__(self, config: PredictorConfig) -> None:
        """Load model and processor.

        Raises:
            ValueError: device "cuda" is asked for and there is none.
            OSError: the folder holds no model.
        """
        self._config = config
        self._device = _device(config.device)
        dtype = _AUTO_DTYPE[self._device.type] if config.dtype == "auto" else config.dtype
        options = {"attn_implementation": config.attn_implementation} if config.attn_implementation else {}
        folder = model_folder(config.path)
        # Safetensors only: unpickling weights can execute code.
        with _without_progress_bar():
            model = XSamForSegmentation.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, **options
            )
        model.config.region_sampling = config.region_sampling
        if self._device.type == "cpu":
            keep_freed_memory()
        elif dtype != "float32":
            # The pixel decoder stays float32. Its inputs were rounded to the 8 or 11 significant bits of half precision
            # anyway; TF32 rounds the factors of its products to 11 and sums in float32. Set for the whole process.
            torch.set_float32_matmul_precision("high")
        processor = XSamProcessor.from_pretrained(folder)
        processor.category_text = config.category_text
        self.segmenter = XSamSegmenter(model.to(self._device), processor)
        self._facts = {
            "weights_sha256": content_hash(str(folder)),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "dtype": dtype,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }
        self._shown = dict[tuple[Exemplar, ...], torch.Tensor]()

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance: hash of the weights, device, dtype, library versions."""
        return self._facts

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Check the prompts that every image of a run will be asked; see check_prompts."""
        check_prompts(self.segmenter.processor, prompts)

    def study(self, prompts: Sequence[Prompt], images: Iterable[tuple[str, Image]]) -> None:
        """Look at the exemplars of prompts, so that these can be asked: each of their images is encoded once.

        Args:
            prompts: those of a run; what has no exemplars is passed over.
            images: the exemplars' images, each once, with their SHA-256.

        Raises:
            ValueError: a region does not fit its image.
        """
        exemplars = dict.fromkeys(exemplar for prompt in prompts for exemplar in prompt.exemplars)
        seen = dict[Exemplar, torch.Tensor]()
        for digest, image in images:
            of_image = [exemplar for exemplar in exemplars if exemplar.image_sha256 == digest]
            encoded = self.segmenter.encode([image.pixels])
            regions = [draw(exemplar.region, image.size_hw) for exemplar in of_image]
            seen |= zip(of_image, self.segmenter.pool_regions(encoded, 0, regions), strict=True)
        for prompt in prompts:
            if prompt.exemplars:
                self._shown[prompt.exemplars] = together([seen[exemplar] for exemplar in prompt.exemplars])

    def find_batch_size(self, prompts: Sequence[Prompt], *, shards: int = 1) -> int | None:
        """Measure how many images fit on the GPU at once, with images of noise; None on a CPU.

        Args:
            prompts: prompts asked of every image; those with a generated answer are left out, since its length is
                unknown.
            shards: number of shards in flight, each with a batch of its own.
        """
        if self._device.type != "cuda":
            return None
        canvas = self.segmenter.model.config.mask_encoder_config.image_size
        noise = np.random.default_rng(0).integers(0, 256, (canvas, canvas, 3), dtype=np.uint8)
        image = Image(ref=ImageRef(image_id="made-up", uri="made-up"), pixels=noise)
        quick = [prompt for prompt in prompts if prompt.task not in SPOKEN_TASKS and not prompt.explain]
        asked = quick or [Prompt(prompt_id="any", task="ovseg", text="thing", category_id=0, category_name="thing")]

        def peak_bytes(count: int) -> int | None:
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            try:
                self.predict([image] * count, [asked] * count)
            except PredictionError as error:
                # Other errors, such as scores that are not finite, do not change the memory that was needed.
                if error.reason is Reason.OUT_OF_MEMORY:
                    return None
            return torch.cuda.max_memory_allocated(self._device) - before

        def free_bytes() -> int:
            # Blocks that torch caches are free for batches too, but the driver counts them as used.
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self._device)[0]

        return find_batch_size(peak_bytes, free_bytes, shards=shards)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """Answer the prompts of every image; see pipelines.types.Predictor.

        Images are encoded once, whatever is asked about them. All categories of an image are asked together and compete
        for each mask; so do its regions of vgdseg. Every other prompt is asked alone. The language model takes as many
        conversations at once as there are images, and more if they share cached image prefixes.

        Raises:
            PredictionError: out of memory, or scores that are not finite.
            ReplicaUnusable: a CUDA error that leaves this process without a working device.
        """
        predictions = [ImagePredictions() for _ in images]
        try:
            self._ask_all(images, prompts, predictions)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise PredictionError(Reason.OUT_OF_MEMORY, f"batch of {len(images)}: {error}") from error
        except FloatingPointError as error:
            raise PredictionError(Reason.NON_FINITE_SCORES, str(error)) from error
        except RuntimeError as error:
            if "CUDA error" in str(error):
                # CUDA errors are sticky: every later batch of this process would fail too.
                raise ReplicaUnusable(f"batch of {len(images)}: {error}") from error
            raise
        return [found.answer(self._config.max_masks_per_image) for found in predictions]

    @torch.inference_mode()
    def _ask_all(
        self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]], predictions: Sequence[ImagePredictions]
    ) -> None:
        """Encode the images once, hold all conversations about them, and add the results to ``predictions``."""
        drafted = drafts(prompts, self.segmenter.processor)
        # Close looks encode windows of their own, and `generate` reads the image itself, without a shared prefix.
        whole = {ask: group for ask, group in drafted.items() if not self._looks_closer(ask)}
        quiet = Counter(draft.image for ask, group in whole.items() if not ask.is_spoken for draft in group)
        is_reused = max(quiet.values(), default=0) > 1
        encoded = self.segmenter.encode([image.pixels for image in images], is_reused=is_reused) if whole else None
        for ask, group in drafted.items():
            shares = is_reused and not ask.is_spoken
            for some in batched(group, max(len(images), _SHARING_CONVERSATIONS if shares else 1)):
                conversations: list[Conversation] = []
                for draft in some:
                    conversation, refused = prepare(draft, images[draft.image], self.segmenter.processor)
                    predictions[draft.image].rejected += refused
                    conversations += [conversation] if conversation else []
                if conversations and self._looks_closer(ask):
                    self._look_closer(images, conversations, predictions)
                elif conversations and encoded:
                    self._converse(ask, encoded, conversations, predictions)
            for image, parts in divided(group).items():
                found = predictions[image].masks
                found[ask.task] = without_doubles(found.get(ask.task, []), parts)

    def _looks_closer(self, ask: Ask) -> bool:
        return ask.task == "intseg" and self.segmenter.model.config.interactive_zoom is not None

    def _look_closer(
        self, images: Sequence[Image], conversations: Sequence[Conversation], predictions: Sequence[ImagePredictions]
    ) -> None:
        """Look at visual prompts in windows around them, and add their masks to ``predictions``."""
        pixels = [image.pixels for image in images]
        queries = [conversation.query("intseg") for conversation in conversations]
        seen = self.segmenter.look_closer(pixels, queries, batch_size=len(images))
        for conversation, one in zip(conversations, seen, strict=True):
            size_hw = images[conversation.image].size_hw
            masks = find_closely(one, conversation.prompts[0], size_hw, self._config.min_score)
            predictions[conversation.image].masks.setdefault("intseg", []).extend(masks)

    def _converse(
        self,
        ask: Ask,
        encoded: EncodedImages,
        conversations: Sequence[Conversation],
        predictions: Sequence[ImagePredictions],
    ) -> None:
        """Hold conversations of one kind in one pass, and add their captions and masks to ``predictions``."""
        replies = self.segmenter.ask(
            encoded,
            ask.network_task,
            [conversation.query(ask.task, self._shown) for conversation in conversations],
            explain=ask.explain,
            max_new_tokens=self._config.max_new_tokens,
        )
        # Masks are computed lazily: they must be consumed in here, on this thread's own stream.
        with self.segmenter.beside(replies):
            for conversation, decode, said in zip(conversations, replies.decodes, replies.captions, strict=True):
                found, about = predictions[conversation.image], conversation
                if ask.is_spoken:
                    caption = read_caption(conversation.prompts[0], said)
                    found.captions += [caption] if caption else []
                if ask.task == "gcgseg":
                    about = replace(conversation, prompts=phrase_prompts(conversation.prompts[0], said))
                if decode is not None and ask.task != "chat":
                    found.masks.setdefault(ask.task, []).extend(self._find(ask, replies, decode, about))

    def _find(self, ask: Ask, replies: Replies, decode: int, about: Conversation) -> Iterator[MaskPrediction]:
        sizes = replies.scaled_sizes[decode], replies.original_sizes[decode]
        return find_masks(
            ask.task,
            self.segmenter.processor.decode_arguments(replies.outputs, decode, *sizes),
            about,
            min_score=self._config.min_score,
            max_chunk_pixels=_CHUNK_PIXELS[self._device.type],
            calibration=self.segmenter.calibration(ask.task),
        )


@contextmanager
def _without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own inside this block: every replica would, beside the run's."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is asked for, but torch sees no GPU; give the replica one, or use 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
