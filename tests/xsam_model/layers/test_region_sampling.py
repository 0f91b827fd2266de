"""Which pixels stand for a visual prompt, and what is read there."""

import pytest
import torch

from xsam_model.layers.region_sampling import choose_region_points, pool_region_features, together


def test_small_regions_use_every_pixel():
    mask = torch.zeros(8, 16, dtype=torch.bool)
    mask[2, 4] = mask[6, 12] = True
    points = choose_region_points(mask, max_points=256)
    assert points.tolist() == [[0.25, 0.25], [0.75, 0.75]]


def test_large_regions_use_a_fixed_subset_of_their_pixels():
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[:10] = False
    first, again = choose_region_points(mask), choose_region_points(mask)
    assert first.shape == (256, 2)
    assert torch.equal(first, again)
    assert len(first.unique(dim=0)) == 256
    assert (first[:, 0] >= 0.25).all()
    assert not torch.equal(first, choose_region_points(mask, seed=1))
    assert len(choose_region_points(mask, how="all")) == 1200


def test_choice_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    choose_region_points(torch.ones(40, 40))
    assert torch.equal(torch.rand(1), expected)


def test_empty_region_is_refused():
    with pytest.raises(ValueError, match="empty"):
        choose_region_points(torch.zeros(4, 4))


def test_features_are_interpolated_and_reduced_to_their_maximum():
    ramp = torch.arange(5.0).expand(5, 5)
    features = torch.stack([ramp, -ramp, ramp.T])
    corners = torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    center = torch.tensor([[0.5, 0.625]])
    pooled = pool_region_features(features, [corners, center])
    assert torch.allclose(pooled, torch.tensor([[2.0, 0.0, 0.0], [2.5, -2.5, 2.0]]))


def test_all_pixels_are_read_in_pieces_without_changing_the_maximum():
    features = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    points = choose_region_points(torch.ones(100, 100), how="all")
    pooled = pool_region_features(features, [points])
    pieces = torch.stack([pool_region_features(features, [part])[0] for part in points.split(1000)])
    assert torch.equal(pooled[0], pieces.amax(0))


def test_several_regions_show_their_mean_together():
    one, other = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    assert together([one, other]).tolist() == [2.0, 1.0]
    assert torch.equal(together([one]), one)
    # Added up in float32: in bfloat16 257 equal summands would come to 256 of them.
    many = together([torch.ones(2, dtype=torch.bfloat16)] * 257)
    assert many.dtype == torch.bfloat16
    assert many.tolist() == [1.0, 1.0]
