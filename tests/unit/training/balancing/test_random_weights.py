import torch

from recsys_mtl.training.balancing import RandomWeights


def _draws(feed, balancer, steps):
    return torch.stack([feed(balancer, [1.0, 2.0, 3.0]).weights_T for _ in range(steps)])


def test_weights_are_a_softmax_of_normals_times_the_number_of_tasks(feed, build):
    """The log ratio of two weights is then normal with mean 0 and variance 2."""
    draws = _draws(feed, build(RandomWeights(), 3), 1000)
    torch.testing.assert_close(
        draws.sum(dim=1), torch.full((1000,), 3.0).double(), rtol=1e-6, atol=0
    )
    ratios = (draws[:, 0] / draws[:, 1]).log()
    assert abs(float(ratios.mean())) < 4 * (2 / 1000) ** 0.5
    assert abs(float(ratios.var()) - 2) < 4 * 2 * (2 / 1000) ** 0.5


def test_the_balancer_s_seed_alone_decides(feed, build):
    first = _draws(feed, build(RandomWeights(), 3, seed=4), 3)
    torch.manual_seed(99)
    assert torch.equal(first, _draws(feed, build(RandomWeights(), 3, seed=4), 3))
    assert not torch.equal(first, _draws(feed, build(RandomWeights(), 3, seed=5), 3))
