import pytest
import torch

from recsys_mtl.training.balancing import Boundary, GradNorm


def _shared(norms, losses):
    """Return losses whose gradients at one leaf all share both entries, and the leaf."""
    leaf_2 = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    turns = torch.linspace(0, 1, len(norms), dtype=torch.float64)
    rows = torch.stack([turns.cos(), turns.sin()], dim=1) * torch.tensor(norms)[:, None]
    return rows.double() @ leaf_2 + torch.tensor(losses, dtype=torch.float64), leaf_2


def _run(balancer, norms, losses, steps):
    for _ in range(steps):
        losses_T, leaf_2 = _shared(norms, losses)
        balanced = balancer.backward(
            losses_T, torch.ones(len(norms)).bool(), Boundary((leaf_2,), ())
        )
    return balanced


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_alpha_zero_makes_weighted_norms_equal_at_any_scale(build, scale):
    norms = [scale, 4 * scale, 2 * scale]
    balancer = build(GradNorm(alpha=0.0, learning_rate=0.01, window=1), 3)
    weights = _run(balancer, norms, [1.0, 1.0, 1.0], 400).weights_T
    expected = torch.tensor([1, 1 / 4, 1 / 2])
    torch.testing.assert_close(weights, 3 * expected / expected.sum(), rtol=0.04, atol=0)
    assert float(weights.sum()) == pytest.approx(3, abs=1e-4)


def test_a_task_that_lags_is_given_the_larger_norm(build):
    """Losses at 1 and 1/4 of the first: rates 1.6 and 0.4, so norms 4 to 1 at alpha 1."""
    balancer = build(GradNorm(alpha=1.0, learning_rate=0.01, window=2), 2)
    _run(balancer, [1.0, 1.0], [1.0, 1.0], 2)
    weights = _run(balancer, [1.0, 1.0], [1.0, 0.25], 400).weights_T
    assert float(weights[0] / weights[1]) == pytest.approx(4, rel=0.06)


def test_weights_are_one_during_the_first_window(build):
    balancer = build(GradNorm(window=5), 2)
    assert _run(balancer, [1.0, 9.0], [1.0, 1.0], 6).weights_T.tolist() == [1, 1]
    assert _run(balancer, [1.0, 9.0], [1.0, 1.0], 1).weights_T.tolist() != [1, 1]


def test_a_step_follows_the_derivative_of_the_paper_s_loss(build):
    """By autograd through sum |w n - mean * rate^alpha|, the mean and the rates held fixed."""
    balancer = build(GradNorm(alpha=1.5, learning_rate=0.1, window=1), 2)
    norms, losses = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5])
    _run(balancer, norms.tolist(), [1.0, 1.0], 1)
    _run(balancer, norms.tolist(), losses.tolist(), 1)
    log_w = torch.zeros(2, requires_grad=True)
    weighted = log_w.exp() * norms
    rates = losses / losses.mean()
    mean = weighted.detach().mean()
    ((weighted - mean * rates**1.5).abs().sum() / mean).backward()
    moved = (log_w - 0.1 * log_w.grad).exp().detach()
    torch.testing.assert_close(balancer.weights_T, 2 * moved / moved.sum(), rtol=1e-5, atol=0)


def test_norms_are_over_all_that_is_shared_and_nothing_else(network, build):
    net = network(2)
    shared = (*net.leaves, *net.bottom.parameters())
    expected = [
        sum(one.square().sum() for one in torch.autograd.grad(loss, shared, retain_graph=True))
        for loss in net.losses()
    ]
    balanced = build(GradNorm(), 2).backward(net.losses(), torch.ones(2).bool(), net.boundary)
    torch.testing.assert_close(balanced.gramian_TT.diagonal(), torch.stack(expected))


def test_parameters_get_the_gradient_of_the_weighted_sum(network, build):
    net, balancer = network(2), build(GradNorm(learning_rate=0.3, window=1), 2)
    for _ in range(3):
        net.clear()
        balancer.backward(net.losses(), torch.ones(2).bool(), net.boundary)
    net.clear()
    weights_T = balancer.weights_T
    balancer.backward(net.losses(), torch.ones(2).bool(), net.boundary, penalty=net.penalty())
    found = net.taken()
    ((net.losses() * weights_T).sum() + net.penalty()).backward()
    for one, expected in zip(found, net.taken(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)
    assert (weights_T != 1).all()


def test_absent_tasks_keep_their_weight(network, build):
    net, balancer = network(3), build(GradNorm(window=1), 3)
    for _ in range(3):
        net.clear()
        balancer.backward(net.losses(), torch.ones(3).bool(), net.boundary)
    before = balancer.weights_T.clone()
    net.clear()
    present = [True, False, True]
    balancer.backward(net.losses(present), torch.tensor(present), net.boundary)
    after = balancer.weights_T
    assert after[1] == before[1]
    assert (after[[0, 2]] != before[[0, 2]]).all()
    assert float(after.sum()) == pytest.approx(3, abs=1e-5)
    net.clear()
    balancer.backward(net.losses([False] * 3), torch.zeros(3).bool(), net.boundary)
    assert torch.equal(balancer.weights_T, after)
