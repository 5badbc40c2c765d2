"""K1 and K2 of the science reference, in float64."""

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import MMoE, SharedBottom
from recsys_mtl.network.sharing import Columns, SharingModule

WIDTH, TASKS = 5, 3
NAMES = ("a", "b", "c")
EXACT = {"rtol": 0, "atol": 1e-12}


def _mmoe(num_experts: int, *, seed: int = 0, **options: object) -> SharingModule:
    torch.manual_seed(seed)
    spec = MMoE(num_experts, expert_dims=(7, 4), **options)  # type: ignore[arg-type]
    return spec.build(WIDTH, NAMES, Columns()).double()


def _views(num_rows: int = 11, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 1, WIDTH, generator=generator, dtype=torch.float64)


def _by_hand(expert: nn.Module, x_BI: np.ndarray) -> np.ndarray:
    for layer in expert:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            x_BI = x_BI @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            x_BI = np.maximum(x_BI, 0)
    return x_BI


def _softmax(z_BE: np.ndarray) -> np.ndarray:
    powers_BE = np.exp(z_BE - z_BE.max(axis=1, keepdims=True))
    return powers_BE / powers_BE.sum(axis=1, keepdims=True)


def _squares(module: SharingModule, x_BVI: Tensor) -> Tensor:
    """Give each task a loss of its own."""
    return torch.stack(
        [(k + 1) * task.square().sum() for k, task in enumerate(module(x_BVI).tasks)]
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_one_expert_is_a_shared_bottom_for_any_gate(scale: float) -> None:
    mmoe, x_BVI = _mmoe(1), _views()
    bottom = SharedBottom(dims=(7, 4)).build(WIDTH, NAMES, Columns()).double()
    bottom.bottom.load_state_dict(mmoe.experts[0].state_dict())
    for gate in mmoe.gates:
        nn.init.normal_(gate.weight, std=scale)
    for mixed_BH, shared_BH in zip(mmoe(x_BVI).tasks, bottom(x_BVI).tasks, strict=True):
        torch.testing.assert_close(mixed_BH, shared_BH, **EXACT)
    _squares(mmoe, x_BVI).sum().backward()
    _squares(bottom, x_BVI).sum().backward()
    assert all(not gate.weight.grad.any() for gate in mmoe.gates)
    for one, other in zip(mmoe.experts[0].parameters(), bottom.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_mmoe_is_its_formula_worked_by_hand() -> None:
    mmoe, x_BVI = _mmoe(3), _views()
    x_BI = x_BVI[:, 0].numpy()
    outputs = [_by_hand(expert, x_BI) for expert in mmoe.experts]
    found = mmoe(x_BVI)
    for number, gate in enumerate(mmoe.gates):
        shares_BE = _softmax(x_BI @ gate.weight.detach().numpy().T)
        expected = sum(shares_BE[:, i : i + 1] * outputs[i] for i in range(3))
        np.testing.assert_allclose(found.tasks[number].detach(), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.gates[0][number].detach(), shares_BE, rtol=0, atol=1e-12)


def test_the_gradient_of_the_input_is_that_of_finite_differences() -> None:
    mmoe = _mmoe(3)
    assert torch.autograd.gradcheck(lambda x: mmoe(x).tasks, (_views(3).requires_grad_(),))


def test_tied_gates_are_omoe_one_mixture_for_all_tasks() -> None:
    mmoe, x_BVI = _mmoe(4), _views()
    for gate in mmoe.gates[1:]:
        gate.load_state_dict(mmoe.gates[0].state_dict())
    x_BI = x_BVI[:, 0].numpy()
    shares_BE = _softmax(x_BI @ mmoe.gates[0].weight.detach().numpy().T)
    mixture = sum(
        shares_BE[:, i : i + 1] * _by_hand(expert, x_BI) for i, expert in enumerate(mmoe.experts)
    )
    for task_BH in mmoe(x_BVI).tasks:
        np.testing.assert_allclose(task_BH.detach(), mixture, rtol=0, atol=1e-12)


def test_gates_of_zero_give_the_mean_of_the_experts() -> None:
    mmoe, x_BVI = _mmoe(4), _views()
    for gate in mmoe.gates:
        nn.init.zeros_(gate.weight)
    mean = np.mean([_by_hand(expert, x_BVI[:, 0].numpy()) for expert in mmoe.experts], axis=0)
    for task_BH in mmoe(x_BVI).tasks:
        np.testing.assert_allclose(task_BH.detach(), mean, rtol=0, atol=1e-12)


def test_the_order_of_experts_is_of_no_account() -> None:
    mmoe, x_BVI = _mmoe(4), _views()
    order = [2, 0, 3, 1]
    moved = copy.deepcopy(mmoe)
    for place, source in enumerate(order):
        moved.experts[place].load_state_dict(mmoe.experts[source].state_dict())
    for gate, original in zip(moved.gates, mmoe.gates, strict=True):
        gate.weight.data = original.weight.data[order].clone()
    for one, other in zip(mmoe(x_BVI).tasks, moved(x_BVI).tasks, strict=True):
        torch.testing.assert_close(one, other, **EXACT)
    _squares(mmoe, x_BVI).sum().backward()
    _squares(moved, x_BVI).sum().backward()
    for place, source in enumerate(order):
        pairs = zip(
            moved.experts[place].parameters(), mmoe.experts[source].parameters(), strict=True
        )
        for one, other in pairs:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-12)
    for gate, original in zip(moved.gates, mmoe.gates, strict=True):
        torch.testing.assert_close(
            gate.weight.grad, original.weight.grad[order], rtol=1e-12, atol=1e-12
        )


@pytest.mark.parametrize("steps", [0, 100])
def test_experts_and_units_differ_pairwise(steps: int) -> None:
    """PaddleRec issue 721: experts that start alike stay alike."""
    mmoe = _mmoe(4)
    optimizer = torch.optim.Adam(mmoe.parameters(), lr=1e-2)
    for step in range(steps):
        x_BVI = _views(32, seed=step)
        optimizer.zero_grad()
        targets = x_BVI[:, 0, :TASKS].sin()
        tasks = mmoe(x_BVI).tasks
        sum((t.mean(dim=1) - targets[:, k]).square().mean() for k, t in enumerate(tasks)).backward()
        optimizer.step()
    weights = [expert[0].weight.detach() for expert in mmoe.experts]
    for one, other in combinations(weights, 2):
        assert (one - other).abs().max() > 1e-2
    for unit, other in combinations(torch.cat(weights), 2):
        assert (unit - other).abs().max() > 1e-2


def test_seeds_reproduce_weights() -> None:
    first, again, other = (_mmoe(3, seed=seed) for seed in (3, 3, 4))
    assert all(map(torch.equal, first.parameters(), again.parameters()))
    assert not torch.equal(first.experts[0][0].weight, other.experts[0][0].weight)
    assert not torch.equal(first.gates[0].weight, other.gates[0].weight)


def test_dropout_acts_in_training_only() -> None:
    mmoe, x_BVI = _mmoe(3, dropout=0.5), _views()
    assert not torch.equal(mmoe(x_BVI).tasks[0], mmoe(x_BVI).tasks[0])
    mmoe.eval()
    assert torch.equal(mmoe(x_BVI).tasks[0], mmoe(x_BVI).tasks[0])


def test_experts_without_layers_are_refused() -> None:
    with pytest.raises(SchemaError, match="expert_dims"):
        MMoE(expert_dims=())


def test_the_experts_returned_are_those_the_gates_mix() -> None:
    found = _mmoe(3)(_views())
    assert len(found.experts) == 1
    for task_BH, gate_BE in zip(found.tasks, found.gates[0], strict=True):
        mixed_BH = sum(gate_BE[:, i : i + 1] * e for i, e in enumerate(found.experts[0]))
        torch.testing.assert_close(task_BH, mixed_BH, **EXACT)


def test_normalised_experts_have_one_scale_before_swish() -> None:
    mmoe = _mmoe(4, normalize_experts=True)
    for expert, scale in zip(mmoe.experts, (0.1, 1.0, 10.0, 100.0), strict=True):
        nn.init.normal_(expert[2].weight, std=scale)
        *before, norm, swish = expert
        assert (type(norm), type(swish)) == (nn.LayerNorm, nn.SiLU)
        normal_BH = norm(nn.Sequential(*before)(_views(500)[:, 0])).detach()
        torch.testing.assert_close(normal_BH.mean(dim=1), torch.zeros(500).double())
        assert 0.9 < normal_BH.var(dim=1, correction=0).median() <= 1
