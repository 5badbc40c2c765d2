"""Joint probabilities against products, and joint labels against a walk along each row's chain."""

import itertools
import math
import random

import polars as pl
import pytest
import torch
from torch import Tensor

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads.joint import Joint, joints
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary, Multiclass, Regression, Task

CHAIN = (
    Binary("cvr", label="buy", within="cart", sample_weight="w_buy"),
    Multiclass("genre", label="genre", num_classes=3),
    Binary("ctr", label="click", sample_weight="w_click"),
    Binary("cart", label="cart", within="ctr", sample_weight="w_cart"),
    Regression("rating", label="rating", within="ctr"),
)
EXTREME = [-90.0, -50.0, -20.0, -3.0, 0.0, 3.0, 20.0, 50.0, 90.0]


def _chain_of(length: int) -> Joint:
    return Joint(tuple(range(length)), tuple(range(length)))


def test_binary_tasks_within_others_have_a_joint_outermost_first() -> None:
    assert joints(CHAIN) == {0: Joint((2, 3, 0), (4, 5, 0)), 3: Joint((2, 3), (4, 5))}
    assert joints(CHAIN[1:3]) == {}


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_the_joint_probability_is_the_product(length: int) -> None:
    logits_BZ = 3 * torch.randn(200, length, dtype=torch.float64)
    log_s_B, log_not_B = _chain_of(length).logs(logits_BZ)
    expected_B = logits_BZ.sigmoid().prod(dim=1)
    torch.testing.assert_close(log_s_B.exp(), expected_B, rtol=1e-13, atol=0)
    torch.testing.assert_close(log_not_B.exp(), 1 - expected_B, rtol=1e-12, atol=0)


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_float32_is_finite_and_near_float64_at_extreme_logits(length: int, label: float) -> None:
    corners = torch.tensor(list(itertools.product(EXTREME, repeat=length)))

    def loss_and_gradient(logits_BZ: Tensor) -> tuple[Tensor, Tensor]:
        logits_BZ.requires_grad_()
        losses_B = _chain_of(length).loss(logits_BZ, torch.full((len(corners),), label))
        losses_B.sum().backward()
        assert logits_BZ.grad is not None
        return losses_B.detach(), logits_BZ.grad

    losses_B, gradient_BZ = loss_and_gradient(corners.clone())
    exact_B, exact_BZ = loss_and_gradient(corners.double())
    assert losses_B.dtype == torch.float32
    assert losses_B.isfinite().all()
    assert gradient_BZ.isfinite().all()
    torch.testing.assert_close(losses_B.double(), exact_B, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient_BZ.double(), exact_BZ, rtol=0, atol=1e-6)


def test_log_of_one_minus_is_right_where_the_product_rounds_to_one() -> None:
    """1 - s = (1 - p) + p (1 - q), about twice exp(-50), far below the spacing of doubles at 1."""
    _, log_not_B = _chain_of(2).logs(torch.full((1, 2), 50.0, dtype=torch.float64))
    assert float(log_not_B) == pytest.approx(math.log(2) - 50, abs=1e-12)


def test_half_precision_logits_are_widened() -> None:
    log_s_B, log_not_B = _chain_of(2).logs(torch.randn(3, 2, dtype=torch.bfloat16))
    assert log_s_B.dtype == log_not_B.dtype == torch.float32


def _random_rows(num_rows: int) -> list[dict[str, float | None]]:
    rng = random.Random(0)
    rows = []
    for _ in range(num_rows):
        row: dict[str, float | None] = {
            name: rng.choice([0, 1, 1, None]) for name in ("click", "cart", "buy")
        }
        row |= {f"w_{name}": rng.choice([0.0, 0.5, 2.0, 3.0]) for name in ("click", "cart", "buy")}
        rows.append(row | {"genre": 0, "rating": 1})
    return rows


def _walk(row: dict[str, float | None], labels: list[str]) -> tuple[float, float]:
    """Go from the outermost label inwards until one says no, or is not there."""
    for label in labels:
        if row[label] is None:
            return 0.0, 0.0
        if row[label] == 0:
            break
    return float(row[labels[-1]] or 0) if label == labels[-1] else 0.0, float(
        row[f"w_{label}"] or 0
    )


def _targets(rows: list[dict[str, float | None]], tasks: tuple[Task, ...]) -> Targets:
    labels, states, weights = read_labels(pl.DataFrame(rows, infer_schema_length=None), tasks)
    states_BT = torch.from_numpy(states)
    weights_BT = torch.from_numpy(weights).where(states_BT == OBSERVED, 0)
    return Targets(torch.from_numpy(labels), weights_BT, states_BT)


@pytest.mark.parametrize(
    ("number", "labels"), [(0, ["click", "cart", "buy"]), (3, ["click", "cart"])]
)
def test_joint_labels_and_weights_are_those_of_a_walk_along_the_chain(
    number: int, labels: list[str]
) -> None:
    rows = _random_rows(500)
    labels_B, weights_B = joints(CHAIN)[number].targets(_targets(rows, CHAIN))
    expected = [_walk(row, labels) for row in rows]
    known_B = torch.tensor([weight > 0 for _, weight in expected])
    assert known_B.float().mean() < 0.8
    assert weights_B.tolist() == [weight for _, weight in expected]
    expected_B = torch.tensor([label for label, _ in expected])
    assert labels_B[known_B].tolist() == expected_B[known_B].tolist()
    assert 0 < expected_B[known_B].mean() < 1


@pytest.mark.parametrize(
    ("within", "text"),
    [("view", "Found 'view'"), ("genre", "Found 'genre'")],
)
def test_being_within_what_is_no_binary_task_is_refused(within: str, text: str) -> None:
    tasks = (
        Multiclass("genre", label="genre", num_classes=3),
        Binary("cvr", label="buy", within=within),
    )
    with pytest.raises(SchemaError, match=f"'cvr': within must name a binary task.*{text}"):
        joints(tasks)


def test_being_within_itself_is_refused() -> None:
    tasks = Binary("a", label="a", within="b"), Binary("b", label="b", within="a")
    with pytest.raises(SchemaError, match="must not lead back to itself"):
        joints(tasks)
