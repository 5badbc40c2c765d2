"""The law of every sharing structure; a new file in `network/sharing` is picked up by itself."""

import copy
import math

import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from recsys_mtl.network import Sharing
from recsys_mtl.network.sharing import SharingModule
from recsys_mtl.spec import Spec

WIDTH = 6
KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Sharing))
TASKS = [1, 2, 3]


def _spec(kind: str) -> Sharing:
    return Sharing.from_dict({"kind": kind})


def _module(kind: str, num_tasks: int, *, seed: int = 0) -> SharingModule:
    torch.manual_seed(seed)
    return _spec(kind).build(WIDTH, num_tasks)


def _views(num_rows: int, *, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, 1, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def _loss(module: SharingModule, x_BVI: Tensor) -> Tensor:
    """Pull every task to a target of its own, so that no gradient vanishes by symmetry."""
    found = module(x_BVI).tasks
    generator = torch.Generator().manual_seed(2)
    targets = [torch.randn(task_BH.shape, generator=generator) for task_BH in found]
    return torch.stack(
        [(task_BH - target).square().mean() for task_BH, target in zip(found, targets, strict=True)]
    ).sum()


def _train(module: SharingModule, steps: int) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        _loss(module, _views(32, seed=step)).backward()
        optimizer.step()


def test_the_known_kinds_are_found() -> None:
    assert {"mmoe", "ple", "shared_bottom"} <= set(KINDS)


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
    tasks = module(_views(num_rows)).tasks
    assert [task_BH.shape for task_BH in tasks] == [(num_rows, module.output_dim)] * num_tasks
    assert all(task_BH.isfinite().all() for task_BH in tasks)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_gates_are_shares_per_level_one_per_task_and_perhaps_a_shared_one(
    kind: str, num_tasks: int
) -> None:
    for level in _module(kind, num_tasks)(_views(7)).gates:
        assert len(level) in {num_tasks, num_tasks + 1}
        for gate_BE in level:
            assert gate_BE.shape[0] == 7
            assert (gate_BE >= 0).all()
            torch.testing.assert_close(gate_BE.sum(dim=1), torch.ones(7), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    """Within rounding: matrix products of other shapes add in another order."""
    module = _module(kind, 2).double().eval()
    x_BVI = _views(7, dtype=torch.float64)
    whole = module(x_BVI).tasks
    for row in range(7):
        alone = module(x_BVI[row : row + 1]).tasks
        for task_BH, one_BH in zip(whole, alone, strict=True):
            torch.testing.assert_close(one_BH[0], task_BH[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_gives_float64_close_to_float32(kind: str) -> None:
    module = _module(kind, 2)
    single = module(_views(7)).tasks
    double = copy.deepcopy(module).double()(_views(7, dtype=torch.float64)).tasks
    for narrow_BH, wide_BH in zip(single, double, strict=True):
        assert wide_BH.dtype == torch.float64
        torch.testing.assert_close(narrow_BH.double(), wide_BH, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_tasks", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_after_two_steps_every_parameter_has_a_finite_gradient_that_is_not_zero(
    kind: str, num_tasks: int
) -> None:
    module = _module(kind, num_tasks)
    _train(module, steps=2)
    module.zero_grad()
    _loss(module, _views(32)).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert math.isfinite(parameter.grad.abs().sum()), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_task_sends_a_gradient_to_every_row_of_the_input(kind: str) -> None:
    x_BVI = _views(7).requires_grad_()
    for task_BH in _module(kind, 2)(x_BVI).tasks:
        (gradient,) = torch.autograd.grad(task_BH.square().sum(), x_BVI, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient.abs().sum(dim=(1, 2)) > 0).all()


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
        _train(module, steps=2)
        runs.append(module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_carries_the_whole_module(kind: str) -> None:
    trained, fresh = _module(kind, 2), _module(kind, 2, seed=9)
    _train(trained, steps=2)
    fresh.load_state_dict(trained.state_dict())
    before, after = trained.eval()(_views(7)), fresh.eval()(_views(7))
    assert all(map(torch.equal, before.tasks, after.tasks))
    assert all(
        all(map(torch.equal, *levels)) for levels in zip(before.gates, after.gates, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_forward_leaves_nothing_on_the_module(kind: str) -> None:
    module = _module(kind, 2)
    before = _attributes(module)
    module(_views(7))
    assert _attributes(module) == before


def _attributes(module: SharingModule) -> dict[tuple[str, str], int]:
    """Tell every attribute, parameter and buffer of all submodules, by identity."""
    found = {}
    for name, part in module.named_modules():
        places = {**vars(part), **part._parameters, **part._buffers}
        found |= {(name, key): id(value) for key, value in places.items()}
    return found
