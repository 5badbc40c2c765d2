"""K3 of the science reference, in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import PLE, MMoE
from recsys_mtl.network.sharing import CGC, Columns, SharingModule

WIDTH, TASKS = 5, 3
NAMES = ("a", "b", "c")
PAIRS = [(k, j) for k in range(TASKS) for j in range(TASKS) if j != k]


def _ple(num_levels: int, *, shared: int, own: int, seed: int = 0) -> SharingModule:
    torch.manual_seed(seed)
    spec = PLE(num_levels, num_shared_experts=shared, num_task_experts=own, expert_dims=(7, 4))
    return spec.build(WIDTH, NAMES, Columns()).double()


def _views(num_rows: int = 11) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, 1, WIDTH, generator=generator, dtype=torch.float64)


def _gradients(ple: SharingModule, task: int) -> dict[str, Tensor | None]:
    """Gradient of one task's loss on every parameter; None where the graph does not lead there."""
    names, parameters = zip(*ple.named_parameters(), strict=True)
    loss = ple(_views()).tasks[task].square().sum()
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def _size(gradients: dict[str, Tensor | None], prefix: str) -> float:
    found = [grad for name, grad in gradients.items() if name.startswith(prefix)]
    assert found, prefix
    return max(0.0 if grad is None else float(grad.abs().max()) for grad in found)


