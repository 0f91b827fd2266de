"""Muon, an optimizer for weight matrices, with AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

# Coefficients of the odd polynomial a x + b x^3 + c x^5, whose iteration drives singular values towards 1 (K. Jordan,
# "Muon", 2024).
_ORTHOGONALIZING = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5
# An orthogonal update with this root mean square moves weights as far as one of AdamW (J. Liu et al., "Muon is scalable
# for LLM training", 2025, sec. 2.2), so that both can share a learning rate and a weight decay.
_ROOT_MEAN_SQUARE = 0.2


def orthogonalize(matrices: Tensor) -> Tensor:
    """Make matrices nearly orthogonal: keep their singular vectors, and bring singular values to about 0.7 to 1.2.

    Args:
        matrices: (N, rows, columns) float32.

    Returns:
        Matrices of the same shape.
    """
    a, b, c = _ORTHOGONALIZING
    # Transposed if tall, so that the Gram matrix has the smaller side.
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.transpose(1, 2) if is_tall else matrices
    # The Frobenius norm bounds the singular values by 1, where the iteration converges. A gradient of zeros stays zero.
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ROUNDS):
        gram = found @ found.transpose(1, 2)
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.transpose(1, 2) if is_tall else found


class Muon(torch.optim.Optimizer):
    """SGD with momentum whose updates are made orthogonal, for weight matrices; AdamW for every other parameter.

    All singular directions of a matrix learn equally fast, so that small networks need fewer steps from random weights.
    A convolution counts as a matrix with one row for each output channel.

    Args:
        groups: parameter groups; those with `matrices` set to True must hold only weight matrices.
        lr: learning rate of both.
        betas: betas of AdamW.
        momentum: momentum of Muon, with Nesterov's look-ahead.
        eps: epsilon of AdamW.
        weight_decay: decoupled weight decay of groups that do not set their own.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.95,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__([{"matrices": False, **group} for group in groups], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the weights once."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            (self._step_matrices if group["matrices"] else self._step_others)(parameters, group)
        return loss

    def _step_matrices(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        # Matrices of the same shape are orthogonalised in one batch.
        by_shape: dict[tuple[int, int], list[Tensor]] = {}
        for parameter in parameters:
            by_shape.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
        for shape, alike in by_shape.items():
            updates = orthogonalize(torch.stack([self._momentum(one, group).view(shape) for one in alike]))
            rate = group["lr"] * _ROOT_MEAN_SQUARE * max(shape) ** 0.5
            for parameter, update in zip(alike, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.reshape(parameter.shape), alpha=-rate)

    def _momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the running mean with the gradient, and return Nesterov's look-ahead."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(mean, group["momentum"]).contiguous()

    def _step_others(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        means, squares = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
        beta1, beta2 = group["betas"]
        adamw(
            list(parameters),
            gradients,
            means,
            squares,
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def is_matrix(module: nn.Module, parameter: Tensor) -> bool:
    """Return whether Muon applies to a parameter: the weight matrix of a linear layer or a convolution."""
    return isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d) and parameter.ndim > 1
