"""Phi-3's layers in fewer passes over memory, with the weights of transformers.

On a GPU the matrix products of the language model take hardly longer than the operations between them, which read and
write the whole batch again and again (benchmarks/RESULTS.md). Here a norm is one kernel, queries and keys are rotated
(RoPE, Su et al. 2021) together, in three steps instead of sixteen, and texts longer than the attention window need no
mask of all pairs of tokens. On a CPU the last layer computes only the states that are read, those behind the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers.models.phi3.modeling_phi3 import (
    ALL_ATTENTION_FUNCTIONS,
    Phi3Attention,
    Phi3DecoderLayer,
    Phi3RMSNorm,
    eager_attention_forward,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.cache_utils import Cache


class XSamPhi3RMSNorm(Phi3RMSNorm):
    """Root mean square norm with float32 statistics, rounded only once, at the end."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class XSamPhi3Attention(Phi3Attention):
    """Causal attention for inference; where gradients are needed, that of transformers."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from each token to those before it.

        The option ``is_right_padded`` promises that the mask hides nothing but padding on the right; texts longer than
        the window are then attended to without reading it.

        Args:
            hidden_states: (B, L, C).
            position_embeddings: cosines and sines of the tokens' angles, (1 or B, L, rotated channels) each.
            attention_mask: as the attention implementation of transformers takes it.
            options: for the attention implementation; and the cache of earlier tokens, to which these are added, as
                `past_key_values` or, from transformers 5.24 on, as `cache`.

        Returns:
            (B, L, C), and the attention weights if the implementation returns them.
        """
        is_right_padded = options.pop("is_right_padded", False)
        # `rotate` writes into preallocated memory, which autograd does not support.
        if torch.is_grad_enabled():
            return super().forward(hidden_states, position_embeddings, attention_mask, **options)
        earlier: Cache | None = None
        for name in ("past_key_values", "cache"):
            if (given := options.pop(name, None)) is not None:
                earlier = given
        num_queries, num_keys = self.config.num_attention_heads, self.num_key_value_heads
        # Queries and keys lie side by side in the product, so one call rotates both.
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        rotated = rotate(heads[..., : num_queries + num_keys, :], *position_embeddings)
        query, key = (part.transpose(1, 2) for part in rotated.split((num_queries, num_keys), dim=2))
        value = heads[..., num_queries + num_keys :, :].transpose(1, 2)
        if earlier is not None:
            key, value = earlier.update(key, value, self.layer_idx)
        window, attention = getattr(self.config, "sliding_window", None), self.config._attn_implementation
        if is_right_padded and attention == "sdpa" and window and query.shape[2] > window:
            return self.o_proj(attend_in_window(query, key, value, window, self.scaling).flatten(2)), None
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention, eager_attention_forward)
        attended, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, sliding_window=window, **options
        )
        return self.o_proj(attended.flatten(2)), weights

    def attend_from(self, first: int, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        """Attend as `forward` does, with queries for the tokens from `first` on only.

        Args:
            first: position of the first query.
            hidden_states: (B, L, C), no longer than the attention window, padded on the right or not at all.
            position_embeddings: as for `forward`.

        Returns:
            (B, L - first, C).
        """
        asked, size = self.config.num_attention_heads, self.head_dim
        weight, kept = self.qkv_proj.weight, self.num_key_value_heads
        query = F.linear(hidden_states[:, first:], weight[: asked * size]).unflatten(-1, (asked, size))
        key, value = F.linear(hidden_states, weight[asked * size :]).unflatten(-1, (2 * kept, size)).split(kept, dim=2)
        query = rotate(query, *(part[:, first:] for part in position_embeddings))
        query, key, value = (part.transpose(1, 2) for part in (query, rotate(key, *position_embeddings), value))
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=places[first:, None] >= places, scale=self.scaling, enable_gqa=asked != kept
        )
        return self.o_proj(attended.transpose(1, 2).flatten(2))