def test_one_level_without_task_experts_is_mmoe() -> None:
    ple, x_BVI = _ple(1, shared=4, own=0), _views()
    mmoe = MMoE(4, expert_dims=(7, 4)).build(WIDTH, NAMES, Columns()).double()
    level = ple.levels[0]
    mmoe.experts.load_state_dict(level.shared_experts.state_dict())
    mmoe.gates.load_state_dict(level.task_gates.state_dict())
    one, other = ple(x_BVI), mmoe(x_BVI)
    for task_BH, expected_BH in zip(one.tasks, other.tasks, strict=True):
        torch.testing.assert_close(task_BH, expected_BH, rtol=0, atol=1e-12)
    for gate_BE, expected_BE in zip(one.gates[0], other.gates[0], strict=True):
        torch.testing.assert_close(gate_BE, expected_BE, rtol=0, atol=1e-12)
    for module in (ple, mmoe):
        module.zero_grad()
        sum(k * t.square().sum() for k, t in enumerate(module(x_BVI).tasks)).backward()
    for mine, theirs in zip(
        level.shared_experts.parameters(), mmoe.experts.parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_levels", [1, 2, 3])
def test_without_shared_experts_tasks_are_independent_nets(num_levels: int) -> None:
    ple = _ple(num_levels, shared=0, own=2)
    for task in range(TASKS):
        gradients = _gradients(ple, task)
        for number in range(num_levels):
            for other in range(TASKS):
                experts = _size(gradients, f"levels.{number}.task_experts.{other}.")
                gate = _size(gradients, f"levels.{number}.task_gates.{other}.")
                if other == task:
                    assert experts > 0
                    assert gate > 0
                else:
                    assert (experts, gate) == (0, 0)


def test_without_shared_experts_a_task_equals_the_net_of_that_task_alone() -> None:
    ple, x_BVI = _ple(2, shared=0, own=2), _views()
    spec = PLE(2, num_shared_experts=0, num_task_experts=2, expert_dims=(7, 4))
    for task in range(TASKS):
        alone = spec.build(WIDTH, NAMES[:1], Columns()).double()
        for mine, whole in zip(alone.levels, ple.levels, strict=True):
            mine.task_experts[0].load_state_dict(whole.task_experts[task].state_dict())
            mine.task_gates[0].load_state_dict(whole.task_gates[task].state_dict())
        torch.testing.assert_close(
            alone(x_BVI).tasks[0], ple(x_BVI).tasks[task], rtol=0, atol=1e-12
        )


@pytest.mark.parametrize(("task", "other"), PAIRS)
def test_in_cgc_a_task_never_reaches_the_experts_of_another(task: int, other: int) -> None:
    gradients = _gradients(_ple(1, shared=2, own=2), task)
    assert _size(gradients, f"levels.0.task_experts.{other}.") == 0
    assert _size(gradients, f"levels.0.task_gates.{other}.") == 0
    assert _size(gradients, f"levels.0.task_experts.{task}.") > 0
    assert _size(gradients, "levels.0.shared_experts.") > 0


@pytest.mark.parametrize(("task", "other"), PAIRS)
def test_in_two_levels_a_task_reaches_first_level_experts_of_others_by_the_shared_gate(
    task: int, other: int
) -> None:
    ple = _ple(2, shared=2, own=2)
    gradients = _gradients(ple, task)
    assert _size(gradients, f"levels.0.task_experts.{other}.") > 1e-6
    assert _size(gradients, "levels.0.shared_gate.") > 1e-6
    assert _size(gradients, f"levels.0.task_gates.{other}.") == 0
    assert _size(gradients, f"levels.1.task_experts.{other}.") == 0


@pytest.mark.parametrize("num_levels", [1, 2])
def test_the_gradient_of_the_input_is_that_of_finite_differences(num_levels: int) -> None:
    ple = _ple(num_levels, shared=2, own=2)
    x_BVI = _views(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ple(x).tasks, (x_BVI,))


def test_two_levels_are_the_formula_worked_by_hand() -> None:
    """Two tasks, one expert each, one shared: the shared gate runs over all three experts."""
    torch.manual_seed(0)
    spec = PLE(2, num_shared_experts=1, num_task_experts=1, expert_dims=(4,))
    ple, x_BVI = spec.build(WIDTH, NAMES[:2], Columns()).double(), _views()
    inputs = [x_BVI[:, 0].numpy()] * 2
    shared = x_BVI[:, 0].numpy()
    for level in ple.levels:
        own = [_dense(level.task_experts[k][0], inputs[k]) for k in range(2)]
        common = _dense(level.shared_experts[0], shared)
        mixed = [_mixture(level.task_gates[k], inputs[k], [own[k], common]) for k in range(2)]
        if level.shared_gate is not None:
            shared = _mixture(level.shared_gate, shared, [*own, common])
        inputs = mixed
    assert [level.shared_gate is None for level in ple.levels] == [False, True]
    for task_BH, expected in zip(ple(x_BVI).tasks, inputs, strict=True):
        np.testing.assert_allclose(task_BH.detach(), expected, rtol=0, atol=1e-12)


def _dense(expert: nn.Sequential, x_BI: np.ndarray) -> np.ndarray:
    linear = expert[0]
    return np.maximum(x_BI @ linear.weight.detach().numpy().T + linear.bias.detach().numpy(), 0)


def _mixture(gate: nn.Module, x_BI: np.ndarray, experts: list[np.ndarray]) -> np.ndarray:
    powers_BE = np.exp(x_BI @ gate.weight.detach().numpy().T)
    shares_BE = powers_BE / powers_BE.sum(axis=1, keepdims=True)
    return sum(shares_BE[:, i : i + 1] * expert for i, expert in enumerate(experts))


def test_experts_must_be_somewhere_and_have_layers() -> None:
    with pytest.raises(SchemaError, match="must not both be 0"):
        PLE(num_shared_experts=0, num_task_experts=0)
    with pytest.raises(SchemaError, match="expert_dims"):
        PLE(expert_dims=())


def test_cgc_is_ple_with_one_level() -> None:
    torch.manual_seed(3)
    cgc = CGC(2, 1, expert_dims=(7, 4)).build(WIDTH, NAMES, Columns()).double()
    torch.manual_seed(3)
    ple = PLE(1, num_shared_experts=2, num_task_experts=1, expert_dims=(7, 4))
    levels = ple.build(WIDTH, NAMES, Columns()).double()
    assert all(map(torch.equal, cgc(_views()).tasks, levels(_views()).tasks))
    assert len(cgc(_views()).gates) == 1
    with pytest.raises(SchemaError, match="must not both be 0"):
        CGC(0, 0)


def test_every_level_returns_the_outputs_that_its_gates_mix() -> None:
    ple = _ple(2, shared=1, own=2)
    found = ple(_views())
    for number, (gates, experts) in enumerate(zip(found.gates, found.experts, strict=True)):
        assert len(experts) == 2 * TASKS + 1
        if number == 1:
            for task in range(TASKS):
                seen = [*experts[2 * task : 2 * task + 2], experts[-1]]
                mixed = sum(gates[task][:, i : i + 1] * e for i, e in enumerate(seen))
                torch.testing.assert_close(found.tasks[task], mixed, rtol=0, atol=1e-12)


def test_the_roster_of_an_inner_level_has_the_columns_of_task_gates_and_of_the_shared_one() -> None:
    ple, x_BVI = _ple(2, shared=1, own=2), _views()
    found = ple(x_BVI)
    inner, last = found.rosters
    everyone = ["a #1", "a #2", "b #1", "b #2", "c #1", "c #2", "shared #1"]
    reads = [[inner.names[number] for number in numbers] for numbers in inner.reads]
    assert reads == [[f"{n} #1", f"{n} #2", "shared #1"] for n in NAMES] + [everyone]
    assert last.reads == inner.reads[:TASKS]
    level = ple.levels[0]((x_BVI[:, 0],) * TASKS, x_BVI[:, 0])
    for mixed_BH, gate_BE, numbers in zip(
        (*level.tasks, level.shared_BH), found.gates[0], inner.reads, strict=True
    ):
        columns = enumerate(numbers)
        mixed = sum(gate_BE[:, i : i + 1] * found.experts[0][n] for i, n in columns)
        torch.testing.assert_close(mixed_BH, mixed, rtol=0, atol=1e-12)
