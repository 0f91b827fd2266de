import copy

import pytest
import torch
from torch import nn

from xsam_model.training.loop.optimizers import Muon, is_matrix, orthogonalize


@pytest.mark.parametrize("shape", [(3, 12, 40), (2, 40, 12), (1, 16, 16)])
def test_orthogonal_updates_keep_singular_vectors_and_level_singular_values(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inner = left.transpose(1, 2) @ orthogonalize(matrices) @ right.transpose(1, 2)
    values = inner.diagonal(dim1=1, dim2=2)
    # The smallest singular values of a square random matrix are too far from 1 for five rounds.
    assert values.median() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-3, rtol=0)


def test_a_matrix_moves_as_far_as_adamw_would_move_it():
    weight = nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)) * 1e-4
    Muon([{"params": [weight], "matrices": True}], lr=0.5).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.2)
    assert (weight * weight.grad).sum() < 0


def test_matrices_decay_apart_from_their_gradient():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([{"params": [weight], "matrices": True, "weight_decay": 0.1}], lr=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 1 - 0.5 * 0.1))


def test_other_parameters_move_as_in_adamw():
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    options = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.05}
    muon = Muon([{"params": [ours]}], **options)
    adamw = torch.optim.AdamW([theirs], fused=True, **options)
    for step in range(5):
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = torch.sin(torch.arange(7.0) + step)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_a_restored_optimizer_goes_on_as_before():
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(32, 4))

    def optimizer_of(network):
        matrices = [m.weight for m in network.modules() if hasattr(m, "weight")]
        others = [m.bias for m in network.modules() if hasattr(m, "bias") and m.bias is not None]
        return Muon([{"params": matrices, "matrices": True}, {"params": others}], lr=0.01)

    def train(network, optimizer, steps):
        for step in steps:
            network(torch.full((2, 3, 4, 4), 0.1 * step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    unbroken, resumed = model(), model()
    first, second = optimizer_of(unbroken), optimizer_of(resumed)
    train(unbroken, first, range(6))
    train(resumed, second, range(3))
    again = optimizer_of(resumed)
    again.load_state_dict(copy.deepcopy(second.state_dict()))
    train(resumed, again, range(3, 6))
    for one, other in zip(unbroken.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_matrices_are_the_weights_of_linear_maps_and_convolutions():
    linear, conv, norm, embedding = nn.Linear(2, 3), nn.Conv2d(2, 3, 1), nn.LayerNorm(3), nn.Embedding(4, 3)
    assert is_matrix(linear, linear.weight)
    assert is_matrix(conv, conv.weight)
    for module, parameter in ((linear, linear.bias), (norm, norm.weight), (embedding, embedding.weight)):
        assert not is_matrix(module, parameter)
