"""The law of every sharing structure; a new file in `network/sharing` is picked up by itself."""

import copy
import dataclasses
import math

import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from recsys_mtl.network import Sharing
from recsys_mtl.network.sharing import Columns, SharingModule
from recsys_mtl.spec import Spec

WIDTH = 6
KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Sharing))
GATED = [
    kind
    for kind in KINDS
    if any(field.name == "gating" for field in dataclasses.fields(Spec._kinds[kind]))
]
TASKS = [1, 2, 3]
NAMES = ("click", "like", "rating")


def _spec(kind: str) -> Sharing:
    return Sharing.from_dict({"kind": kind})


def _module(kind: str, num_tasks: int, *, seed: int = 0) -> SharingModule:
    torch.manual_seed(seed)
    return _spec(kind).build(WIDTH, NAMES[:num_tasks], Columns())


def _views(
    kind: str,
    num_rows: int,
    *,
    num_tasks: int = 2,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (num_rows, _spec(kind).num_views(num_tasks), WIDTH)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _loss(module: SharingModule, x_BVI: Tensor) -> Tensor:
    """Pull every task to a target of its own, so that no gradient vanishes by symmetry."""
    found = [task_BH.float() for task_BH in module(x_BVI).tasks]
    generator = torch.Generator().manual_seed(2)
    targets = [torch.randn(task_BH.shape, generator=generator) for task_BH in found]
    return torch.stack(
        [(task_BH - target).square().mean() for task_BH, target in zip(found, targets, strict=True)]
    ).sum()


def _train(module: SharingModule, kind: str, *, num_tasks: int = 2) -> None:
    """Take two steps."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        _loss(module, _views(kind, 32, num_tasks=num_tasks, seed=step)).backward()
        optimizer.step()


def test_the_known_kinds_are_found() -> None:
    known = "adatt cgc cross_stitch home mmoe omoe pepnet ple shared_bottom stem"
    assert set(known.split()) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_spec_back(kind: str) -> None:
    spec = _spec(kind)
    assert spec.kind == kind
    assert Sharing.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("kind", KINDS)
def test_copies_equal_the_spec(kind: str) -> None:
    spec = _spec(kind)
    assert copy.deepcopy(spec) == spec
    assert clone(spec, safe=False) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("num_rows", [0, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_each_task_has_one_finite_representation_of_the_stated_width(
    kind: str, num_rows: int, num_tasks: int
) -> None:
    module = _module(kind, num_tasks)
    tasks = module(_views(kind, num_rows, num_tasks=num_tasks)).tasks
    assert [task_BH.shape for task_BH in tasks] == [(num_rows, module.output_dim)] * num_tasks
    assert all(task_BH.isfinite().all() for task_BH in tasks)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_shares_per_level_one_per_task_and_perhaps_a_shared_one(
    kind: str, num_tasks: int
) -> None:
    x_BVI = _views(kind, 7, num_tasks=num_tasks)
    for level in _module(kind, num_tasks)(x_BVI).gates:
        assert len(level) in {num_tasks, num_tasks + 1}
        for gate_BE in level:
            assert gate_BE.shape[0] == 7
            assert (gate_BE >= 0).all()
            torch.testing.assert_close(gate_BE.sum(dim=1), torch.ones(7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    """Within rounding: matrix products of other shapes add in another order."""
    module = _module(kind, 2).double().eval()
    x_BVI = _views(kind, 7, dtype=torch.float64)
    whole = module(x_BVI).tasks
    for row in range(7):
        alone = module(x_BVI[row : row + 1]).tasks
        for task_BH, one_BH in zip(whole, alone, strict=True):
            torch.testing.assert_close(one_BH[0], task_BH[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_gives_float64_close_to_float32(kind: str) -> None:
    module = _module(kind, 2)
    single = module(_views(kind, 7)).tasks
    double = copy.deepcopy(module).double()(_views(kind, 7, dtype=torch.float64)).tasks
    for narrow_BH, wide_BH in zip(single, double, strict=True):
        assert wide_BH.dtype == torch.float64
        torch.testing.assert_close(narrow_BH.double(), wide_BH, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_after_two_steps_every_parameter_has_a_finite_gradient_that_is_not_zero(
    kind: str, num_tasks: int
) -> None:
    module = _module(kind, num_tasks)
    _train(module, kind, num_tasks=num_tasks)
    module.zero_grad()
    _loss(module, _views(kind, 32, num_tasks=num_tasks)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert math.isfinite(parameter.grad.abs().sum()), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_sends_a_gradient_to_every_row_of_the_input(kind: str) -> None:
    x_BVI = _views(kind, 7).requires_grad_()
    for task_BH in _module(kind, 2)(x_BVI).tasks:
        (gradient,) = torch.autograd.grad(task_BH.square().sum(), x_BVI, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("num_rows", [0, 1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_under_bfloat16_autocast(kind: str, num_rows: int) -> None:
    module, x_BVI = _module(kind, 2), _views(kind, num_rows).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = module(x_BVI)
    wide = module(x_BVI.detach())
    for half_BH, task_BH in zip(found.tasks, wide.tasks, strict=True):
        torch.testing.assert_close(half_BH.float(), task_BH, rtol=0.1, atol=0.1)
    torch.stack([task_BH.float().square().sum() for task_BH in found.tasks]).sum().backward()
    for value in (x_BVI, *module.parameters()):
        assert value.grad is None or value.grad.isfinite().all()


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_returned_for_every_level_of_gates(kind: str, num_tasks: int) -> None:
    module = _module(kind, num_tasks)
    found = module(_views(kind, 7, num_tasks=num_tasks))
    assert len(found.experts) == len(found.gates)
    for gates, experts in zip(found.gates, found.experts, strict=True):
        assert len(experts) >= max(gate_BE.shape[1] for gate_BE in gates)
        assert {expert_BH.shape for expert_BH in experts} == {(7, module.output_dim)}


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_roster_tells_which_expert_each_column_of_a_gate_is(kind: str, num_tasks: int) -> None:
    """A task's gradient on an expert it mixes is its share; the last level's are seen in the tasks."""
    found = _module(kind, num_tasks).double()(
        _views(kind, 7, num_tasks=num_tasks, dtype=torch.float64)
    )
    assert len(found.rosters) == len(found.gates)
    for roster, gates, experts in zip(found.rosters, found.gates, found.experts, strict=True):
        assert len(roster.names) == len(set(roster.names)) == len(experts)
        assert [len(numbers) for numbers in roster.reads] == [g.shape[1] for g in gates]
    if not found.gates:
        return
    roster, gates, experts = found.rosters[-1], found.gates[-1], found.experts[-1]
    for task_BH, gate_BE, numbers in zip(found.tasks, gates, roster.reads, strict=False):
        gradients = torch.autograd.grad(
            task_BH.sum(), experts, retain_graph=True, allow_unused=True
        )
        for number, gradient_BH in enumerate(gradients):
            if number not in numbers:
                assert gradient_BH is None or (gradient_BH == 0).all()
            elif gradient_BH is not None and number not in roster.bypassing:
                share_B = gate_BE[:, numbers.index(number)]
                torch.testing.assert_close(gradient_BH, share_B[:, None].expand_as(gradient_BH))
        assert sum(gradient_BH is not None for gradient_BH in gradients) > 0


@pytest.mark.parametrize("kind", GATED)
def test_gate_dropout_acts_in_training_only_and_penalties_on_demand(kind: str) -> None:
    gating = {"dropout": 0.5, "temperature": 2.0, "load_balance": 0.1}
    torch.manual_seed(0)
    spec = Sharing.from_dict({"kind": kind, "gating": gating})
    module, x_BVI = spec.build(WIDTH, NAMES, Columns()), _views(kind, 64, num_tasks=3)
    dropped = module(x_BVI)
    assert any((gate_BE == 0).any() for level in dropped.gates for gate_BE in level)
    assert dropped.penalty is not None
    assert dropped.penalty > 0
    whole, again = module.eval()(x_BVI), module(x_BVI)
    assert all((gate_BE > 0).all() for level in whole.gates for gate_BE in level)
    assert all(map(torch.equal, whole.tasks, again.tasks))
    assert module(x_BVI[:0]).penalty == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_alone_decides_the_weights(kind: str) -> None:
    first, again, other = (_module(kind, 2, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_bits(kind: str) -> None:
    runs = []
    for _ in range(2):
        module = _module(kind, 2)
        _train(module, kind)
        runs.append(module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_carries_the_whole_module(kind: str) -> None:
    trained, fresh = _module(kind, 2), _module(kind, 2, seed=9)
    _train(trained, kind)
    fresh.load_state_dict(trained.state_dict())
    before, after = trained.eval()(_views(kind, 7)), fresh.eval()(_views(kind, 7))
    assert all(map(torch.equal, before.tasks, after.tasks))
    assert all(
        all(map(torch.equal, *levels)) for levels in zip(before.gates, after.gates, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forward_leaves_nothing_on_the_module(kind: str) -> None:
    module = _module(kind, 2)
    before = _attributes(module)
    module(_views(kind, 7))
    assert _attributes(module) == before


def _attributes(module: SharingModule) -> dict[tuple[str, str], int]:
    """Tell every attribute, parameter and buffer of all submodules, by identity."""
    found = {}
    for name, part in module.named_modules():
        places = {**vars(part), **part._parameters, **part._buffers}
        found |= {(name, key): id(value) for key, value in places.items()}
    return found
