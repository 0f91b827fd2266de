import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import multi_scale_deformable_attention

from xsam_model.layers.deformable_attention import weighted_samples

SHAPES = [(3, 4), (6, 8)]


@pytest.fixture(params=[torch.float32, torch.float64])
def inputs(request):
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": request.param}
    values = torch.randn(2, 60, 2, 4, **options)
    # Some points lie outside the maps.
    locations = 1.4 * torch.rand(2, 5, 2, 2, 3, 2, **options) - 0.2
    weights = torch.rand(2, 5, 2, 2, 3, **options)
    return [tensor.requires_grad_() for tensor in (values, locations, weights)]


def test_values_and_gradients_are_those_of_transformers(inputs):
    values, locations, weights = inputs
    results = [
        weighted_samples(values, SHAPES, locations, weights),
        multi_scale_deformable_attention(values, SHAPES, locations, weights),
    ]
    above = torch.linspace(-1, 1, results[0].numel(), dtype=values.dtype).view_as(results[0])
    gradients = [torch.autograd.grad(result, inputs, above) for result in results]
    torch.testing.assert_close(results[0], results[1])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_is_computed_in_float32(inputs):
    values, locations, weights = (tensor.detach().float() for tensor in inputs)
    exact = weighted_samples(values.bfloat16().float(), SHAPES, locations, weights)
    with torch.autocast("cpu", torch.bfloat16):
        half = weighted_samples(values.bfloat16(), SHAPES, locations, weights)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, exact.bfloat16())


def test_without_gradients_the_samples_are_the_same(inputs):
    values, locations, weights = inputs
    with torch.no_grad():
        plain = weighted_samples(values, SHAPES, locations, weights)
    torch.testing.assert_close(plain, weighted_samples(values, SHAPES, locations, weights).detach())


@pytest.mark.parametrize("far", [-1e30, -1.0, 2.0, 1e30])
def test_samples_far_outside_are_zero(inputs, far):
    values, locations, weights = (tensor.detach() for tensor in inputs)
    locations = torch.full_like(locations, 0.5)
    locations[..., 1, :, 0] = far
    assert torch.equal(
        weighted_samples(values, SHAPES, locations, weights),
        weighted_samples(values, SHAPES, locations, weights * torch.tensor([1.0, 0.0])[:, None]),
    )


def test_a_location_that_is_no_number_spoils_its_own_query_alone(inputs):
    values, locations, weights = (tensor.detach() for tensor in inputs)
    clean = weighted_samples(values, SHAPES, locations, weights)
    locations[0, 2, 1, 0, 0, 1] = float("nan")
    spoilt = weighted_samples(values, SHAPES, locations, weights)
    assert spoilt[0, 2].isnan().any()
    spoilt[0, 2] = clean[0, 2]
    torch.testing.assert_close(spoilt, clean)
