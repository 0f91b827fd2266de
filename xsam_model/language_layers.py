"""Phi-3's norms and rotations in fewer passes over memory, with transformers' weights.

On a GPU the language model's matrix products take hardly longer than what lies between them, which reads and writes the
whole batch again and again (benchmarks/RESULTS.md). Here a norm is one kernel, and queries and keys are rotated (RoPE,
Su et al. 2021) together, in three steps instead of sixteen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from transformers.models.phi3.modeling_phi3 import (
    ALL_ATTENTION_FUNCTIONS,
    Phi3Attention,
    Phi3RMSNorm,
    eager_attention_forward,
)

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers.cache_utils import Cache


class XSamPhi3RMSNorm(Phi3RMSNorm):
    """Root mean square norm whose statistics are float32, rounded once."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class XSamPhi3Attention(Phi3Attention):
    """Causal attention; with a gradient it is transformers' own."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from each token to those before it.

        Args:
            hidden_states: (B, L, C).
            position_embeddings: cosines and sines of the tokens' angles, (1 or B, L, rotated channels) each.
            attention_mask: as the chosen attention of transformers takes it.
            past_key_values: what was read before, and is added to.
            options: for the chosen attention.

        Returns:
            (B, L, C), and the weights where the chosen attention returns them.
        """
        if torch.is_grad_enabled():
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **options)
        num_queries, num_keys = self.config.num_attention_heads, self.num_key_value_heads
        heads = self.qkv_proj(hidden_states).unflatten(-1, (-1, self.head_dim))
        rotated = rotate(heads[..., : num_queries + num_keys, :], *position_embeddings)
        query, key = (part.transpose(1, 2) for part in rotated.split((num_queries, num_keys), dim=2))
        value = heads[..., num_queries + num_keys :, :].transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        window = getattr(self.config, "sliding_window", None)
        attended, weights = attend(
            self, query, key, value, attention_mask, scaling=self.scaling, sliding_window=window, **options
        )
        return self.o_proj(attended.flatten(2)), weights


def rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn pairs of channels, the i-th of the first half with the i-th of the second, by the angle of their token.

    Args:
        heads: (B, L, heads, D).
        cosines, sines: (1 or B, L, R), both halves alike; channels beyond R are left as they are.

    Returns:
        (B, L, heads, D), contiguous.
    """
    size = cosines.shape[-1]
    cosines, sines = cosines[:, :, None], sines[:, :, None, : size // 2]
    rotated = torch.empty_like(heads, memory_format=torch.contiguous_format)
    torch.mul(heads[..., :size], cosines, out=rotated[..., :size])
    first, second = heads[..., :size].chunk(2, -1)
    rotated[..., : size // 2].addcmul_(second, sines, value=-1)
    rotated[..., size // 2 : size].addcmul_(first, sines)
    if size < heads.shape[-1]:
        rotated[..., size:] = heads[..., size:]
    return rotated


def use_language_layers(model: nn.Module) -> None:
    """Let Phi-3's layers in a model compute as here; any other model stays as it is."""
    forms: dict[type[nn.Module], type[nn.Module]] = {Phi3RMSNorm: XSamPhi3RMSNorm, Phi3Attention: XSamPhi3Attention}
    for module in model.modules():
        module.__class__ = forms.get(type(module), type(module))


__all__ = ["XSamPhi3Attention", "XSamPhi3RMSNorm", "rotate", "use_language_layers"]
