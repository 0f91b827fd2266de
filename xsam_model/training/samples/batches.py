"""Builds the tensors of one training step from samples: token ids, canvases, ground-truth masks, answer labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xsam_model.layers.region_sampling import choose_region_points
from xsam_model.losses.losses import IGNORED_TOKEN
from xsam_model.losses.targets import Targets
from xsam_model.processing_xsam import XSamProcessor
from xsam_model.prompts.templates import IMAGE_MARK, REGION_MARK, clean_category
from xsam_model.training.samples.conversations import Conversation, Writer, class_names, without_empty_masks
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.variation import Prompt, Variation
from xsam_model.training.samples.windows import prompt_windows

_PHRASE_TASKS = ("refseg", "reaseg")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingBatch:
    """The tensors of one step.

    B conversations, each with one decode except in chat; I images; M ground-truth masks; S canvas side.

    Attributes:
        task, source: task and source of every sample.
        inputs: arguments of `XSamForSegmentation.forward`; in a closed stage only `segmentor_pixel_values`.
        targets: ground-truth masks; labels are columns of the class logits, or closed classes in a closed stage.
        class_ids: (M,) int64, closed class of each mask, -1 for none.
        token_labels: (B, L) int64, token ids of the answer, `IGNORED_TOKEN` elsewhere. None in a closed stage.
        shared_columns: (B, B) bool, for phrases that are scored against all phrases of the batch: False for a phrase
            that is not a negative because it means the same. None if each conversation has its own conditions.
        keys: keys of the random points of each decode.
        shares: (M,) float32, share of each object that its window shows; None if images are shown whole.
        num_samples: number of samples.
    """

    task: str
    source: str
    inputs: dict[str, Any]
    targets: Targets
    class_ids: Tensor
    token_labels: Tensor | None
    shared_columns: Tensor | None
    keys: tuple[int, ...]
    num_samples: int
    shares: Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        """Return the batch on a device."""
        return _move(self, device)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchBuilder:
    """Builds batches for one stage.

    Attributes:
        processor: processor of the model.
        variation: how conversations vary.
        classes: names of the closed classes, in the order of the heads; may be empty.
        closed: whether the stage has no language, and masks are labeled with `classes`.
        zoom: `XSamConfig.interactive_zoom` of a stage that has no language and sees windows around visual prompts; else
            None.
        num_region_points: points that represent a visual prompt, `XSamConfig.region_num_points`.
    """

    processor: XSamProcessor
    variation: Variation = field(default_factory=Variation)
    classes: tuple[str, ...] = ()
    closed: bool = False
    zoom: float | None = None
    num_region_points: int = 256

    def build(self, samples: Sequence[TrainingSample], randoms: Sequence[np.random.Generator]) -> TrainingBatch:
        """Build a batch.

        Args:
            samples: samples of one source.
            randoms: one generator for each sample, from which all choices about it are drawn.

        Raises:
            ValueError: if the samples have several tasks, a closed stage meets a mask without a class, or windows are
                to be cut around visual prompts and there are none with a mask.
        """
        tasks = {sample.task for sample in samples}
        if len(tasks) != 1:
            raise ValueError(f"source {samples[0].source!r} mixes tasks {sorted(tasks)}: a batch has one")
        samples = [without_empty_masks(sample) for sample in samples]
        if self.zoom is not None:
            return self._windows(samples, randoms, self.zoom)
        if self.closed:
            return self._closed(samples, randoms)
        tokens = self.processor.tokenizer.added_tokens_decoder.values()
        reserved = (IMAGE_MARK, REGION_MARK, *(str(token) for token in tokens))
        writer = Writer(variation=self.variation, chat_format=self.processor.chat_format, reserved=reserved)
        conversations = writer.converse(samples, randoms)
        inputs = self._inputs(samples, conversations, randoms)
        targets, class_ids = self._targets(samples, conversations)
        shared = None
        if samples[0].task in _PHRASE_TASKS and self.variation.shared_phrases:
            shared = _shared_columns(conversations)
            # Column i of the shared class logits is the phrase of conversation i.
            targets = replace(targets, labels=targets.decodes.clone())
        return TrainingBatch(
            task=samples[0].task,
            source=samples[0].source,
            inputs=inputs,
            targets=targets,
            class_ids=class_ids,
            token_labels=self._token_labels(inputs, [talk.answer for talk in conversations]),
            shared_columns=shared,
            keys=_keys([randoms[talk.image] for talk in conversations]),
            num_samples=len(samples),
        )

    def _closed(self, samples: Sequence[TrainingSample], randoms: Sequence[np.random.Generator]) -> TrainingBatch:
        """Build a batch without language, with masks labeled by closed classes."""
        silent = [
            Conversation(image=place, masks=sample.masks, labels=sample.labels, class_names=class_names(sample))
            for place, sample in enumerate(samples)
        ]
        targets, class_ids = self._targets(samples, silent)
        if len(class_ids) and int(class_ids.min()) < 0:
            raise ValueError(f"source {samples[0].source!r} has masks without one of the {len(self.classes)} classes")
        pixels = self.processor.image_processor([sample.image for sample in samples])["segmentor_pixel_values"]
        return TrainingBatch(
            task=samples[0].task,
            source=samples[0].source,
            inputs={"segmentor_pixel_values": pixels},
            targets=replace(targets, labels=class_ids),
            class_ids=class_ids,
            token_labels=None,
            shared_columns=None,
            keys=_keys(randoms),
            num_samples=len(samples),
        )

    def _windows(
        self, samples: Sequence[TrainingSample], randoms: Sequence[np.random.Generator], zoom: float
    ) -> TrainingBatch:
        """Build a batch of windows, each an image of its own with one mask."""
        drawn = zip(samples, randoms, strict=True)
        windows = [window for sample, random in drawn for window in prompt_windows(sample, zoom, random)]
        if not windows:
            raise ValueError(f"source {samples[0].source!r} has no visual prompt on a mask in {len(samples)} samples")
        images = self.processor.image_processor
        silent = [
            TrainingSample(
                image=window.pixels, task="intseg", visual_prompts=(window.region,), masks=window.mask[None],
                labels=np.zeros(1, dtype=np.int64), ignore=window.ignored,
            )
            for window in windows
        ]  # fmt: skip
        talks = [
            Conversation(image=place, masks=one.masks, labels=one.labels, class_names=("",))
            for place, one in enumerate(silent)
        ]
        targets, class_ids = self._targets(silent, talks)
        return TrainingBatch(
            task=samples[0].task,
            source=samples[0].source,
            inputs={
                "segmentor_pixel_values": images([one.image for one in silent])["segmentor_pixel_values"],
                "regions": torch.from_numpy(np.stack([images.scale_mask(window.region) for window in windows])),
                "is_box": torch.tensor([window.is_box for window in windows]),
            },
            targets=targets,
            class_ids=class_ids,
            token_labels=None,
            shared_columns=None,
            keys=_keys(randoms),
            num_samples=len(samples),
            shares=torch.tensor([window.share for window in windows]),
        )

    def _inputs(
        self,
        samples: Sequence[TrainingSample],
        conversations: Sequence[Conversation],
        randoms: Sequence[np.random.Generator],
    ) -> dict[str, Any]:
        masks = [[_prompt_mask(samples, prompt) for prompt in talk.prompts] for talk in conversations]
        texts = self.processor(text=[talk.text for talk in conversations], visual_prompts=masks)
        inputs = texts.for_model()
        images = self.processor.image_processor([sample.image for sample in samples])
        inputs |= {name: images[name] for name in ("pixel_values", "segmentor_pixel_values")}
        inputs["image_indices"] = torch.tensor([talk.image for talk in conversations])
        if (canvases := inputs.pop("vprompt_masks", None)) is not None:
            prompts = [(talk.image, prompt) for talk in conversations for prompt in talk.prompts]
            inputs["region_points"] = [
                choose_region_points(canvas, self.num_region_points, seed=int(randoms[image].integers(2**31)))
                for canvas, (image, _) in zip(canvases, prompts, strict=True)
            ]
            lenders = [-1 if prompt.sample is None else prompt.sample for _, prompt in prompts]
            inputs["region_images"] = torch.tensor(lenders)
        return inputs

    def _targets(
        self, samples: Sequence[TrainingSample], conversations: Sequence[Conversation]
    ) -> tuple[Targets, Tensor]:
        scale = self.processor.image_processor.scale_mask
        side = self.processor.image_processor.segmentor_size
        canvases = [scale(mask) for talk in conversations for mask in talk.masks]
        counts = [len(talk.masks) for talk in conversations]
        valid = None
        if any(sample.ignore is not None and sample.ignore.any() for sample in samples):
            ignored = [samples[talk.image].ignore for talk in conversations]
            empty = np.zeros((side, side), dtype=np.bool_)
            valid = torch.from_numpy(
                ~np.stack([empty if one is None or not one.any() else scale(one) for one in ignored])
            )
        targets = Targets(
            masks=torch.from_numpy(np.stack(canvases) if canvases else np.zeros((0, side, side), dtype=np.bool_)),
            labels=torch.from_numpy(np.concatenate([talk.labels for talk in conversations]).astype(np.int64)),
            decodes=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
            valid=valid,
        )
        known = {clean_category(name): index for index, name in enumerate(self.classes)}
        names = [name for talk in conversations for name in talk.class_names]
        return targets, torch.tensor([known.get(clean_category(name), -1) for name in names], dtype=torch.long)

    def _token_labels(self, inputs: dict[str, Any], answers: Sequence[str]) -> Tensor:
        """Return labels for the tokens of the answers, end marks included (X-SAM, sec. 3.4)."""
        # The processor tokenizes an answer, and the line break after it, separately, so counting from the end finds it.
        after, *counts = (
            len(self.processor.tokenizer.encode(text, add_special_tokens=False)) for text in ("\n", *answers)
        )
        ends = inputs["attention_mask"].sum(1, keepdim=True) - after
        places = torch.arange(inputs["input_ids"].shape[1])
        is_answer = (places >= ends - torch.tensor(counts)[:, None]) & (places < ends)
        return inputs["input_ids"].masked_fill(~is_answer, IGNORED_TOKEN)


def _shared_columns(conversations: Sequence[Conversation]) -> Tensor:
    """Return which phrases each conversation is scored against, (B, B) bool; always its own."""

    # Another phrase with the same words, or for the same masks of the same image, would be a false negative.
    def same(one: Conversation, other: Conversation) -> bool:
        if one.conditions[0].strip().lower() == other.conditions[0].strip().lower():
            return True
        return one.image == other.image and np.array_equal(one.masks, other.masks)

    rows = [[one is other or not same(one, other) for other in conversations] for one in conversations]
    return torch.tensor(rows)


def _prompt_mask(samples: Sequence[TrainingSample], prompt: Prompt) -> NDArray[np.bool_]:
    if prompt.sample is None:
        # Never looked at, since its feature is a zero vector, but the processor refuses empty masks.
        return np.ones((1, 1), dtype=np.bool_)
    return samples[prompt.sample].visual_prompts[prompt.prompt]


def _keys(randoms: Sequence[np.random.Generator]) -> tuple[int, ...]:
    # Twice a key and one, the seeds made of it (`RandomPoints`), fit torch's 64 bits with a sign.
    return tuple(int(random.integers(2**61)) for random in randoms)


def _move(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {name: _move(part, device) for name, part in value.items()}
    if isinstance(value, list):
        return [_move(part, device) for part in value]
    if isinstance(value, Targets | TrainingBatch):
        fields = {name: _move(getattr(value, name), device) for name in value.__dataclass_fields__}
        return replace(value, **fields)
    return value
