"""What the language model has made of an image before anything is asked: computed once, shared by all conversations.

In every conversation the image comes before the question, so that keys and values up to the image's last token are the
same whatever is asked (a causal model's states do not depend on what follows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
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
        layers: list[Any] = [
            _SharedLayer(keys, values, images, is_sliding=sliding_window is not None)
            for keys, values in zip(self.keys, self.values, strict=True)
        ]
        return Cache(layers=layers)


class _SharedLayer(CacheLayerMixin):
    """The past of one layer. What is new is read with it once, and not kept: nothing is generated after it.

    The rows of the past are gathered when the layer is run, and freed when it is done: one layer's at a time.
    """

    def __init__(self, keys: Tensor, values: Tensor, images: Tensor, *, is_sliding: bool) -> None:
        super().__init__()
        self.keys, self.values, self._images = keys, values, images
        self.is_sliding, self.is_initialized = is_sliding, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is missing."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return the past and what is new, each (B, heads, T + L, head_channels)."""
        return (
            torch.cat([self.keys[self._images], key_states], dim=2),
            torch.cat([self.values[self._images], value_states], dim=2),
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys there are, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        """Return the length of the past."""
        return int(self.keys.shape[2])

    def get_max_length(self) -> int:
        """Return that there is no limit."""
        return -1
