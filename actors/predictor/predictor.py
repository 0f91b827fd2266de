"""XSamPredictor: the seam between the network and the data. Images and prompts in, RLE masks and words out. No Ray.

Which prompts share a conversation is in ``conversations``, what becomes of the network's answers in ``findings``.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import islice

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from actors.predictor.batch_size import find_batch_size
from actors.predictor.config import PredictorConfig, model_folder
from actors.predictor.conversations import (
    Ask,
    Conversation,
    batched,
    check_prompts,
    divided,
    drafts,
    prepare,
    try_words,
)
from actors.predictor.findings import Findings, find_masks, phrase_prompts, read_caption, without_doubles
from pipelines.storage.content_hash import content_hash
from pipelines.types import Answer, Image, ImageRef, MaskPrediction, PredictionError, Prompt, Reason, ReplicaUnusable
from xsam_model.modeling_xsam import XSamForSegmentation
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.prompts.templates import SPOKEN_TASKS
from xsam_model.runtime.host_memory import keep_freed_memory
from xsam_model.segmenter import EncodedImages, Replies, XSamSegmenter

_AUTO_DTYPE = {"cuda": "bfloat16", "cpu": "float32"}

# Mask logits enlarged together. On the CPU few enough that their memory, 8 MiB, is used again and again: larger blocks
# go back to the system each time, and faulting their pages in again costs more than the arithmetic.
_CHUNK_PIXELS = {"cuda": 2**25, "cpu": 2**21}

# Conversations that go through the language model together where it has read their images before: each is but its text.
_SHARING_CONVERSATIONS = 16

MAX_TRIED = 20_000


class XSamPredictor:
    """A loaded X-SAM: pipelines.types.Predictor on xsam_model.

    From several threads, one batch is prepared or read out while the network computes another: it works for one of them
    at a time.

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
        # A pickle of weights may hold a program.
        model = XSamForSegmentation.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, **options
        )
        model.config.region_sampling = config.region_sampling
        if self._device.type == "cpu":
            keep_freed_memory()
        elif dtype != "float32":
            # The pixel decoder is float32 all the same. What it is given was rounded to 8 bits or 11; in TF32 the
            # factors of its products are rounded to 11, and sums are not. A setting of the whole process.
            torch.set_float32_matmul_precision("high")
        self.segmenter = XSamSegmenter(model.to(self._device), XSamProcessor.from_pretrained(folder))
        self._facts = {
            "weights_sha256": content_hash(str(folder)),
            "device": torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else platform.machine(),
            "dtype": dtype,
            "torch": version("torch"),
            "transformers": version("transformers"),
        }

    def describe(self) -> Mapping[str, str]:
        """Return facts for provenance: weights hash, device, dtype, library versions."""
        return self._facts

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Try the text prompts that every image of a run will be asked; see check_prompts."""
        check_prompts(self.segmenter.processor, prompts)

    def find_batch_size(self, prompts: Sequence[Prompt], *, shards: int = 1) -> int | None:
        """Find how many images fit on the GPU together, by asking about made-up ones; None on a CPU.

        Args:
            prompts: asked of every image; answers in words, whose length nobody knows, are not tried.
            shards: shards in flight, each of which has a batch of its own.
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
                if error.reason is Reason.OUT_OF_MEMORY:
                    return None
            return torch.cuda.max_memory_allocated(self._device) - before

        def free_bytes() -> int:
            torch.cuda.empty_cache()
            return torch.cuda.mem_get_info(self._device)[0]

        return find_batch_size(peak_bytes, free_bytes, shards=shards)

    def predict(self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]]) -> list[Answer]:
        """Answer every image's prompts; see pipelines.types.Predictor.

        The images are encoded once, whatever is asked of them. All categories of an image are asked together, and so
        are its regions of vgdseg: they compete for each mask. Every other prompt is asked alone. As many conversations
        as there are images go through the language model together, and more where they share what it has read of them.

        Raises:
            PredictionError: out of memory, or scores that are not finite.
            ReplicaUnusable: a CUDA error that leaves the process without a working device.
        """
        findings = [Findings() for _ in images]
        try:
            self._ask_all(images, prompts, findings)
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
        return [found.answer(self._config.max_masks_per_image) for found in findings]

    @torch.inference_mode()
    def _ask_all(
        self, images: Sequence[Image], prompts: Sequence[Sequence[Prompt]], findings: Sequence[Findings]
    ) -> None:
        """Encode the images once, and have one conversation after the other about them; add to ``findings``."""
        drafted = drafts(prompts, self.segmenter.processor)
        quiet = Counter(draft.image for ask, group in drafted.items() if not ask.is_spoken for draft in group)
        is_reused = max(quiet.values(), default=0) > 1
        encoded = self.segmenter.encode([image.pixels for image in images], is_reused=is_reused)
        for ask, group in drafted.items():
            shares = is_reused and not ask.is_spoken
            for some in batched(group, max(len(images), _SHARING_CONVERSATIONS if shares else 1)):
                conversations: list[Conversation] = []
                for draft in some:
                    conversation, refused = prepare(draft, images[draft.image], self.segmenter.processor)
                    findings[draft.image].rejected += refused
                    conversations += [conversation] if conversation else []
                if conversations:
                    self._converse(ask, encoded, conversations, findings)
            for image, parts in divided(group).items():
                found = findings[image].masks
                found[ask.task] = without_doubles(found.get(ask.task, []), parts)

    def _converse(
        self,
        ask: Ask,
        encoded: EncodedImages,
        conversations: Sequence[Conversation],
        findings: Sequence[Findings],
    ) -> None:
        """Have conversations of one kind in one pass; add what is said and found to ``findings``."""
        replies = self.segmenter.ask(
            encoded,
            ask.network_task,
            [conversation.query(ask.task) for conversation in conversations],
            explain=ask.explain,
            max_new_tokens=self._config.max_new_tokens,
        )
        with self.segmenter.beside(replies):
            for conversation, decode, said in zip(conversations, replies.decodes, replies.captions, strict=True):
                found, about = findings[conversation.image], conversation
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
        )


def check_model(config: PredictorConfig, prompts: Sequence[Prompt], sentences: Iterable[Prompt] = ()) -> dict[int, str]:
    """Try a run's text prompts on the model's processor, and see that its weight files are whole, without loading them.

    Args:
        config: which model.
        prompts: asked of every image.
        sentences: those of the prompt table; the first MAX_TRIED of them, so that planning stays quick. The others are
            tried when they are asked.

    Returns:
        Why sentences cannot be asked, by their row.

    Raises:
        ValueError: the prompts do not fit the model (see check_prompts), or a weight file is cut short or damaged.
        OSError: the folder holds no processor, or no weights.
    """
    folder = model_folder(config.path)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise FileNotFoundError(f"{folder} holds no *.safetensors")
    for file in weights:
        try:
            with safe_open(file, framework="pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file.name} is cut short or damaged ({error}); copy it again") from error
    processor = XSamProcessor.from_pretrained(str(folder))
    check_prompts(processor, prompts)
    reasons: dict[int, str] = {}
    for prompt in islice(sentences, MAX_TRIED):
        try:
            try_words(processor, Ask(prompt.task, prompt.explain), [prompt])
        except ValueError as error:
            reasons[prompt.source_row] = str(error)
    return reasons


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' is asked for, but torch sees no GPU; give the replica one, or use 'cpu'")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
