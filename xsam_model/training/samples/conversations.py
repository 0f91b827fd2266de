"""Writes the conversations about the samples of a batch, with their ground-truth masks, as text and arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import CATEGORY_TASKS, CHAT_FORMATS, VISUAL_TASKS, Wording
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.variation import Prompt, Variation, choose_prompts, choose_wording, vary_categories

# Asked one by one, as in inference: each condition is a conversation of its own about the same image.
SINGLE_TASKS = ("refseg", "reaseg", "intseg")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversation:
    """A question about one image of a batch, and the correct answer.

    Attributes:
        image: position of the sample in the batch.
        text: the whole conversation.
        answer: the part of it that the model learns, its end mark included.
        conditions: phrases in it, in order.
        prompts: visual prompts in it, in order.
        masks: bool (M, H, W), ground-truth masks.
        labels: int64 (M,), the condition that each mask belongs to.
        class_names: category of each mask, "" for none.
    """

    image: int
    text: str = ""
    answer: str = ""
    conditions: tuple[str, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes the conversations of a batch.

    Attributes:
        variation: how conversations vary.
        chat_format: chat format of the processor.
        reserved: strings that no condition may contain.
    """

    variation: Variation
    chat_format: str
    reserved: tuple[str, ...] = ()

    def converse(self, samples: Sequence[TrainingSample], randoms: Sequence[np.random.Generator]) -> list[Conversation]:
        """Return the conversations about all samples in order; choices are drawn from the generator of each sample."""
        found: list[Conversation] = []
        for place, random in enumerate(randoms):
            single = samples[place].task in SINGLE_TASKS
            found += self._one_by_one(samples[place], place, random) if single else [self._all(samples, place, random)]
        return found

    def _all(self, samples: Sequence[TrainingSample], place: int, random: np.random.Generator) -> Conversation:
        """Ask for all conditions of a sample in one conversation."""
        sample = vary_categories(samples[place], self.variation, random)
        prompts, labels = _own_prompts(sample, place), sample.labels
        if sample.task == "vgdseg":
            prompts, moved = choose_prompts(samples, place, self.variation, random)
            labels = moved[labels]
        text, answer = self._words(sample, prompts or sample.conditions, random)
        return Conversation(
            image=place,
            text=text,
            answer=answer,
            conditions=sample.conditions,
            prompts=tuple(prompts),
            masks=sample.masks,
            labels=labels,
            class_names=class_names(sample),
        )

    def _one_by_one(self, sample: TrainingSample, place: int, random: np.random.Generator) -> list[Conversation]:
        """Ask for each condition of a sample in a conversation of its own, with the union of its masks as the truth."""
        found = []
        for index in range(sample.num_conditions):
            asked, prompts = sample.conditions[index : index + 1], _own_prompts(sample, place)[index : index + 1]
            mask = sample.masks[sample.labels == index].any(0, keepdims=True)
            # An empty mask is no target: its phrase is a negative.
            kept = mask[: int(mask.any())]
            text, answer = self._words(sample, prompts or asked, random)
            found.append(
                Conversation(
                    image=place,
                    text=text,
                    answer=answer,
                    conditions=asked,
                    prompts=tuple(prompts),
                    masks=kept,
                    labels=np.zeros(len(kept), dtype=np.int64),
                    class_names=("",) * len(kept),
                )
            )
        return found

    def _words(self, sample: TrainingSample, conditions: Sequence[Any], random: np.random.Generator) -> tuple[str, str]:
        """Return the text of a conversation, and the answer in it."""
        explain = sample.task == "reaseg" and sample.answer is not None and sample.question is None
        question, answer = choose_wording(sample, conditions, self.variation, random)
        words: dict[str, Any] = {"task": sample.task, "question": question, "explain": explain}
        words["chat"] = CHAT_FORMATS[self.chat_format]
        wording = Wording(**words, answer=answer)
        return wording.conversation(conditions, self.reserved), wording.spoken + wording.chat.end


def class_names(sample: TrainingSample) -> tuple[str, ...]:
    """Return the category of each mask of a sample, "" if its task has no categories."""
    if sample.task not in CATEGORY_TASKS and not (sample.task == "vgdseg" and sample.conditions):
        return ("",) * len(sample.labels)
    return tuple(sample.conditions[label] for label in sample.labels)


def without_empty_masks(sample: TrainingSample) -> TrainingSample:
    """Return a sample without its empty masks."""
    kept = sample.masks.any((1, 2))
    return sample if kept.all() else replace(sample, masks=sample.masks[kept], labels=sample.labels[kept])


def _own_prompts(sample: TrainingSample, place: int) -> list[Prompt]:
    if sample.task not in VISUAL_TASKS:
        return []
    return [Prompt(sample=place, prompt=index) for index in range(len(sample.visual_prompts))]
