import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from xsam_model.losses.losses import SegmentationLoss, cross_entropy_at_points, dice_at_points, language_loss
from xsam_model.losses.matching import match, pair_costs
from xsam_model.losses.point_sampling import PointSampling, RandomPoints, read_at, uncertain_points
from xsam_model.losses.targets import LossWeights, Targets

SAMPLING = PointSampling(num_points=64)


def targets_of(masks, labels, decodes, valid=None):
    return Targets(
        masks=masks,
        labels=torch.tensor(labels, dtype=torch.long),
        decodes=torch.tensor(decodes, dtype=torch.long),
        valid=valid,
    )


def points_of(count):
    return RandomPoints(keys=tuple(range(count)), device=torch.device("cpu"))


def test_dice_and_cross_entropy_by_hand():
    # One of two points inside, both half believed.
    logits, truth, weights = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2)
    assert cross_entropy_at_points(logits, truth, weights).item() == pytest.approx(math.log(2))
    assert dice_at_points(logits, truth, weights).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    # The second point does not count.
    first = torch.tensor([[1.0, 0.0]])
    assert dice_at_points(logits, truth, first).item() == pytest.approx(1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))
    assert cross_entropy_at_points(torch.tensor([[0.0, 9.0]]), truth, first).item() == pytest.approx(math.log(2))


def test_pair_costs_are_the_losses_of_each_pair():
    generator = torch.Generator().manual_seed(0)
    classes, points = torch.randn(1, 3, 4, generator=generator), torch.randn(1, 3, 16, generator=generator)
    truth = (torch.rand(1, 2, 16, generator=generator) > 0.5).float()
    weights = torch.ones(1, 16)
    weights[:, -3:] = 0
    costs = pair_costs(classes, points, torch.tensor([[2, 0]]), truth, weights, LossWeights())
    for query, (target, label) in itertools.product(range(3), ((0, 2), (1, 0))):
        pair = (points[0, query][None], truth[0, target][None], weights)
        expected = 5 * cross_entropy_at_points(*pair) + 5 * dice_at_points(*pair)
        expected -= 2 * classes[0, query].softmax(-1)[label]
        assert costs[0, query, target].item() == pytest.approx(expected.item(), rel=1e-5)


def test_matching_has_the_least_cost_and_skips_padding():
    costs = torch.from_numpy(np.random.default_rng(0).random((2, 2, 4, 3))).float()
    levels, decodes, queries, masks = match(costs, [3, 1])
    for level, decode in itertools.product(range(2), range(2)):
        chosen = (levels == level) & (decodes == decode)
        count = (3, 1)[decode]
        first = (0, 3)[decode]
        assert sorted(masks[chosen].tolist()) == list(range(first, first + count))
        total = costs[level, decode, queries[chosen], masks[chosen] - first].sum().item()
        tries = (
            sum(costs[level, decode, query, mask].item() for mask, query in enumerate(order))
            for order in itertools.permutations(range(4), count)
        )
        assert total == pytest.approx(min(tries), rel=1e-5)


def test_more_masks_than_queries_leaves_some_out():
    levels, _, queries, masks = match(torch.rand(1, 1, 2, 5), [5])
    assert len(levels) == 2
    assert len(set(queries.tolist())) == len(set(masks.tolist())) == 2


def test_points_are_where_the_mask_is_undecided():
    logits = torch.full((1, 32, 32), 8.0)
    logits[:, :, 14:18] = 0.0
    sampling = PointSampling(num_points=100)
    amount = sampling.num_candidates + sampling.num_points - sampling.num_uncertain
    uniform = torch.rand(1, amount, 2, generator=torch.Generator().manual_seed(0))
    points = uncertain_points(logits, uniform, sampling)
    assert points.shape == (1, 100, 2)
    doubt = read_at(logits[:, None], points)[:, 0].abs()
    assert (doubt[0, :75] < 7.9).sum() > 0.9 * (read_at(logits[:, None], uniform)[0, 0].abs() < 7.9).sum() * 0.75
    # The last quarter is anywhere: exactly the random numbers that are left.
    torch.testing.assert_close(points[:, 75:], uniform[:, sampling.num_candidates :])


def test_random_points_depend_on_each_decode_alone():
    together = points_of(3)
    alone = RandomPoints(keys=(1,), device=torch.device("cpu"))
    torch.testing.assert_close(together.for_matching(5)[1:2], alone.for_matching(5))
    both = together.for_losses([2, 2, 1], 2, 4).unflatten(0, (2, 5))
    torch.testing.assert_close(both[:, 2:4].flatten(0, 1), alone.for_losses([2], 2, 4))


