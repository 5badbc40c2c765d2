import pytest
import torch
from torch import nn

from recsys_mtl.network import MMoE
from recsys_mtl.network.sharing import AdaTT, Columns, SharingModule

NAMES = ("a", "b", "c")


def _adatt(num_levels: int, own: int) -> SharingModule:
    spec = AdaTT(num_levels, num_task_experts=own, expert_dims=(7, 4))
    return spec.build(5, NAMES, Columns()).double()


def test_one_level_without_residual_is_mmoe_over_the_experts_of_all_tasks() -> None:
    adatt, x_BVI = _adatt(1, 2), torch.randn(9, 1, 5).double()
    mmoe = MMoE(6, expert_dims=(7, 4)).build(5, NAMES, Columns()).double()
    level = adatt.levels[0]
    nn.init.zeros_(level.residual_TX)
    mmoe.experts.load_state_dict(level.experts.state_dict())
    mmoe.gates.load_state_dict(level.gates.state_dict())
    one, other = adatt(x_BVI), mmoe(x_BVI)
    for mine, theirs in zip(
        (*one.tasks, *one.gates[0]), (*other.tasks, *other.gates[0]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("own", [1, 2, 3])
@pytest.mark.parametrize("num_levels", [1, 2])
def test_levels_are_the_formula_worked_by_hand(num_levels: int, own: int) -> None:
    adatt, x_BVI = _adatt(num_levels, own), torch.randn(9, 1, 5).double()
    tasks = [x_BVI[:, 0]] * 3
    for level in adatt.levels:
        experts = [expert(tasks[i // own]) for i, expert in enumerate(level.experts)]
        fused = []
        for k in range(3):
            gate_BE = torch.softmax(tasks[k] @ level.gates[k].weight.T, dim=1)
            total = sum(gate_BE[:, i : i + 1] * e for i, e in enumerate(experts))
            for place in range(own):
                weight = 1.0 if own == 1 else level.residual_TX[k, place]
                total = total + weight * experts[k * own + place]
            fused.append(total)
        tasks = fused
    for found_BH, expected_BH in zip(adatt(x_BVI).tasks, tasks, strict=True):
        torch.testing.assert_close(found_BH, expected_BH, rtol=0, atol=1e-12)


def test_gates_are_returned_without_the_residual() -> None:
    for level in _adatt(2, 2)(torch.randn(9, 1, 5).double()).gates:
        for gate_BE in level:
            assert (gate_BE >= 0).all()
            assert torch.allclose(gate_BE.sum(dim=1), torch.ones(9).double())


def test_the_unit_residual_of_one_expert_is_no_parameter() -> None:
    adatt = _adatt(1, 1)
    assert not any("residual" in name for name in adatt.state_dict())
    assert any("residual" in name for name, _ in _adatt(1, 2).named_parameters())
