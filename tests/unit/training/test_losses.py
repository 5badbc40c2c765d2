"""Losses against a loop over rows in numpy, float64."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_mtl.network import Targets
from recsys_mtl.schema import Binary, Multiclass, Regression, Task
from recsys_mtl.training import task_losses

CTR = Binary("ctr", label="click")
GENRE = Multiclass("genre", label="genre", num_classes=3)
RATING = Regression("rating", label="rating")
HUBER = Regression("time", label="time", loss="huber", huber_delta=0.7)
TASKS: tuple[Task, ...] = (CTR, GENRE, RATING, HUBER)
MEAN = [0, 0, 3.0, -1.0]
STD = [1, 1, 1.5, 0.25]


def _row_loss(task: Task, logits: np.ndarray, label: float, mean: float, std: float) -> float:
    if task is CTR:
        chance = 1 / (1 + math.exp(-logits[0]))
        return -math.log(chance if label == 1 else 1 - chance)
    if task is GENRE:
        return math.log(np.exp(logits).sum()) - logits[int(label)]
    off = logits[0] - (label - mean) / std
    if task is RATING or abs(off) <= 0.7:
        return off**2 if task is RATING else off**2 / 2
    return 0.7 * (abs(off) - 0.35)


def _rows(num_rows: int = 25) -> tuple[Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(num_rows, 6)))
    labels = np.stack(
        [
            rng.integers(2, size=num_rows),
            rng.integers(3, size=num_rows),
            rng.normal(3, 1.5, num_rows),
            rng.normal(-1, 0.5, num_rows),
        ],
        axis=1,
    )
    weights = rng.uniform(0, 3, size=labels.shape) * (rng.random(labels.shape) < 0.6)
    return logits, labels, weights


def _losses(logits: Tensor, labels: np.ndarray, weights: np.ndarray) -> Tensor:
    targets = Targets(torch.from_numpy(labels), torch.from_numpy(weights))
    return task_losses(logits, targets, TASKS, torch.tensor(MEAN), torch.tensor(STD))


def test_losses_are_the_weighted_means_of_a_loop_over_rows() -> None:
    logits, labels, weights = _rows()
    found = _losses(logits, labels, weights)
    parts = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 6)]
    for k, (task, part) in enumerate(zip(TASKS, parts, strict=True)):
        rows = [
            _row_loss(task, logits[b, part].numpy(), labels[b, k], MEAN[k], STD[k])
            for b in range(len(labels))
        ]
        expected = np.average(rows, weights=weights[:, k])
        assert found[k].item() == pytest.approx(expected, rel=1e-10)


def test_both_sides_of_the_bend_of_huber_are_in_the_rows() -> None:
    logits, labels, weights = _rows()
    off = np.abs(logits[:, 5].numpy() - (labels[:, 3] + 1) / 0.25)[weights[:, 3] > 0]
    assert (off < 0.7).any()
    assert (off > 0.7).any()


@pytest.mark.parametrize("number", range(4))
def test_a_task_without_observed_rows_has_no_loss_and_no_gradient(number: int) -> None:
    logits, labels, weights = _rows()
    before = _losses(logits, labels, weights)
    weights[:, number] = 0
    logits.requires_grad_()
    found = _losses(logits, labels, weights)
    assert found[number] == 0
    others = [k for k in range(4) if k != number]
    assert torch.equal(found[others], before[others])
    assert not torch.autograd.grad(found[number], logits)[0].any()


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30, 77.0])
def test_the_label_of_a_row_that_is_not_observed_is_never_looked_at(junk: float) -> None:
    logits, labels, weights = _rows()
    logits.requires_grad_()
    expected = _losses(logits, labels, weights)
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    assert (weights == 0).any(axis=0).all()
    found = _losses(logits, np.where(weights > 0, labels, junk), weights)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.sum(), logits)[0], gradient)


def test_rows_that_are_not_observed_get_no_gradient() -> None:
    logits, labels, weights = _rows()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(_losses(logits, labels, weights).sum(), logits)
    per_logit = np.repeat(weights, [1, 3, 1, 1], axis=1) > 0
    assert torch.equal(gradient != 0, torch.from_numpy(per_logit))


def test_the_scale_of_weights_is_of_no_account() -> None:
    logits, labels, weights = _rows()
    torch.testing.assert_close(
        _losses(logits, labels, 1000 * weights), _losses(logits, labels, weights)
    )


def test_no_rows_give_no_loss() -> None:
    logits, labels, weights = _rows(0)
    assert _losses(logits, labels, weights).tolist() == [0] * 4


def test_half_precision_logits_are_taken_in_float32() -> None:
    """In bfloat16 the first loss, log(1 + e) = 1.3133, would be 1.3125."""
    logits = torch.ones(1, 6).bfloat16()
    found = _losses(logits, np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32))
    assert found.dtype == torch.float32
    assert found[0].item() == pytest.approx(math.log(1 + math.e), rel=1e-6)


def test_huge_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[90.0, 90, -90, 0, 0, 0], [-90.0, -90, 90, 0, 0, 0]], requires_grad=True)
    labels = np.array([[0, 1, 0, 0], [1, 0, 0, 0]], dtype=np.float32)
    found = _losses(logits, labels, np.ones((2, 4), np.float32))
    assert found[:2].tolist() == pytest.approx([90, 180])
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()