def test_perfect_predictions_cost_nothing():
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, :16], masks[1, 16:] = True, True
    mask_logits = torch.where(masks, 60.0, -60.0)[None, None].flip(2)
    classes = torch.full((1, 1, 2, 3), -40.0)
    classes[0, 0, 0, 1] = classes[0, 0, 1, 0] = 40.0
    losses = SegmentationLoss(sampling=SAMPLING)(classes, mask_logits, targets_of(masks, [0, 1], [0, 0]), points_of(1))
    assert losses["classes"].item() == pytest.approx(0, abs=1e-6)
    # Points on the very border fall between two pixels.
    assert losses["dice"].item() < 0.3


def test_class_loss_by_hand():
    # Three queries: one matched to column 1 of two, two of background weighing 0.1; all logits 0, padded column out.
    logits = torch.zeros(1, 1, 3, 4)
    logits[..., 2] = -1e9
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4] = True
    losses = SegmentationLoss(sampling=SAMPLING)(
        logits, torch.zeros(1, 1, 3, 8, 8), targets_of(masks, [1], [0]), points_of(1)
    )
    assert losses["classes"].item() == pytest.approx(2.0 * math.log(3))
    assert losses["mask"].item() == pytest.approx(5 * math.log(2), rel=1e-5)


def test_background_weighs_a_tenth():
    logits = torch.zeros(1, 1, 2, 2)
    logits[0, 0, 1, 1] = math.log(3.0)
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    mask_logits = torch.full((1, 1, 2, 8, 8), -9.0)
    mask_logits[0, 0, 0] = 9.0
    losses = SegmentationLoss(weights=LossWeights(), sampling=SAMPLING)(
        logits, mask_logits, targets_of(masks, [0], [0]), points_of(1)
    )
    expected = 2.0 * (math.log(2) + 0.1 * math.log(4 / 3)) / 1.1
    assert losses["classes"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
def test_no_true_masks_at_all(levels):
    logits = torch.randn(levels, 2, 4, 3, requires_grad=True)
    masks = torch.randn(levels, 2, 4, 8, 8, requires_grad=True)
    losses = SegmentationLoss(sampling=SAMPLING)(
        logits, masks, targets_of(torch.zeros(0, 8, 8, dtype=torch.bool), [], []), points_of(2)
    )
    sum(losses.values()).backward()
    assert losses["mask"].item() == losses["dice"].item() == 0
    expected = sum(2 * F.cross_entropy(level.flatten(0, 1), torch.full((8,), 2)) for level in logits)
    assert losses["classes"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert masks.grad.abs().sum() == 0


def test_a_decode_without_masks_beside_one_with():
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[0, :4] = True
    logits = torch.randn(2, 3, 4, 3)
    losses = SegmentationLoss(sampling=SAMPLING)(
        logits, torch.randn(2, 3, 4, 8, 8), targets_of(masks, [0], [1]), points_of(3)
    )
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert losses["mask"] > 0


def test_ignored_pixels_do_not_count():
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :, :8] = True
    valid = torch.zeros(1, 16, 16, dtype=torch.bool)
    valid[0, :, :6] = True
    mask_logits = torch.full((1, 1, 2, 16, 16), 20.0)
    ignoring = targets_of(masks, [0], [0], valid)
    losses = SegmentationLoss(sampling=SAMPLING)(torch.zeros(1, 1, 2, 2), mask_logits, ignoring, points_of(1))
    assert losses["mask"].item() < 0.05
    plain = targets_of(masks, [0], [0])
    losses = SegmentationLoss(sampling=SAMPLING)(torch.zeros(1, 1, 2, 2), mask_logits, plain, points_of(1))
    assert losses["mask"].item() > 10


def test_masks_are_averaged_over_processes():
    masks = torch.ones(1, 8, 8, dtype=torch.bool)
    arguments = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 8, 8), targets_of(masks, [0], [0]), points_of(1)
    alone = SegmentationLoss(sampling=SAMPLING)(*arguments)
    # The other process has three masks, so that each has two on average.
    shared = SegmentationLoss(sampling=SAMPLING, average=lambda value: value * 2)(*arguments)
    assert shared["mask"].item() == pytest.approx(alone["mask"].item() / 2)


def test_language_loss_reads_the_token_before():
    head = torch.nn.Linear(4, 5, bias=False)
    hidden, labels = torch.randn(1, 3, 4), torch.tensor([[-100, -100, 3]])
    expected = F.cross_entropy(head(hidden[0, 1])[None], torch.tensor([3]))
    assert language_loss(hidden, labels, head).item() == pytest.approx(expected.item())
    nothing = language_loss(hidden, torch.full((1, 3), -100), head)
    assert nothing.item() == 0
