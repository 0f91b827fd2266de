"""Groups prompts into conversations with the network, and rejects prompts that the network could not be asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.masks import rle
from pipelines.types import (
    CATEGORY_TASKS,
    REGION_TASKS,
    SENTENCE_TASKS,
    Exemplar,
    Image,
    Prompt,
    Region,
    RejectedPrompt,
    Task,
)
from xsam_model.prompts.conversations import ConversationEncoder, TooManyConditionsError
from xsam_model.prompts.visual import draw_region

if TYPE_CHECKING:
    from torch import Tensor

    from xsam_model.segmenter import Query

_JOINT_TASKS = (*CATEGORY_TASKS, "vgdseg")
# Their categories may be spread over several conversations, because every mask stands by itself. Panoptic and semantic
# maps give each pixel to one category, so there all categories must compete in one conversation.
_DIVISIBLE_TASKS = ("ovseg", "genseg")
_CITED_CHARS = 60


class Ask(NamedTuple):
    """The kind of conversations that can share a forward pass: their task, and whether the answer is explained."""

    task: Task
    explain: bool

    @property
    def network_task(self) -> str:
        """The network's name of the task, e.g. "ovseg" for ovseg_panoptic: the kind of map is post-processing."""
        return self.task.partition("_")[0]

    @property
    def is_spoken(self) -> bool:
        """Whether the model generates its answer instead of being given a fixed one."""
        return self.explain or self.task in ("gcgseg", "chat")


class ConversationDraft(NamedTuple):
    """Prompts about one image that share a conversation, not validated yet."""

    image: int
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversation:
    """A validated conversation about one image.

    Attributes:
        image: position of the image in its batch.
        prompts: what is asked; the network's labels are positions in it.
        regions: for each of the visual prompts, if they are that, its region as bool (H, W) mask at the image's size;
            None for exemplars, which are regions of other images.
    """

    image: int
    prompts: tuple[Prompt, ...]
    regions: tuple[NDArray[np.bool_] | None, ...] = ()

    def query(self, task: Task, shown: Mapping[tuple[Exemplar, ...], Tensor] = MappingProxyType({})) -> Query:
        """Return the conversation as a query for XSamSegmenter.ask.

        Args:
            task: what is asked.
            shown: what the network has made of the exemplars of each prompt that has some.
        """
        from xsam_model.segmenter import Query

        drawn = zip(self.prompts, self.regions, strict=False)
        region = self.prompts[0].region if task == "intseg" else None
        return Query(
            image=self.image,
            conditions=_conditions(task, self.prompts),
            visual_prompts=[shown[prompt.exemplars] if mask is None else mask for prompt, mask in drawn],
            region_kind=region.kind if region else None,
        )


