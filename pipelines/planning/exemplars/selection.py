"""Which images are asked which exemplars: patterns of image ids, applied to a listing on its way into a plan."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import SourceError
from pipelines.redaction import counted, quoted
from pipelines.sources.image_batches import IMAGES
from pipelines.types import Prompt

_COMMON = IMAGES.field("common")


class Selection:
    """Says in the column ``common`` of listed images which prompts they are asked, if not all of the run's.

    Attributes:
        counts: images that match each pattern, counted while the listing is read.
        num_images: images that were read.
    """

    def __init__(self, prompts: Sequence[Prompt], patterns: Mapping[str, str]) -> None:
        """Prepare it; the patterns are those of ``exemplars.config.selections``, of prompts that have one."""
        self._ids = [prompt.prompt_id for prompt in prompts]
        self._patterns = dict(patterns)
        self.counts, self.num_images = Counter[str](), 0

    def marked(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield listed images with the column; unchanged if no prompt has a pattern."""
        for batch in batches:
            self.num_images += batch.num_rows
            yield batch.append_column(_COMMON, self._common(batch["image_id"])) if self._patterns else batch

    def _common(self, ids: pa.StringArray) -> pa.Array:
        masks = {pattern: _matches(ids, pattern) for pattern in set(self._patterns.values())}
        self.counts.update({pattern: int(mask.sum()) for pattern, mask in masks.items()})
        if not len(ids):
            return pa.nulls(0, _COMMON.type)
        asked = np.array([masks[self._patterns[one]] for one in self._patterns])
        kinds, kind = np.unique(asked, axis=1, return_inverse=True)
        lists = [self._list(dict(zip(self._patterns, is_asked, strict=True))) for is_asked in kinds.T]
        return pa.array(lists, _COMMON.type).take(pa.array(kind.reshape(-1)))

    def _list(self, is_asked: Mapping[str, bool]) -> list[str] | None:
        asked = [prompt_id for prompt_id in self._ids if is_asked.get(prompt_id, True)]
        return None if len(asked) == len(self._ids) else asked

    def check(self, *, may_match_none: bool = False) -> list[str]:
        """Return what to tell of the patterns once the listing has been read.

        Args:
            may_match_none: whether the listing is of some images only, so that a pattern may have none of them.

        Raises:
            SourceError: a pattern matches no image.
        """
        told = []
        for prompt_id, pattern in self._patterns.items():
            if not self.counts[pattern] and not may_match_none:
                raise SourceError(
                    f"{prompt_id} is to be asked of images {quoted(pattern)}, and none of the "
                    f"{counted(self.num_images, 'listed image')} has such an id"
                )
            told.append(
                f"{prompt_id} is asked of {self.counts[pattern]:,} of {counted(self.num_images, 'listed image')}"
            )
        return told


def _matches(ids: pa.StringArray, pattern: str) -> NDArray[np.bool_]:
    words = (".*" if sign == "*" else "." if sign == "?" else re.escape(sign) for sign in pattern)
    return np.asarray(pc.match_substring_regex(ids, f"(?s)^{''.join(words)}$"), np.bool_)
