"""What the language model has made of an image before anything is asked: computed once, shared by all conversations.

In every conversation the image comes before the question, so that keys and values up to the image's last token are the
same whatever is asked (a causal model's states do not depend on what follows).
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
    """Keys and values of images in the language model; give it to `XSamForSegmentation.forward` with their features.

    Attributes:
        token_ids (`torch.Tensor` of shape `(P,)`, int64): of the text before the image.
        keys, values (`tuple` of `torch.Tensor` of shape `(I, heads, T, head_channels)`): of each layer, for the text
            before the image and the image's own T - P tokens.
    """

    token_ids: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, token_ids: Tensor, cache: DynamicCache) -> XSamImagePrefix:
        """Take over what a pass over the prefix has left in a cache."""
        layers: list[Any] = list(cache.layers)
        return cls(
            token_ids=token_ids,
            keys=tuple(layer.keys for layer in layers),
            values=tuple(layer.values for layer in layers),
        )

    @property
    def num_tokens(self) -> int:
        """T: tokens that a conversation begins behind."""
        return int(self.keys[0].shape[2])

    def cache(self, images: Tensor, sliding_window: int | None) -> Cache:
        """Return what the language model takes as the past of conversations about these images, (B,) int64."""
        is_in_order = torch.equal(images, torch.arange(len(self.keys[0]), device=images.device))
        layers: list[Any] = [
            _SharedLayer(keys, values, None if is_in_order else images, is_sliding=sliding_window is not None)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        return Cache(layers=layers)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedTexts:
    """Texts behind images, those of one image one after the other in a row, blind for each other.

    So an image's keys and values stand once beside all that is asked of it, and not once beside each conversation.

    Attributes:
        embeds (`torch.Tensor` of shape `(R, L, E)`): the rows, padded on the right.
        images (`torch.Tensor` of shape `(R,)`, int64): the image that each row is behind.
        position_ids (`torch.Tensor` of shape `(R, L)`, int64): every text begins right behind the image.
        attention_mask (`torch.Tensor` of shape `(R, 1, L, T + L)`, bool): the image, and the text itself up to here.
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
        """Pack texts.

        Args:
            texts: (L, E) each.
            images: the image that each is about.
            num_before: T, tokens before each text.
            window: how far attention reaches back, the token itself included; None for all the way.
            row_length: tokens of a row at most, unless one text alone has more.
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
        owners = torch.full(embeds.shape[:2], -1)
        offsets = torch.zeros_like(owners)
        for number, (row, start, length) in enumerate(places):
            owners[row, start : start + length] = number
            offsets[row, start : start + length] = torch.arange(length)
        owners, offsets = owners.to(embeds.device), offsets.to(embeds.device)
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
        """(R, L, E) -> (L, E) for each text."""
        return [hidden[row, start : start + length] for row, start, length in self.places]


class _SharedLayer(CacheLayerMixin):
    """The past of one layer. What is new is read with it once, and not kept: nothing is generated after it.

    The rows of the past are gathered when the layer is run, and freed when it is done: one layer's at a time.
    """

    def __init__(self, keys: Tensor, values: Tensor, images: Tensor | None, *, is_sliding: bool) -> None:
        super().__init__()
        self.keys, self.values, self._images = keys, values, images
        self.is_sliding, self.is_initialized = is_sliding, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is missing."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the past and what is new, each (B, heads, T + L, head_channels)."""
        keys, values = self.keys, self.values
        if self._images is not None:
            keys, values = keys[self._images], values[self._images]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys there are, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the length of the past."""
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        """Return that there is no limit."""
        return -1