class XSamPhi3DecoderLayer(Phi3DecoderLayer):
    """A layer that can leave out the states of the first tokens, if no later layer needs them."""

    def forward(self, hidden_states: Tensor, *args: Any, states_from: int = 0, **options: Any) -> Tensor:
        """(B, L, C) -> (B, L, C), or of the last layer (B, L - states_from, C)."""
        if not states_from or self.self_attn.layer_idx + 1 < self.config.num_hidden_layers:
            return super().forward(hidden_states, *args, **options)
        normal, positions = self.input_layernorm(hidden_states), options["position_embeddings"]
        hidden_states = hidden_states[:, states_from:] + self.self_attn.attend_from(states_from, normal, positions)
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotate pairs of channels, the i-th of the first half with the i-th of the second, by the angle of their token.

    Args:
        heads: (B, L, heads, D).
        cosines, sines: (1 or B, L, R), the same in both halves of R; channels beyond R are copied unchanged.

    Returns:
        (B, L, heads, D), contiguous.
    """
    size = cosines.shape[-1]
    # Half of the sines is enough, since both halves are the same.
    cosines, sines = cosines[:, :, None], sines[:, :, None, : size // 2]
    rotated = torch.empty_like(heads, memory_format=torch.contiguous_format)
    torch.mul(heads[..., :size], cosines, out=rotated[..., :size])
    first, second = heads[..., :size].chunk(2, -1)
    rotated[..., : size // 2].addcmul_(second, sines, value=-1)
    rotated[..., size // 2 : size].addcmul_(first, sines)
    if size < heads.shape[-1]:
        rotated[..., size:] = heads[..., size:]
    return rotated


def attend_in_window(query: Tensor, key: Tensor, value: Tensor, window: int, scale: float) -> Tensor:
    """Attend from each token to itself and those before it, `window` tokens in all (sliding-window attention).

    Fused kernels support causal order without a mask, but no window: they would need a mask of all pairs, with which
    torch does not choose the fastest of them. Here the first `window` queries, which the window does not limit, go
    without a mask; the others follow in blocks of `window` queries, each with a mask over at most twice as many keys.

    Args:
        query: (B, heads, L, D).
        key, value: (B, key heads, L, D); consecutive query heads share a key head.
        window: at least 1.
        scale: factor of the products of query and key.

    Returns:
        (B, L, heads, D).
    """
    length, is_grouped = query.shape[2], query.shape[1] != key.shape[1]

    def attend(first: int, start: int, stop: int, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(
            query[:, :, start:stop],
            key[:, :, first:stop],
            value[:, :, first:stop],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=is_grouped,
        )

    parts = [attend(0, 0, min(window, length), None)]
    for start in range(window, length, window):
        first, stop = start - window + 1, min(start + window, length)
        places = torch.arange(first, stop, device=query.device)
        back = places[window - 1 :, None] - places
        parts.append(attend(first, start, stop, (back >= 0) & (back < window)))
    return torch.cat(parts, 2).transpose(1, 2)


def read_right_padded(model: nn.Module, embeds: Tensor, states_from: int = 0) -> Tensor:
    """Return the last hidden states of right-padded texts, without an attention mask.

    In a causal model no token attends to the padding after it, so there is nothing to mask.

    Args:
        model: a causal language model of transformers, without its head.
        embeds: (B, L, C), padded on the right.
        states_from: position of the first token whose state is needed.

    Returns:
        (B, L - states_from, C); states of padding have no meaning.
    """
    has_our_layers = any(isinstance(module, XSamPhi3Attention) for module in model.modules())
    options: dict[str, Any] = {"is_right_padded": True} if has_our_layers else {}
    # Not on a GPU, where attention with a mask rounds otherwise than the fused kernel for causal attention.
    config: Any = model.config
    is_inference = embeds.device.type == "cpu" and not torch.is_grad_enabled()
    is_whole = embeds.shape[1] <= (getattr(config, "sliding_window", None) or embeds.shape[1])
    if has_our_layers and is_inference and is_whole and config._attn_implementation == "sdpa":
        options["states_from"] = states_from
    hidden: Tensor = model(inputs_embeds=embeds, use_cache=False, **options).last_hidden_state
    return hidden[:, hidden.shape[1] - (embeds.shape[1] - states_from) :]


def use_language_layers(model: nn.Module) -> None:
    """Replace the layers of a Phi-3 model by those above; any other model is left alone."""
    forms: dict[type[nn.Module], type[nn.Module]] = {
        Phi3RMSNorm: XSamPhi3RMSNorm,
        Phi3Attention: XSamPhi3Attention,
        Phi3DecoderLayer: XSamPhi3DecoderLayer,
    }
    # Changing the class keeps parameters and their names, so that checkpoints load unchanged.
    for module in model.modules():
        module.__class__ = forms.get(type(module), type(module))
