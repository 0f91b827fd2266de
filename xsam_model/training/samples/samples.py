"""TrainingSample, which every data set produces and batches consume: one image, its prompts and the correct answer."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from xsam_model.prompts.templates import PHRASE_START, SEG_TOKEN, SPOKEN_TASKS, TASKS, VISUAL_TASKS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingSample:
    """One image with the prompts of one task.

    Attributes:
        image: uint8 (H, W, 3) RGB, 0 to 255.
        task: one of `prompts.templates.TASKS`.
        conditions: categories, phrases or the question, as for `XSamProcessor` and one image. May include categories
            that the image does not show. Empty for gcgseg. For visual prompts empty, or the category of each prompt,
            which the model never reads but which keeps prompts of the same category from being borrowed as negatives.
        visual_prompts: bool (H, W), each with at least one pixel; vgdseg and intseg only.
        question, answer: wordings to use instead of the task's. `{}` in the question stands for the conditions. The
            answer has exactly one `<SEG>` except in chat. gcgseg, chat and explanations need an answer, because these
            tasks have no fixed one; that of gcgseg marks its phrases as `<p>phrase</p>`.
        masks: bool (N, H, W), ground-truth masks; N may be 0, as it is in chat.
        labels: int64 (N,), the condition that each mask belongs to, from 0: position among `conditions`, among
            `visual_prompts`, or among the marked phrases of the answer (gcgseg). Several masks may share a condition;
            conditions without a mask are negatives.
        ignore: bool (H, W), pixels that the losses ignore; None for none.
        source: name of the data set, by which batches are formed and sources resampled.
    """

    image: NDArray[np.uint8]
    task: str
    conditions: tuple[str, ...] = ()
    visual_prompts: tuple[NDArray[np.bool_], ...] = ()
    question: str | None = None
    answer: str | None = None
    masks: NDArray[np.bool_]
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    ignore: NDArray[np.bool_] | None = None
    source: str = ""

    def __post_init__(self) -> None:
        """Refuse inconsistent samples.

        Raises:
            ValueError: if arrays do not match each other, the task is unknown, or a label refers to no condition.
        """
        if self.task not in TASKS:
            raise ValueError(f"unknown task {self.task!r}; known: {', '.join(TASKS)}")
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.size == 0:
            raise ValueError(f"image must be uint8 (H, W, 3), got {self.image.dtype} {self.image.shape}")
        size = self.image.shape[:2]
        if self.masks.dtype != np.bool_ or self.masks.shape[1:] != size:
            raise ValueError(f"masks must be bool (N, {size[0]}, {size[1]}), got {self.masks.dtype} {self.masks.shape}")
        if self.labels.shape != self.masks.shape[:1]:
            raise ValueError(f"{len(self.masks)} masks have labels of shape {self.labels.shape}")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < self.num_conditions:
            raise ValueError(f"labels must be in 0 .. {self.num_conditions - 1}, got {self.labels.tolist()}")
        if self.task in VISUAL_TASKS and len(self.conditions) not in (0, len(self.visual_prompts)):
            raise ValueError(f"{len(self.conditions)} categories for {len(self.visual_prompts)} visual prompts")
        if any(prompt.shape != size or not prompt.any() for prompt in self.visual_prompts):
            raise ValueError(f"visual prompts must be bool {size} with at least one pixel")
        if self.ignore is not None and self.ignore.shape != size:
            raise ValueError(f"ignore must be bool {size}, got {self.ignore.shape}")
        if self.answer is not None and self.task != "chat" and self.answer.count(SEG_TOKEN) != 1:
            raise ValueError(f"the answer must hold {SEG_TOKEN} exactly once: {self.answer!r}")
        if self.answer is None and self.task in SPOKEN_TASKS:
            raise ValueError(f"{self.task} has no fixed answer: give the text as `answer`")

    @property
    def num_conditions(self) -> int:
        """Number of conditions that `labels` can refer to."""
        if self.task == "gcgseg":
            return (self.answer or "").count(PHRASE_START)
        return len(self.visual_prompts if self.task in VISUAL_TASKS else self.conditions)
