import pytest
import torch

from recsys_mtl.training.balancing import DWA


def test_the_loss_that_fell_less_weighs_more_by_the_paper_s_numbers(feed, build):
    balancer = build(DWA(window=2), 2)
    for losses in ([0.5, 1.0], [1.5, 1.0], [0.4, 0.9], [0.6, 0.9]):  # means (1, 1), (.5, .9)
        assert feed(balancer, losses).weights_T.tolist() == [1, 1]
    found = feed(balancer, [1.0, 1.0]).weights_T.tolist()
    assert found == pytest.approx([0.900332, 1.099668], abs=1e-6)


def test_weights_change_only_when_a_window_closes(feed, build):
    balancer = build(DWA(window=3), 2)
    weights = [feed(balancer, [2.0**-step, 1.0]).weights_T.tolist() for step in range(12)]
    assert [weights[k] != weights[k - 1] for k in range(1, 12)] == [
        k in {6} for k in range(1, 12)
    ]  # ratios of the halving loss are the same in all later windows


def test_a_high_temperature_makes_weights_alike(feed, build):
    balancer = build(DWA(window=1, temperature=1e6), 2)
    for losses in ([1.0, 1.0], [0.1, 1.0]):
        feed(balancer, losses)
    assert feed(balancer, [1.0, 1.0]).weights_T.tolist() == pytest.approx([1, 1], abs=1e-5)


def test_means_are_over_the_steps_in_which_a_task_has_labels(feed, build):
    balancer = build(DWA(window=2), 2)
    yes, no = [True, True], [True, False]
    for losses, present in (
        ([1.0, 1.0], yes),
        ([1.0, 0.0], no),
        ([0.5, 0.0], no),
        ([0.5, 0.9], yes),
    ):
        feed(balancer, losses, present)
    found = feed(balancer, [1.0, 1.0]).weights_T.tolist()
    assert found == pytest.approx([0.900332, 1.099668], abs=1e-6)


def test_a_task_absent_for_a_whole_window_keeps_its_ratio(feed, build):
    balancer = build(DWA(window=1), 2)
    for losses in ([1.0, 1.0], [0.5, 0.9]):
        feed(balancer, losses)
    feed(balancer, [0.25, 0.0], [True, False])
    found = feed(balancer, [1.0, 1.0]).weights_T.tolist()
    assert found == pytest.approx([0.900332, 1.099668], abs=1e-6)


def test_a_loss_of_zero_says_nothing(feed, build):
    balancer = build(DWA(window=1), 2)
    for losses in ([0.0, 1.0], [0.0, 1.0]):
        feed(balancer, losses)
    assert torch.equal(feed(balancer, [1.0, 1.0]).weights_T, torch.ones(2).double())