@lru_cache(maxsize=1000)
def cut(processor: ConversationEncoder, ask: Ask, prompts: tuple[Prompt, ...]) -> tuple[tuple[Prompt, ...], ...]:
    """Split categories over as few conversations as hold them, of about equal length.

    A list with a category that fits into no conversation is returned whole; `try_words` then says what is wrong.
    """
    parts: list[tuple[Prompt, ...]] = []
    rest = prompts
    while rest:
        # Tokenizing is the only way to know how many fit. About as many will as last time, so twice that is enough.
        tried = rest[: 2 * len(parts[-1])] if parts else rest
        num_fitting = _num_fitting(processor, ask, tried)
        if num_fitting == 0:
            return (prompts,)
        parts.append(rest[:num_fitting])
        rest = rest[num_fitting:]
    size = -(-len(prompts) // len(parts))
    even = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    fits = all(_num_fitting(processor, ask, part) == len(part) for part in even)
    return tuple(even if fits else parts)


def _num_fitting(processor: ConversationEncoder, ask: Ask, prompts: Sequence[Prompt]) -> int:
    try:
        try_words(processor, ask, prompts)
    except TooManyConditionsError as error:
        return error.num_fitting
    except ValueError:
        return 0
    return len(prompts)


def drafts(prompts: Sequence[Sequence[Prompt]], processor: ConversationEncoder) -> dict[Ask, list[ConversationDraft]]:
    """Group the prompts of a batch into conversations, image by image.

    The categories of an image share a conversation and compete for each mask, unless there are too many of them; so do
    its regions of vgdseg. Every other prompt has a conversation of its own, as in the network's training.
    """
    found: dict[Ask, list[ConversationDraft]] = {}
    for image, asked in enumerate(prompts):
        together: dict[Ask, list[Prompt]] = {}
        for prompt in asked:
            ask = Ask(prompt.task, prompt.explain)
            if prompt.task in _JOINT_TASKS:
                together.setdefault(ask, []).append(prompt)
            else:
                found.setdefault(ask, []).append(ConversationDraft(image, (prompt,)))
        for ask, joint in together.items():
            whole = tuple(joint)
            parts = cut(processor, ask, whole) if ask.task in _DIVISIBLE_TASKS else (whole,)
            found.setdefault(ask, []).extend(ConversationDraft(image, part) for part in parts)
    return found


def divided(group: Sequence[ConversationDraft]) -> dict[int, dict[str, int]]:
    """Return, for each image whose categories span several conversations, the conversation of each prompt_id."""
    by_image: dict[int, list[ConversationDraft]] = {}
    for draft in group:
        if draft.prompts[0].task in _DIVISIBLE_TASKS:
            by_image.setdefault(draft.image, []).append(draft)
    return {
        image: {prompt.prompt_id: part for part, draft in enumerate(parts) for prompt in draft.prompts}
        for image, parts in by_image.items()
        if len(parts) > 1
    }


def prepare(
    draft: ConversationDraft, image: Image, processor: ConversationEncoder
) -> tuple[Conversation | None, list[RejectedPrompt]]:
    """Validate a draft: rasterise its regions, and tokenize a sentence that came with the image.

    Returns:
        The conversation, or None if none of its prompts can be asked; and the prompts that cannot.
    """
    good, regions, refused = list[Prompt](), list[NDArray[np.bool_] | None](), list[RejectedPrompt]()
    for prompt in draft.prompts:
        try:
            if prompt.exemplars:
                regions.append(None)
            elif prompt.task in REGION_TASKS:
                regions.append(draw(prompt.region or Region(kind="mask"), image.size_hw))
            # Prompts asked of every image were tried when the replica started; those of a table only in part.
            elif prompt.source_row >= 0:
                try_words(processor, Ask(prompt.task, prompt.explain), [prompt])
        except ValueError as error:
            refused.append(RejectedPrompt.of(prompt, image.ref.image_id, str(error)))
        else:
            good.append(prompt)
    if not good:
        return None, refused
    return Conversation(image=draft.image, prompts=tuple(good), regions=tuple(regions)), refused


def draw(region: Region, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw a region as a bool (H, W) mask; raises ValueError if it does not fit the image of this size."""
    mask = rle.decode(region.mask) if region.mask else None
    return draw_region(region.kind, region.coordinates, size_hw, mask)


def check_prompts(processor: ConversationEncoder, prompts: Sequence[Prompt]) -> None:
    """Check that the prompts asked of every image fit the model.

    Raises:
        ValueError: they do not, e.g. there are more categories or exemplars' labels than fit into its text (says how
            many do), a sentence is too long (says by how much), or a prompt contains a token that the model reserves.
    """
    for ask, group in drafts([prompts], processor).items():
        for draft in group:
            try_words(processor, ask, draft.prompts)


def try_words(processor: ConversationEncoder, ask: Ask, prompts: Sequence[Prompt]) -> None:
    """Tokenize the conversation of some prompts, without an image; raises ValueError if it cannot be asked."""
    conditions = _conditions_to_try(ask.task, prompts)
    try:
        processor.token_ids(conditions, task=ask.network_task, explain=ask.explain, generate=ask.is_spoken)
    except ValueError as error:
        about = f"{ask.task} {prompts[0].text[:_CITED_CHARS]!r}: " if len(prompts) == 1 else f"{ask.task}: "
        message = f"{about}{error}"
        if isinstance(error, TooManyConditionsError):
            raise TooManyConditionsError(message, error.num_fitting) from error
        raise ValueError(message) from error


def _conditions(task: Task, prompts: Sequence[Prompt]) -> list[str]:
    has_words = task in (*CATEGORY_TASKS, *SENTENCE_TASKS)
    return [prompt.text for prompt in prompts] if has_words else []


def _conditions_to_try(task: Task, prompts: Sequence[Prompt]) -> list[str]:
    # Of regions only their number counts.
    return [prompt.text for prompt in prompts] if task in REGION_TASKS else _conditions(task, prompts)


def batched(items: Sequence[ConversationDraft], size: int) -> Iterator[Sequence[ConversationDraft]]:
    """Yield consecutive batches of up to ``size`` drafts."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
