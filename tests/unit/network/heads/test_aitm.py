import math
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads import AITM, Headed, Towers
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary, Regression, Task

BUY = Binary("buy", label="buy", parents=("cart",))
VIEW = Binary("view", label="view")
CART = Binary("cart", label="cart", parents=("view",))
STEPS = (BUY, VIEW, CART)  # in no order
TARGETS = Targets(torch.ones(3, 3), torch.ones(3, 3), torch.full((3, 3), OBSERVED))
Array = npt.NDArray[np.float64]


def _linear(layer: nn.Module, x: Array) -> Array:
    layer = cast("nn.Linear", layer)
    bias = 0 if layer.bias is None else layer.bias.detach().numpy()
    return cast("Array", layer.weight.detach().numpy() @ x + bias)


def _layers(layers: nn.Module, x: Array) -> Array:
    for layer in cast("nn.Sequential", layers):
        x = _linear(layer, x) if isinstance(layer, nn.Linear) else np.maximum(x, 0)
    return x


def _one_row(module: nn.Module, chain: list[int], row: dict[int, Array]) -> dict[int, float]:
    """Follow the paper's formulas for one impression, in plain numpy."""
    logits, z = {}, None
    for number in chain:
        tower = module.towers[number]  # type: ignore[union-attr,index]
        query = _layers(tower.query, row[number])
        if z is None:
            z = query
        else:
            tokens = [_layers(tower.transfer.info, z), query]
            h1, h2, h3 = tower.transfer.h1, tower.transfer.h2, tower.transfer.h3
            scores = [_linear(h1, u) @ _linear(h2, u) / math.sqrt(len(u)) for u in tokens]
            powers = [math.exp(score) for score in scores]
            z = sum(
                power / sum(powers) * _linear(h3, u)
                for power, u in zip(powers, tokens, strict=True)
            )
        logits[number] = _linear(tower.output, _layers(tower.hidden, z)).item()
    return logits


@pytest.mark.parametrize("output_dims", [(), (3,)])
@pytest.mark.parametrize("dims", [(), (5,), (6, 5)])
def test_logits_are_those_of_the_papers_formulas_row_by_row(
    dims: tuple[int, ...], output_dims: tuple[int, ...]
) -> None:
    module = AITM(dims, output_dims=output_dims).build(4, STEPS).double()
    inputs = tuple(2 * torch.randn(3, 11, 4, dtype=torch.float64))
    found_BZ = module(inputs).logits_BZ.detach().numpy()
    for row in range(11):
        values = {number: inputs[number][row].numpy() for number in range(3)}
        expected = _one_row(module, [1, 2, 0], values)
        for number in range(3):
            assert found_BZ[row, number] == pytest.approx(expected[number], abs=1e-12)


def test_a_task_reads_those_before_it_in_the_chain_and_none_after() -> None:
    module = AITM().build(4, STEPS).double()
    inputs = tuple(torch.randn(7, 4, dtype=torch.float64).requires_grad_() for _ in STEPS)
    logits_BZ = module(inputs).logits_BZ
    for number, read in ((1, {1}), (2, {1, 2}), (0, {0, 1, 2})):
        gradients = torch.autograd.grad(
            logits_BZ[:, number].sum(), inputs, retain_graph=True, materialize_grads=True
        )
        assert {k for k, gradient in enumerate(gradients) if gradient.any()} == read


def test_without_parents_heads_are_plain_towers() -> None:
    tasks = (VIEW, Regression("rating", label="rating"))
    module = AITM((8, 5), output_dims=(3,)).build(4, tasks)
    towers = Towers((8, 5, 3)).build(4, tasks)
    for one, other in zip(module.towers, towers.towers, strict=True):
        layers = [
            layer
            for part in (one.query, one.hidden)
            for layer in part
            if isinstance(layer, nn.Linear)
        ]
        for layer, copy in zip(
            layers, (x for x in other.hidden if isinstance(x, nn.Linear)), strict=True
        ):
            copy.load_state_dict(layer.state_dict())
        other.output.load_state_dict(one.output.state_dict())
    inputs = tuple(torch.randn(2, 7, 4))
    assert torch.equal(module(inputs).logits_BZ, towers(inputs).logits_BZ)


