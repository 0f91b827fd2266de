"""Find the image at fault when the model fails on a batch or its process crashes, so that only that one is lost."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pipelines.types import Answer, CrashHistory, Image, ImageRef, PredictionError, Predictor, Prompt, Reason


class ModelClock:
    """Adds up the seconds spent in the predictor for a shard."""

    def __init__(self) -> None:
        self.seconds = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The model's answer for one image, or why there is none, with the number of tries and the milliseconds it took.

    The stage is "decode" where a tile could not be decoded.
    """

    answer: Answer = field(default_factory=Answer)
    reason: Reason | None = None
    stage: str = "model"
    error: str | None = None
    attempts: int = 0
    model_ms: float = 0.0


def ask(
    images: Sequence[Image], prompts: Sequence[Sequence[Prompt]], predictor: Predictor, clock: ModelClock
) -> list[Asked]:
    """Ask the model about images together; on failure, split them in halves until the image at fault is alone.

    Returns:
        One Asked for each image, in order.
    """
    todo = [i for i, asked in enumerate(prompts) if asked]
    results = [Asked() for _ in images]
    # A stack, not a recursive closure: that is a reference cycle, and keeps the pixels until garbage is collected.
    waiting = [(todo, 1)] if todo else []
    while waiting:
        indices, tries = waiting.pop()
        started = time.perf_counter()
        failure: tuple[Reason, str] | None = None
        try:
            answers = predictor.predict([images[i] for i in indices], [prompts[i] for i in indices])
        except Exception as error:  # noqa: BLE001 - one image's failure must not become the run's
            failure = failure_of(error)
        elapsed = time.perf_counter() - started
        clock.seconds += elapsed
        if failure is None:
            for i, answer in zip(indices, answers, strict=True):
                results[i] = Asked(answer=answer, attempts=tries, model_ms=elapsed * 1000 / len(indices))
        elif len(indices) == 1:
            reason, message = failure
            results[indices[0]] = Asked(reason=reason, error=message, attempts=tries, model_ms=elapsed * 1000)
        else:
            middle = len(indices) // 2
            waiting += [(indices[middle:], tries + 1), (indices[:middle], tries + 1)]
    return results


def failure_of(error: Exception) -> tuple[Reason, str]:
    """Return why there is no answer, and the message for it, where an error of the model is handled."""
    if isinstance(error, PredictionError):
        return error.reason, str(error)
    if isinstance(error, MemoryError):
        return Reason.OUT_OF_MEMORY, "the model ran out of host memory"
    return Reason.MODEL_FAILED, traceback.format_exc()


def groups_after_crashes(images: Sequence[ImageRef], crashes: CrashHistory, size: int) -> Iterator[list[ImageRef]]:
    """Cut a shard's images, in order, into groups that are labeled one after the other.

    Args:
        images: the images of the shard.
        crashes: its suspects and fatal images each form a group of their own.
        size: the largest number of images in a group.
    """
    group: list[ImageRef] = []
    for ref in images:
        is_alone = ref.image_id in crashes.suspects or ref.image_id in crashes.fatal
        if group and (is_alone or len(group) == size):
            yield group
            group = []
        if is_alone:
            yield [ref]
        else:
            group.append(ref)
    if group:
        yield group
