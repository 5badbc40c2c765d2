import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sharing import Columns, HoME, SharingModule

NAMES = ("click", "like", "watch")
GROUPS = (("watch",), ("like", "click"))


def _home(groups: tuple[tuple[str, ...], ...] = (), *, own: int = 2) -> SharingModule:
    spec = HoME(groups, num_task_experts=own, expert_dims=(7, 4), rank=2)
    module = spec.build(5, NAMES, Columns()).double()
    for name, value in module.named_parameters():
        if name.endswith("widen"):
            nn.init.normal_(value)
    return module


def _expert(expert: nn.Module, x_BI: Tensor) -> Tensor:
    """Linear, ReLU, linear, layer normalisation, Swish, behind 2 sigmoid(x B A)."""
    gate = expert.feature_gate
    x_BI = x_BI * 2 / (1 + torch.exp(-(x_BI @ gate.narrow.T @ gate.widen.T)))
    first, last = expert.mlp[0], expert.mlp[2]
    h = (x_BI @ first.weight.T + first.bias).clamp(min=0) @ last.weight.T + last.bias
    mean, variance = h.mean(dim=1, keepdim=True), h.var(dim=1, keepdim=True, correction=0)
    normal = (h - mean) / (variance + 1e-5).sqrt()
    return normal / (1 + torch.exp(-normal))


def _mixture(mixture: nn.Module, x_BI: Tensor, own: list[Tensor], others: list[Tensor]) -> Tensor:
    gate_BE = torch.softmax(x_BI @ mixture.gate.weight.T, dim=1)
    logits_BE = x_BI @ mixture.self_gate.weight.T
    own_BE = torch.softmax(logits_BE, dim=1) if len(own) > 1 else torch.sigmoid(logits_BE)
    mixed = sum(gate_BE[:, i : i + 1] * e for i, e in enumerate([*own, *others]))
    return mixed + sum(own_BE[:, i : i + 1] * e for i, e in enumerate(own))


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize(("groups", "group_of"), [((), [0, 0, 0]), (GROUPS, [1, 1, 0])])
def test_two_levels_are_the_formula_worked_by_hand(
    groups: tuple[tuple[str, ...], ...], group_of: list[int], own: int
) -> None:
    home, x_BVI = _home(groups, own=own), torch.randn(9, 1, 5).double()
    x_BI, first, second = x_BVI[:, 0], home.level1, home.level2
    in_group = [[_expert(e, x_BI) for e in experts] for experts in first.group_experts]
    shared = [_expert(e, x_BI) for e in first.shared_experts]
    z = [_mixture(m, x_BI, g, shared) for m, g in zip(first.group_mixtures, in_group, strict=True)]
    z_shared = _mixture(first.shared_mixture, x_BI, shared, [e for g in in_group for e in g])
    shared = [_expert(e, z_shared) for e in second.shared_experts]
    in_group = [
        [_expert(e, z_g) for e in experts]
        for experts, z_g in zip(second.group_experts, z, strict=True)
    ]
    for task, found_BH in enumerate(home(x_BVI).tasks):
        g = group_of[task]
        mine = [_expert(e, z[g]) for e in second.task_experts[task]]
        context = torch.cat([z[g], z_shared], dim=1)
        expected = _mixture(second.mixtures[task], context, mine, [*in_group[g], *shared])
        torch.testing.assert_close(found_BH, expected, rtol=0, atol=1e-10)


def test_feature_gates_start_neutral() -> None:
    gate = HoME().build(5, NAMES, Columns()).level1.shared_experts[0].feature_gate
    x_BI = torch.randn(9, 5)
    assert torch.equal(gate(x_BI), x_BI)


def test_a_task_never_reaches_the_tasks_of_its_group_nor_level_two_of_other_groups() -> None:
    home, x_BVI = _home(GROUPS), torch.randn(9, 1, 5).double()
    home(x_BVI).tasks[0].square().sum().backward()  # click, in the second group

    def reached(module: nn.Module) -> set[bool]:
        return {p.grad is not None and bool(p.grad.any()) for p in module.parameters()}

    second = home.level2
    assert reached(second.task_experts[0]) == reached(second.group_experts[1]) == {True}
    assert reached(second.task_experts[1]) == reached(second.task_experts[2]) == {False}
    assert reached(second.group_experts[0]) == reached(home.level1.group_mixtures[0]) == {False}
    # The representation of all tasks is mixed from the first level's experts of all groups.
    assert reached(home.level1.group_experts[0]) == {True}


def test_groups_go_by_name_whatever_the_order_of_tasks() -> None:
    torch.manual_seed(0)
    one = HoME(GROUPS).build(5, NAMES, Columns())
    assert one.group_of == (1, 1, 0)
    assert HoME(GROUPS).build(5, ("watch", "click", "like"), Columns()).group_of == (0, 1, 1)


def test_gates_of_the_first_level_are_those_of_the_task_s_group() -> None:
    found = _home(GROUPS)(torch.randn(9, 1, 5).double())
    click, like, watch, shared = found.gates[0]
    assert click is like
    assert click is not watch
    assert (click.shape[1], shared.shape[1]) == (4, 6)
    assert [gate_BE.shape[1] for gate_BE in found.gates[1]] == [6, 6, 6]


def test_rosters_tell_the_experts_behind_the_columns_of_both_levels() -> None:
    home, x_BVI = _home(GROUPS, own=1), torch.randn(9, 1, 5).double()
    found = home(x_BVI)
    first, second = found.rosters
    click, like, watch, shared = (
        [first.names[number] for number in numbers] for numbers in first.reads
    )
    assert click == like == ["group 2 #1", "group 2 #2", "shared #1", "shared #2"]
    assert watch == ["group 1 #1", "group 1 #2", "shared #1", "shared #2"]
    assert shared == ["shared #1", "shared #2", *watch[:2], *click[:2]]
    last = [[second.names[number] for number in numbers] for numbers in second.reads]
    assert last == [["click #1", *click], ["like #1", *like], ["watch #1", *watch]]
    level1 = home.level1(x_BVI[:, 0])
    gradients = torch.autograd.grad(level1.groups[1].sum(), level1.experts, allow_unused=True)
    seen = [name for name, found in zip(first.names, gradients, strict=True) if found is not None]
    assert seen == click
    names = [second.names[number] for number in second.bypassing]
    assert names == ["click #1", "like #1", "watch #1"]


@pytest.mark.parametrize("groups", [(("click",), ("like",)), (("click", "like", "watch", "x"),)])
def test_groups_that_do_not_hold_every_task_once_are_refused(
    groups: tuple[tuple[str, ...], ...],
) -> None:
    with pytest.raises(SchemaError, match="must hold every task once"):
        HoME(groups).build(5, NAMES, Columns())


@pytest.mark.parametrize("groups", [(("a", "b"), ("b",)), (("a",), ())])
def test_groups_that_overlap_or_are_empty_are_refused(groups: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(SchemaError, match="disjoint and not empty"):
        HoME(groups)
