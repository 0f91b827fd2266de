"""Group a shard's images into batches: images with about the same amount of text together, within a byte budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.images.prefetch import Loaded
from pipelines.types import Image, ImagePrediction, ImageRef, Prompt

# Lengths in the same bucket of this size count as equal: some 60 tokens, little beside the 1,800 of an image.
_ALIKE_CHARS = 256


def order_by_text(images: Sequence[ImageRef], prompts: Sequence[Prompt]) -> list[int]:
    """Return the positions of a shard's images, ordered so that images with similar amounts of text are neighbors.

    Every text of a batch is padded to the longest, so mixed lengths waste compute. The sort is stable: images with
    equal lengths keep their order, in which tars and tables are read sequentially.

    Args:
        images: the images of a shard.
        prompts: the prompts asked of every image.
    """
    common = sum(len(prompt.text) for prompt in prompts)

    def length(position: int) -> int:
        ref = images[position]
        if ref.common is None and not ref.prompts:
            return common // _ALIKE_CHARS
        return sum(len(prompt.text) for prompt in ref.asked(prompts)) // _ALIKE_CHARS

    return sorted(range(len(images)), key=length)


def batches(
    loaded: Iterator[Loaded[Image | ImagePrediction]], size: int, max_bytes: int
) -> Iterator[list[Loaded[Image | ImagePrediction]]]:
    """Group images in order, up to ``size`` decoded ones to a group and any number of failed ones.

    A group also ends with the image that brings it to ``max_bytes``. Its bytes are only released after it is answered,
    and the image that the consumer waits for is always let through: a larger group would overrun the budget.
    """
    group: list[Loaded[Image | ImagePrediction]] = []
    decoded = held = 0
    for item in loaded:
        group.append(item)
        decoded += isinstance(item.value, Image)
        held += item.num_bytes
        del item  # otherwise this frame would keep the pixels alive while the batch is answered
        if decoded == size or held >= max_bytes:
            yield group
            group, decoded, held = [], 0, 0
    if group:
        yield group
