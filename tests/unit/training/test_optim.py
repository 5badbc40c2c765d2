"""Each spec against the rule of its paper, worked in numpy for one parameter."""

import math

import pytest
import torch

from recsys_mtl.errors import SchemaError
from recsys_mtl.training import SGD, Adam, AdamW, Optimizer

GRADIENTS = [0.5, -1.0, 0.25]


def _run(optimizer: Optimizer) -> float:
    parameter = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    built = optimizer.build([parameter])
    for gradient in GRADIENTS:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        built.step()
    return parameter.item()


def _adam(rate: float, *, penalty: float, decoupled: bool) -> float:
    weight, mean, square = 2.0, 0.0, 0.0
    for step, given in enumerate(GRADIENTS, start=1):
        gradient = given if decoupled else given + penalty * weight
        weight -= rate * penalty * weight if decoupled else 0.0
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        root = math.sqrt(square / (1 - 0.999**step)) + 1e-8
        weight -= rate * mean / (1 - 0.9**step) / root
    return weight


def _sgd(rate: float, *, momentum: float, penalty: float) -> float:
    weight, speed = 2.0, 0.0
    for given in GRADIENTS:
        speed = momentum * speed + given + penalty * weight
        weight -= rate * speed
    return weight


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_steps_follow_the_papers(penalty: float) -> None:
    assert _run(Adam(0.1, weight_decay=penalty)) == pytest.approx(
        _adam(0.1, penalty=penalty, decoupled=False), rel=1e-9
    )
    assert _run(AdamW(0.1, weight_decay=penalty)) == pytest.approx(
        _adam(0.1, penalty=penalty, decoupled=True), rel=1e-9
    )
    assert _run(SGD(0.1, momentum=0.6, weight_decay=penalty)) == pytest.approx(
        _sgd(0.1, momentum=0.6, penalty=penalty), rel=1e-9
    )


@pytest.mark.parametrize("spec", [Adam(0.2), AdamW(0.2, weight_decay=0.1), SGD(momentum=0.5)])
def test_json_gives_the_same_optimizer_back(spec: Optimizer) -> None:
    assert Optimizer.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("kind", [Adam, AdamW, SGD])
def test_a_step_size_must_be_positive_and_finite(kind: type[Optimizer], rate: float) -> None:
    with pytest.raises(SchemaError, match="learning_rate"):
        kind(learning_rate=rate)  # type: ignore[call-arg]
