"""The law of every interaction; a new file in `network/interaction` is picked up by itself."""

import copy

import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from recsys_mtl.network import Interaction
from recsys_mtl.network.interaction import InteractionModule
from recsys_mtl.spec import Spec

KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Interaction))
VECTOR_DIMS = ((3, 4), (1, 2), (2, 5))
NUM_DENSE = 2
WIDTH = sum(count * dim for count, dim in VECTOR_DIMS) + NUM_DENSE
EXACT = {"rtol": 0, "atol": 1e-12}

kinds = pytest.mark.parametrize("kind", KINDS)


def _spec(kind: str) -> Interaction:
    return Interaction.from_dict({"kind": kind})


def _module(kind: str, *, seed: int = 0) -> InteractionModule:
    torch.manual_seed(seed)
    return _spec(kind).build(WIDTH, VECTOR_DIMS)


def _features(num_rows: int, *, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def _run(module: InteractionModule, x_BI: Tensor) -> Tensor:
    """Hand over the features side by side and, from the same numbers, the vectors."""
    vectors, start = [], 0
    for count, dim in VECTOR_DIMS:
        stop = start + count * dim
        vectors.append(x_BI[:, start:stop].view(-1, count, dim))
        start = stop
    return module(x_BI, tuple(vectors))


def _train(module: InteractionModule) -> None:
    """Take two steps where there is something to train."""
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
    for _ in range(2 if optimizer else 0):
        optimizer.zero_grad()
        _run(module, _features(8, dtype=torch.float32)).square().sum().backward()
        optimizer.step()


def test_the_known_kinds_are_found() -> None:
    assert {"cross", "fm", "none"} <= set(KINDS)


@kinds
def test_json_gives_the_same_spec_back(kind: str) -> None:
    spec = _spec(kind)
    assert spec.kind == kind
    assert Interaction.from_json(spec.to_json()) == spec


@kinds
def test_copies_equal_the_spec(kind: str) -> None:
    spec = _spec(kind)
    assert copy.deepcopy(spec) == spec
    assert clone(spec, safe=False) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)


@pytest.mark.parametrize("num_rows", [0, 1, 7])
@kinds
def test_the_output_is_finite_and_of_the_stated_width_at_least_the_inputs(
    kind: str, num_rows: int
) -> None:
    module = _module(kind)
    found_BI = _run(module, _features(num_rows, dtype=torch.float32))
    assert found_BI.shape == (num_rows, module.output_dim)
    assert module.output_dim >= WIDTH
    assert found_BI.isfinite().all()


@kinds
def test_the_first_columns_are_zero_where_their_feature_is_and_only_there(kind: str) -> None:
    x_BI = _features(WIDTH)
    x_BI.fill_diagonal_(0)
    found_BI = _run(_module(kind).double(), x_BI)[:, :WIDTH]
    assert torch.equal(found_BI == 0, torch.eye(WIDTH).bool())


@pytest.mark.parametrize("vector_dims", [(), ((0, 4),)])
@kinds
def test_numbers_alone_are_enough(kind: str, vector_dims: tuple[tuple[int, int], ...]) -> None:
    module = _spec(kind).build(NUM_DENSE, vector_dims)
    x_BI = torch.randn(7, NUM_DENSE)
    vectors = tuple(torch.zeros(7, count, dim) for count, dim in vector_dims)
    assert module(x_BI, vectors).shape == (7, module.output_dim)
    assert module.output_dim == NUM_DENSE


@kinds
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    """Within rounding: matrix products of other shapes add in another order."""
    module, x_BI = _module(kind).double().eval(), _features(7)
    whole_BI = _run(module, x_BI)
    for row in range(7):
        alone_BI = _run(module, x_BI[row : row + 1])
        torch.testing.assert_close(alone_BI[0], whole_BI[row], **EXACT)


@kinds
def test_float64_gives_float64_close_to_float32(kind: str) -> None:
    module, x_BI = _module(kind), _features(7, dtype=torch.float32)
    narrow_BI = _run(module, x_BI)
    wide_BI = _run(copy.deepcopy(module).double(), x_BI.double())
    assert wide_BI.dtype == torch.float64
    torch.testing.assert_close(narrow_BI.double(), wide_BI, rtol=1e-5, atol=1e-4)


@kinds
def test_after_two_steps_every_parameter_has_a_finite_gradient_that_is_not_zero(kind: str) -> None:
    module = _module(kind)
    _train(module)
    module.zero_grad()
    x_BI = _features(8, dtype=torch.float32).requires_grad_()
    _run(module, x_BI).square().sum().backward()
    for name, value in (("x", x_BI), *module.named_parameters()):
        assert value.grad is not None, name
        assert value.grad.isfinite().all(), name
        assert value.grad.abs().sum() > 0, name


@pytest.mark.parametrize("num_rows", [0, 1, 7])
@kinds
def test_gradients_are_finite_under_bfloat16_autocast(kind: str, num_rows: int) -> None:
    module, x_BI = _module(kind), _features(num_rows, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_BI = _run(module, x_BI)
    wide_BI = _run(module, x_BI.detach())
    torch.testing.assert_close(half_BI.float(), wide_BI, rtol=0.1, atol=0.1)
    half_BI.float().square().sum().backward()
    for value in (x_BI, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()


@kinds
def test_the_seed_alone_decides_the_weights(kind: str) -> None:
    first, again, other = (_module(kind, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not first or any(not torch.equal(first[name], other[name]) for name in first)


@kinds
def test_a_state_dict_carries_the_whole_module(kind: str) -> None:
    trained, fresh, x_BI = _module(kind), _module(kind, seed=9), _features(7, dtype=torch.float32)
    _train(trained)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(_run(trained.eval(), x_BI), _run(fresh.eval(), x_BI))


@kinds
def test_forward_leaves_the_input_as_it_was(kind: str) -> None:
    x_BI = _features(7)
    before_BI = x_BI.clone()
    _run(_module(kind).double(), x_BI)
    assert torch.equal(x_BI, before_BI)
