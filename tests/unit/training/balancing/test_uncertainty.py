import math

import pytest
import torch

from recsys_mtl.errors import SchemaError
from recsys_mtl.schema import Binary, Regression
from recsys_mtl.training.balancing import Uncertainty

LOSSES = [0.3, 4.0]


def _after(feed, tasks, losses, *, steps=400, max_log=3.0):
    balance = Uncertainty(learning_rate=0.1, max_log=max_log)
    balancer = balance.build(tasks, seed=0, device="cpu")
    for _ in range(steps):
        balanced = feed(balancer, losses)
    return balancer, balanced


def test_regressions_come_to_rest_at_the_log_of_their_losses(feed, regressions):
    balancer, _ = _after(feed, regressions, LOSSES)
    found = balancer.log_variance_T.tolist()
    assert found == pytest.approx([-1.20397, 1.38629], abs=1e-4)
    terms = [0.5 * math.exp(-s) * loss + 0.5 * s for s, loss in zip(found, LOSSES, strict=True)]
    assert sum(terms) == pytest.approx(1.0911608, abs=1e-6)


def test_classifications_come_to_rest_at_the_log_of_twice_their_losses(feed):
    tasks = [Binary("a", label="a"), Binary("b", label="b")]
    balancer, _ = _after(feed, tasks, LOSSES)
    expected = [math.log(2 * loss) for loss in LOSSES]
    assert balancer.log_variance_T.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_regression_over_bins_counts_as_a_classification(feed):
    binned = Regression("b", label="b", loss="bins", bounds=(1, 5))
    balancer, _ = _after(feed, [Binary("a", label="a"), binned], LOSSES)
    assert balancer.log_variance_T[1].item() == pytest.approx(math.log(2 * LOSSES[1]), abs=1e-4)


def test_at_rest_every_task_weighs_one_over_twice_its_loss(feed):
    tasks = [Binary("a", label="a"), Regression("b", label="b")]
    _, balanced = _after(feed, tasks, LOSSES)
    assert balanced.weights_T.tolist() == pytest.approx([1 / 0.6, 1 / 8], rel=1e-4)


def test_a_task_s_fixed_weight_keeps_its_meaning(feed):
    """The trainer multiplies losses by it; the learned weight must not undo that."""
    tasks = [Binary("a", label="a", weight=5.0), Binary("b", label="b", weight=0.0)]
    balancer, balanced = _after(feed, tasks, [5.0 * 0.3, 0.0])
    assert balancer.log_variance_T[0].item() == pytest.approx(math.log(0.6), abs=1e-4)
    assert balanced.weights_T.isfinite().all()


def test_log_variances_are_bounded(feed, regressions):
    balancer, balanced = _after(feed, regressions, [1e-9, 1e9], max_log=2.0)
    assert balancer.log_variance_T.tolist() == pytest.approx([-2, 2])
    assert balanced.weights_T.tolist() == pytest.approx([math.exp(2) / 2, math.exp(-2) / 2])


def test_absent_tasks_keep_their_log_variance(feed, regressions):
    balancer, _ = _after(feed, regressions, LOSSES, steps=5)
    before = balancer.log_variance_T.clone()
    feed(balancer, [0.3, 0.0], present=[True, False])
    assert balancer.log_variance_T[1] == before[1]
    assert balancer.log_variance_T[0] != before[0]


def test_parameters_get_the_gradient_of_the_weighted_sum(network, build):
    net, balancer = network(2), build(Uncertainty(learning_rate=0.5), 2)
    for _ in range(3):
        net.clear()
        balancer.backward(net.losses(), torch.ones(2).bool(), net.boundary)
    net.clear()
    factors_T = torch.exp(-balancer.log_variance_T)
    balancer.backward(net.losses(), torch.ones(2).bool(), net.boundary)
    found = net.taken()
    (net.losses() * factors_T).sum().backward()
    for one, expected in zip(found, net.taken(), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)
    assert (factors_T != 1).all()


def test_a_learning_rate_must_be_positive():
    with pytest.raises(SchemaError, match=r"Uncertainty\.learning_rate"):
        Uncertainty(learning_rate=0.0)
