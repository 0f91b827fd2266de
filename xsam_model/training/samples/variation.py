"""Random variation of prompts in training: choice and order of categories, borrowed visual prompts, wordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from xsam_model.prompts.templates import CATEGORY_TASKS
from xsam_model.training.samples.samples import TrainingSample
from xsam_model.training.samples.wordings import answers, draw, questions


@dataclass(frozen=True, kw_only=True, slots=True)
class Variation:
    """Settings of the random variation of conversations (X-SAM, sec. 4.1, and its published training code).

    Attributes:
        all_categories_share: share of samples that are asked for every category; the others are asked for those that
            the image shows and a random number of others.
        max_categories: most categories in one question; those that the image shows take precedence.
        borrowed_prompts_share: share of samples with visual prompts borrowed from other images as negatives.
        max_borrowed_prompts: most borrowed prompts in a sample.
        exemplars_share: share of a sample's own visual prompts that are replaced by one of another image of the batch
            that shows the same category, if there is one, as a run asks exemplars. The published code has none.
        fixed_wording_share: share of samples with the wording that inference uses; the others have any wording.
        shared_phrases: whether phrases of other conversations in a batch are negatives.
    """

    all_categories_share: float = 0.5
    max_categories: int = 200
    borrowed_prompts_share: float = 0.5
    max_borrowed_prompts: int = 5
    exemplars_share: float = 0.0
    fixed_wording_share: float = 0.5
    shared_phrases: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A reference to a visual prompt.

    Attributes:
        sample: position in the batch of the sample that it belongs to, whose image its feature is sampled from; None
            for no image.
        prompt: its position among that sample's prompts.
    """

    sample: int | None
    prompt: int = 0


def vary_categories(sample: TrainingSample, variation: Variation, random: np.random.Generator) -> TrainingSample:
    """Shuffle the categories of a sample, and leave out some of those that the image does not show."""
    if sample.task not in CATEGORY_TASKS:
        return sample
    present = np.unique(sample.labels)
    absent = random.permutation(np.setdiff1d(np.arange(len(sample.conditions)), present))
    if random.random() >= variation.all_categories_share:
        # A question needs at least one category.
        least = 0 if len(present) else 1
        absent = absent[: random.integers(least, max(least, len(absent)) + 1)]
    kept = np.concatenate([random.permutation(present), absent])[: variation.max_categories].astype(np.int64)
    order = random.permutation(kept)
    place = np.full(len(sample.conditions), -1, dtype=np.int64)
    place[order] = np.arange(len(order))
    labels = place[sample.labels]
    # A category beyond max_categories is not asked for, so its masks are no targets.
    asked = labels >= 0
    return replace(
        sample,
        conditions=tuple(sample.conditions[index] for index in order),
        masks=sample.masks[asked],
        labels=labels[asked],
    )


def choose_prompts(
    samples: Sequence[TrainingSample], place: int, variation: Variation, random: np.random.Generator
) -> tuple[list[Prompt], np.ndarray]:
    """Choose the visual prompts of a vgdseg sample: its own and some borrowed from other images, shuffled.

    Its own may be shown by other images, as exemplars. A borrowed prompt is of a category that this sample does not
    have, as far as the samples say. If the batch has none to lend, negatives have no image and a zero feature.

    Args:
        samples: the whole batch.
        place: position of the sample in it.
        variation: how often prompts are replaced by exemplars and borrowed, and how many.
        random: generator of this sample.

    Returns:
        The prompts, and for each of the sample's own prompts its position among them, int64.
    """
    sample = samples[place]
    prompts = [Prompt(sample=place, prompt=index) for index in range(len(sample.visual_prompts))]
    # Nothing is drawn for a setting that is off, so that batches of the others stay as they are.
    if variation.exemplars_share:
        for index, name in enumerate(sample.conditions):
            alike = [
                Prompt(sample=other, prompt=lent)
                for other, lender in enumerate(samples)
                if other != place and lender.visual_prompts
                for lent in (at for at, condition in enumerate(lender.conditions) if condition == name)
            ]
            if alike and random.random() < variation.exemplars_share:
                prompts[index] = alike[int(random.integers(len(alike)))]
    if random.random() < variation.borrowed_prompts_share and variation.max_borrowed_prompts:
        number = int(random.integers(1, variation.max_borrowed_prompts + 1))
        lent = [
            Prompt(sample=other, prompt=index)
            for other, lender in enumerate(samples)
            if other != place
            for index in range(len(lender.visual_prompts))
            if not (lender.conditions and lender.conditions[index] in sample.conditions)
        ]
        if lent:
            prompts += [lent[index] for index in random.permutation(len(lent))[:number]]
        else:
            prompts += [Prompt(sample=None)] * number
    order = random.permutation(len(prompts))
    return [prompts[index] for index in order], np.argsort(order)[: len(sample.visual_prompts)]


def choose_wording(
    sample: TrainingSample, conditions: Sequence[object], variation: Variation, random: np.random.Generator
) -> tuple[str | None, str | None]:
    """Choose the wordings of question and answer of a conversation.

    Args:
        sample: its own wordings take precedence.
        conditions: what is asked for.
        variation: how often the fixed wording is drawn.
        random: generator of this sample.

    Returns:
        Question and answer, None for that of the task.
    """
    question, answer = sample.question, sample.answer
    # A reaseg sample with an answer of its own is an explanation, which is asked for in its own wording.
    if question is None and not (sample.task == "reaseg" and answer is not None):
        texts = [text for text in conditions if isinstance(text, str)]
        question = draw(questions(sample.task, texts), variation.fixed_wording_share, random)
    if answer is None:
        answer = draw(answers(sample.task), variation.fixed_wording_share, random)
    return question, answer
