import itertools
import math

import pytest
import torch

from recsys_mtl.training.balancing import FAMO


def test_at_first_weights_are_in_inverse_proportion_to_losses(feed, build):
    weights = feed(build(FAMO(), 2), [0.5, 4.0]).weights_T
    assert weights.tolist() == pytest.approx([2 * 8 / 9, 2 / 9], rel=1e-5)


def test_the_scale_of_a_loss_does_not_matter(feed, build):
    """Weight times loss is what a task adds; a fixed weight of 1000 changes nothing in it."""
    first, second = build(FAMO(), 2), build(FAMO(), 2)
    for losses in ([0.5, 4.0], [0.4, 3.9], [0.2, 3.0]):
        scaled = [1000 * losses[0], losses[1]]
        one, two = feed(first, losses).weights_T, feed(second, scaled).weights_T
        shares = torch.tensor([one[0] * losses[0], one[1] * losses[1]])
        others = torch.tensor([two[0] * scaled[0], two[1] * scaled[1]])
        torch.testing.assert_close(shares / shares.sum(), others / others.sum(), rtol=1e-4, atol=0)


def test_a_step_follows_the_gradient_of_the_paper(feed, build):
    """w -= rate * (J_softmax' d + decay * w), d the fall of the log losses; by autograd."""
    balancer = build(FAMO(learning_rate=0.3, decay=0.01), 3)
    losses = [[1.0, 2.0, 3.0], [0.9, 2.0, 1.5], [0.8, 1.9, 1.6]]
    w = torch.zeros(3, requires_grad=True)
    for before, after in itertools.pairwise(losses):
        gains = (torch.tensor(before) / torch.tensor(after)).log()
        (slope,) = torch.autograd.grad(torch.softmax(w, dim=0), w, grad_outputs=gains)
        w = (w - 0.3 * (slope + 0.01 * w)).detach().requires_grad_()
    for step in losses:
        weights = feed(balancer, step).weights_T
    torch.testing.assert_close(balancer.preference_T, w.detach(), rtol=1e-5, atol=1e-7)
    expected = torch.softmax(w, dim=0) / torch.tensor(losses[-1])
    expected = 3 * expected / expected.sum()
    torch.testing.assert_close(weights, expected.detach().double(), rtol=1e-5, atol=0)


def test_weights_are_those_of_torchjd(feed, build):
    scalarization = pytest.importorskip("torchjd.scalarization", reason="needs torchjd")
    values = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64, requires_grad=True)
    scalarization.FAMO(3).double()(values).backward()
    weights = feed(build(FAMO(), 3), values.tolist()).weights_T
    torch.testing.assert_close(weights / 3, values.grad, rtol=1e-5, atol=0)


def test_absent_tasks_are_left_out_and_compared_when_they_come_back(feed, build):
    balancer = build(FAMO(decay=0.0, learning_rate=1.0), 2)
    feed(balancer, [1.0, 1.0])
    balanced = feed(balancer, [1.0, 0.0], [True, False])
    assert balanced.weights_T.tolist() == [1, 1]
    assert balancer.preference_T.tolist() == [0, 0]
    feed(balancer, [1.0, math.exp(-1)])
    torch.testing.assert_close(balancer.preference_T, torch.tensor([0.25, -0.25]))


def test_losses_of_zero_give_finite_weights(feed, build):
    balancer = build(FAMO(), 2)
    for losses in ([0.0, 1.0], [0.0, 0.0], [1.0, 0.0]):
        assert feed(balancer, losses).weights_T.isfinite().all()
    assert feed(balancer, [0.0, 0.0], [False, False]).weights_T.isfinite().all()