def _headed(logits: list[list[float]]) -> Headed:
    return Headed(torch.tensor(logits, dtype=torch.float64).requires_grad_())


def test_the_calibrator_is_the_mean_excess_of_each_step_over_the_one_before() -> None:
    module = AITM(calibrator=0.6).build(4, STEPS)
    headed = _headed([[2.0, 1.0, -1.0], [-3.0, 0.0, 1.0], [-1.0, 2.0, 1.0]])
    penalty = module.penalty(headed, TARGETS)
    p = [[1 / (1 + math.exp(-x)) for x in row] for row in headed.logits_BZ.tolist()]
    excess = [max(0, buy - cart) + max(0, cart - view) for buy, view, cart in p]
    assert penalty.item() == pytest.approx(0.6 * sum(excess) / 3, abs=1e-12)
    (gradient_BZ,) = torch.autograd.grad(penalty, headed.logits_BZ)
    # row 0: buy over cart; row 1: cart over view; row 2: in order
    assert torch.equal(gradient_BZ.sign(), torch.tensor([[1.0, 0, -1], [0, -1, 1], [0, 0, 0]]))


@pytest.mark.parametrize(
    "tasks",
    [
        (Binary("ctr", label="click"), Binary("cvr", label="buy", within="ctr")),
        (Binary("ctr", label="click"), Regression("rating", label="rating", parents=("ctr",))),
        (Regression("rating", label="rating"), Binary("like", label="like", parents=("rating",))),
        (VIEW, Regression("rating", label="rating")),
    ],
    ids=["within its parent", "regression child", "regression parent", "no parents"],
)
def test_scores_that_are_not_nested_are_not_calibrated(tasks: tuple[Task, ...]) -> None:
    module = AITM().build(4, tasks)
    assert module.penalty(_headed([[-5.0, 5.0]]), TARGETS) is None


def test_two_conditional_scores_of_one_space_are_calibrated() -> None:
    tasks = (
        VIEW,
        Binary("cart", label="cart", within="view"),
        Binary("buy", label="buy", within="view", parents=("cart",)),
    )
    penalty = AITM(calibrator=1).build(4, tasks).penalty(_headed([[0.0, -50, 50]]), TARGETS)
    assert penalty.item() == pytest.approx(1)


def test_the_calibrator_can_be_left_out() -> None:
    assert AITM(calibrator=0).build(4, STEPS).penalty(_headed([[5.0, -5, 0]]), TARGETS) is None


def test_a_batch_without_rows_has_a_penalty_of_zero() -> None:
    penalty = AITM().build(4, STEPS).penalty(Headed(torch.zeros(0, 3)), TARGETS)
    assert penalty.item() == 0


def test_more_than_one_parent_is_refused() -> None:
    crowded = Binary("buy", label="buy", parents=("view", "cart"))
    with pytest.raises(
        SchemaError, match=r"one parent per task. Task 'buy' has \['view', 'cart'\]"
    ):
        AITM().build(4, (VIEW, CART, crowded))


def test_a_circle_is_refused() -> None:
    with pytest.raises(SchemaError, match="must not lead back"):
        AITM().build(4, (CART, Binary("view", label="view", parents=("cart",))))


def test_the_gradient_is_that_of_finite_differences() -> None:
    module = AITM((5,)).build(4, STEPS).double()
    inputs = tuple(torch.randn(4, 4, dtype=torch.float64).requires_grad_() for _ in STEPS)

    def logits(*tasks: Tensor) -> Tensor:
        return cast("Tensor", module(tasks).logits_BZ)

    assert torch.autograd.gradcheck(logits, inputs)
