"""Which images of a shard go through the model together: those with texts of about the same length, within a budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.images.prefetch import Loaded
from pipelines.types import Image, ImagePrediction, ImageRef, Prompt

# Texts whose lengths differ by less are alike: some 60 tokens, where an image alone is 1,800.
_ALIKE_CHARS = 256


def order_by_text(images: Sequence[ImageRef], prompts: Sequence[Prompt]) -> list[int]:
    """Return the positions of images so that those of which about the same amount of text is asked come together.

    Every text of a batch is padded to the longest. Images that are asked the same stay in order, which containers are
    read in.

    Args:
        images: of a shard.
        prompts: asked of every image.
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
    """Group in order, so that each group holds up to ``size`` decoded images and any number of failed ones.

    A group also ends with the image that fills its bytes: nothing is released before, and the next one would pass the
    budget unheeded, for the consumer waits for it.
    """
    group: list[Loaded[Image | ImagePrediction]] = []
    decoded = held = 0
    for item in loaded:
        group.append(item)
        decoded += isinstance(item.value, Image)
        held += item.num_bytes
        del item
        if decoded == size or held >= max_bytes:
            yield group
            group, decoded, held = [], 0, 0
    if group:
        yield group
