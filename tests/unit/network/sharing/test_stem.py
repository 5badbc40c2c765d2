"""The STEM part of K4 of the science reference, in float64."""

import pytest
import torch
from torch import Tensor

from recsys_mtl.network.layers import mix
from recsys_mtl.network.sharing import CGC, STEM, Columns, SharingModule

NAMES = ("a", "b", "c")
PAIRS = [(k, j) for k in range(3) for j in range(3) if j != k]


def _stem(num_levels: int, own: int = 2) -> SharingModule:
    spec = STEM(num_levels, num_task_experts=own, expert_dims=(7, 4))
    return spec.build(5, NAMES, Columns()).double()


def _views() -> Tensor:
    return torch.randn(9, 4, 5, dtype=torch.float64)


def test_views_are_one_per_task_and_a_shared_one() -> None:
    assert [STEM().num_views(num_tasks) for num_tasks in (1, 2, 5)] == [2, 3, 6]


@pytest.mark.parametrize(("task", "other"), PAIRS)
def test_with_one_level_a_task_has_no_gradient_on_the_view_of_another(
    task: int, other: int
) -> None:
    x_BVI = _views().requires_grad_()
    (gradient,) = torch.autograd.grad(_stem(1)(x_BVI).tasks[task].square().sum(), x_BVI)
    assert not gradient[:, other].any()
    assert (gradient[:, task].abs().sum(dim=1) > 0).all()
    assert (gradient[:, -1].abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize(("task", "other"), PAIRS)
def test_with_one_level_a_task_trains_no_expert_of_another_but_reads_it(
    task: int, other: int
) -> None:
    stem, x_BVI = _stem(1), _views()
    stem(x_BVI).tasks[task].square().sum().backward()
    level = stem.levels[0]
    assert all(p.grad is None or not p.grad.any() for p in level.task_experts[other].parameters())
    assert all(p.grad.any() for p in level.task_experts[task].parameters())
    assert all(p.grad.any() for p in level.shared_experts.parameters())
    moved = x_BVI.clone()
    moved[:, other] += 1
    assert not torch.equal(stem(moved).tasks[task], stem(x_BVI).tasks[task])


@pytest.mark.parametrize(("task", "other"), PAIRS)
def test_with_two_levels_the_shared_gate_leads_to_the_views_of_others(
    task: int, other: int
) -> None:
    x_BVI = _views().requires_grad_()
    (gradient,) = torch.autograd.grad(_stem(2)(x_BVI).tasks[task].square().sum(), x_BVI)
    assert gradient[:, other].abs().max() > 1e-6


def test_levels_are_the_formula_worked_by_hand() -> None:
    stem, x_BVI = _stem(2, own=1), _views()
    views = list(x_BVI.unbind(1))
    for level in stem.levels:
        experts = [level.task_experts[k][0](views[k]) for k in range(3)]
        experts.append(level.shared_experts[0](views[3]))
        mixed = []
        for k in range(3):
            gate_BE = torch.softmax((views[k] + views[3]) @ level.task_gates[k].weight.T, dim=1)
            mixed.append(sum(gate_BE[:, i : i + 1] * e for i, e in enumerate(experts)))
        if level.shared_gate is not None:
            gate_BE = torch.softmax(views[3] @ level.shared_gate.weight.T, dim=1)
            mixed.append(sum(gate_BE[:, i : i + 1] * e for i, e in enumerate(experts)))
        views = mixed
    assert [level.shared_gate is None for level in stem.levels] == [False, True]
    for found_BH, expected_BH in zip(stem(x_BVI).tasks, views, strict=True):
        torch.testing.assert_close(found_BH, expected_BH, rtol=0, atol=1e-12)


def test_one_task_with_equal_views_is_cgc_on_twice_the_gate_input() -> None:
    stem = STEM(num_shared_experts=2, num_task_experts=1, expert_dims=(7, 4))
    module, x_BI = stem.build(5, ("a",), Columns()).double(), torch.randn(9, 5).double()
    level = module.levels[0]
    cgc = CGC(2, 1, expert_dims=(7, 4)).build(5, ("a",), Columns()).double()
    cgc.levels[0].load_state_dict(level.state_dict())
    cgc.levels[0].task_gates[0].weight.data *= 2
    expected = cgc(x_BI[:, None]).tasks[0]
    found = module(x_BI[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(found.tasks[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        mix(found.experts[0], found.gates[0][0]), expected, rtol=0, atol=1e-12
    )
