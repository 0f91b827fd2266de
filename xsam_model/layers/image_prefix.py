"""The prefix (KV) cache of an image in the language model, computed once and shared by all conversations about it.

In every conversation the image precedes the question, and the states of a causal model do not depend on later tokens.
Keys and values up to the image's last token are therefore the same whatever is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class XSamImagePrefix:
    """Cached keys and values of images; pass it to `XSamForSegmentation.forward` together with their features.

    Attributes:
        token_ids (`torch.Tensor` of shape `(P,)`, int64): ids of the text before the image.
        keys, values (`tuple` of `torch.Tensor` of shape `(I, heads, T, head_channels)`): of each layer, for the text
            before the image and the image's own T - P tokens.
    """

    token_ids: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, token_ids: Tensor, cache: DynamicCache) -> XSamImagePrefix:
        """Take the keys and values from a cache that a pass over the prefix has filled."""
        layers: list[Any] = list(cache.layers)
        return cls(
            token_ids=token_ids,
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
        )

    @property
    def num_tokens(self) -> int:
        """T: length of the prefix in tokens."""
        return int(self.keys[0].shape[2])

    def cache(self, images: Tensor, sliding_window: int | None) -> Cache:
        """Return the cache for conversations about these images, (B,) int64."""
        # With one conversation for each image, in order, the layers need not gather (copy) their keys and values.
        is_in_order = torch.equal(images, torch.arange(len(self.keys[0]), device=images.device))
        layers: list[Any] = [
            _SharedLayer(keys, values, None if is_in_order else images, is_sliding=sliding_window is not None)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        return Cache(layers=layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedTexts:
    """Questions about one image packed into a row; attention masks keep them apart.

    The keys and values of an image are then needed once for each row, not once for each question.

    Attributes:
        embeds (`torch.Tensor` of shape `(R, L, E)`): the rows, padded on the right.
        images (`torch.Tensor` of shape `(R,)`, int64): the image that each row is about.
        position_ids (`torch.Tensor` of shape `(R, L)`, int64): in every text they start right after the image.
        attention_mask (`torch.Tensor` of shape `(R, 1, L, T + L)`, bool): for each token the image prefix within the
            window, and its own text up to and including itself.
        places: row, start and length of each text.
    """

    embeds: Tensor
    images: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    places: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(
        cls, texts: Sequence[Tensor], images: Sequence[int], *, num_before: int, window: int | None, row_length: int
    ) -> PackedTexts:
        """Pack texts into rows.

        Args:
            texts: embeddings, (L, E) each.
            images: the image that each text is about.
            num_before: T, length of the image prefix in tokens.
            window: tokens that attention reaches, the token itself included; None for no limit.
            row_length: most tokens in a row; a longer text has a row of its own.
        """
        rows: list[list[Tensor]] = []
        of_rows, open_rows, places = list[int](), dict[int, int](), list[tuple[int, int, int]]()
        for text, image in zip(texts, images, strict=True):
            row = open_rows.get(image)
            start = sum(map(len, rows[row])) if row is not None else 0
            if row is None or start + len(text) > row_length:
                row, start = len(rows), 0
                rows.append([])
                of_rows.append(image)
                open_rows[image] = row
            rows[row].append(text)
            places.append((row, start, len(text)))
        embeds = pad_sequence([torch.cat(row) for row in rows], batch_first=True)
        # Built on the CPU: the loop writes many short slices, each of which would be a kernel launch on a GPU.
        owners = torch.full(embeds.shape[:2], -1)
        offsets = torch.zeros_like(owners)
        for number, (row, start, length) in enumerate(places):
            owners[row, start : start + length] = number
            offsets[row, start : start + length] = torch.arange(length)
        owners, offsets = owners.to(embeds.device), offsets.to(embeds.device)
        # Without a window, one that is longer than any conversation.
        reach = window or num_before + int(offsets.max()) + 1
        back = offsets[:, :, None] - offsets[:, None]
        is_own = (owners[:, :, None] == owners[:, None]) & (back >= 0) & (back < reach)
        before = torch.arange(num_before, device=embeds.device)
        is_near = num_before + offsets[:, :, None] - before < reach
        return cls(
            embeds=embeds,
            images=torch.tensor(of_rows, device=embeds.device),
            position_ids=num_before + offsets,
            attention_mask=torch.cat([is_near, is_own], dim=2)[:, None],
            places=tuple(places),
        )

    def unpack(self, hidden: Tensor) -> list[Tensor]:
        """Take the rows apart again: (R, L, E) -> (L, E) for each text."""
        return [hidden[row, start : start + length] for row, start, length in self.places]


class _SharedLayer(CacheLayerMixin):
    """The prefix cache of one layer. New keys and values are attended to but not stored, since nothing is generated.

    The rows of the conversations are gathered when the layer runs and freed after it, one layer at a time.
    """

    def __init__(self, keys: Tensor, values: Tensor, images: Tensor | None, *, is_sliding: bool) -> None:
        super().__init__()
        self.keys, self.values, self._images = keys, values, images
        self.is_sliding, self.is_initialized = is_sliding, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the layer is created with its keys and values."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return cached and new keys, and cached and new values, each (B, heads, T + L, head_channels)."""
        keys, values = self.keys, self.values
        if self._images is not None:
            keys, values = keys[self._images], values[self._images]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of keys, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the number of cached tokens."""
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        """Return -1: there is no limit."""
        return -1
