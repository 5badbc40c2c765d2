"""Losses against a loop over rows in numpy, float64, and against torch's own."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.errors import SchemaError
from recsys_mtl.network import Headed, HeadsModule, RowLosses, Targets, Towers
from recsys_mtl.schema import Binary, Multiclass, Regression, Task
from recsys_mtl.training.losses import check_losses, task_losses
from recsys_mtl.training.ranking import listwise_loss, pairwise_loss

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
    targets = _targets(torch.from_numpy(labels), torch.from_numpy(weights))
    heads = Towers(()).build(2, TASKS)
    found = task_losses(
        Headed(logits), targets, TASKS, torch.tensor(MEAN), torch.tensor(STD), heads
    )
    return found.means_T


def _targets(labels: Tensor, weights: Tensor, groups: Tensor | None = None) -> Targets:
    states = torch.full(labels.shape, OBSERVED, dtype=torch.uint8)
    return Targets(labels, weights, states, groups)


def _loss(
    task: Task,
    logits: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Return the loss of a task alone, from its logits and labels (n,)."""
    weights = torch.ones_like(logits[:, 0]) if weights is None else weights
    targets = _targets(labels.to(logits.dtype)[:, None], weights[:, None], groups)
    none = torch.zeros(1, dtype=logits.dtype)
    heads = Towers(()).build(2, [task])
    return task_losses(Headed(logits), targets, [task], none, none + 1, heads).means_T[0]


def _clicks(num_rows: int = 40) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(num_rows, 1, generator=draw, dtype=torch.float64)
    labels = torch.randint(2, (num_rows,), generator=draw)
    weights = torch.rand(num_rows, generator=draw, dtype=torch.float64) * (
        torch.rand(num_rows, generator=draw) < 0.8
    )
    return logits, labels, weights, torch.randint(7, (num_rows,), generator=draw)


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


def test_focal_loss_without_gamma_is_cross_entropy_to_the_last_bit() -> None:
    logits, labels, weights, _ = _clicks()
    found = _loss(replace(CTR, loss="focal", focal_gamma=0), logits, labels, weights)
    assert torch.equal(found, _loss(CTR, logits, labels, weights))


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
def test_focal_loss_is_equation_4_of_its_paper(gamma: float) -> None:
    logits, labels, weights, _ = _clicks()
    chance = logits[:, 0].sigmoid()
    right = torch.where(labels == 1, chance, 1 - chance)
    expected = (-((1 - right) ** gamma) * right.log() * weights).sum() / weights.sum()
    found = _loss(replace(CTR, loss="focal", focal_gamma=gamma), logits, labels, weights)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", ["bce", "focal"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_huge_logits_of_one_task_stay_finite(loss: Any, gamma: float) -> None:
    logits = torch.tensor([[90.0], [90.0], [-90.0], [-90.0]], requires_grad=True)
    task = replace(CTR, loss=loss, focal_gamma=gamma, positive_weight=3)
    found = _loss(task, logits, torch.tensor([0, 1, 0, 1]))
    assert found.item() == pytest.approx((90 + 3 * 90) / 4)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


def test_positive_weight_is_the_pos_weight_of_torch() -> None:
    logits, labels, _, _ = _clicks()
    found = _loss(replace(CTR, positive_weight=2.3), logits, labels)
    weight = torch.tensor(2.3, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits[:, 0], labels.double(), pos_weight=weight)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_class_weights_are_the_weight_of_torch() -> None:
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(30) % 3
    factors = (0.3, 1.0, 4.1)
    found = _loss(replace(GENRE, class_weights=factors), logits, labels)
    expected = F.cross_entropy(logits, labels, weight=torch.tensor(factors, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_weights_of_rows_and_classes_multiply() -> None:
    logits = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(30) % 3
    weights = torch.linspace(0, 2, 30, dtype=torch.float64)
    found = _loss(replace(GENRE, class_weights=(1, 2, 3)), logits, labels, weights)
    expected = _loss(GENRE, logits, labels, weights * (labels + 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("ranking", "loss"), [("pairwise", pairwise_loss), ("listwise", listwise_loss)]
)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_ranking_and_own_loss_are_mixed_by_share(ranking: Any, loss: Any, share: float) -> None:
    logits, labels, weights, groups = _clicks()
    task = replace(CTR, loss="focal", ranking=ranking, ranking_share=share)
    own = _loss(replace(CTR, loss="focal"), logits, labels, weights)
    other = loss(logits[:, 0], labels, weights, groups)
    assert abs(own - other) > 0.01
    found = _loss(task, logits, labels, weights, groups)
    torch.testing.assert_close(found, (1 - share) * own + share * other)


def test_the_ranking_loss_of_one_task_leaves_the_others_alone() -> None:
    logits, labels, weights = _rows()
    tasks = (replace(CTR, ranking="pairwise"), *TASKS[1:])
    targets = _targets(
        torch.from_numpy(labels), torch.from_numpy(weights), torch.arange(len(labels)) % 4
    )
    found = task_losses(
        Headed(logits),
        targets,
        tasks,
        torch.tensor(MEAN),
        torch.tensor(STD),
        Towers(()).build(2, tasks),
    )
    assert torch.equal(found.means_T[1:], _losses(logits, labels, weights)[1:])
    expected = pairwise_loss(
        logits[:, 0], *(x[:, 0] for x in (targets.labels_BT, targets.weights_BT)), targets.groups_B
    )
    torch.testing.assert_close(found.means_T[0], expected)


def test_a_ranking_loss_without_groups_is_refused() -> None:
    logits, labels, weights, _ = _clicks()
    with pytest.raises(
        ValueError, match="ranking loss of task 'ctr' needs rows encoded with groups"
    ):
        _loss(replace(CTR, ranking="listwise"), logits, labels, weights)


@pytest.mark.parametrize(
    "changed",
    [
        {"loss": "focal"},
        {"loss": "focal", "focal_gamma": 0.0},
        {"positive_weight": 3.0},
        {"ranking": "pairwise"},
        {"ranking": "listwise", "ranking_share": 0.4},
    ],
)
def test_gradients_are_finite_differences(changed: dict[str, Any]) -> None:
    logits, labels, weights, groups = _clicks(12)
    task = replace(CTR, **changed)
    assert torch.autograd.gradcheck(
        lambda logits: _loss(task, logits, labels, weights, groups), logits.requires_grad_()
    )


@pytest.mark.parametrize("num_bins", [2, 3, 9])
def test_the_loss_over_bins_is_cross_entropy_against_targets_whose_mean_is_the_label(
    num_bins: int,
) -> None:
    draw = torch.Generator().manual_seed(0)
    task = Regression("r", label="r", loss="bins", num_bins=num_bins, bounds=(-1, 3))
    centres = torch.linspace(-1, 3, num_bins, dtype=torch.float64)
    labels = torch.cat((torch.rand(20, generator=draw, dtype=torch.float64) * 4 - 1, centres))
    # the one distribution over neighbours with the label as its mean: a hat around each bin
    targets = (1 - (labels[:, None] - centres).abs() * (num_bins - 1) / 4).clamp(min=0)
    torch.testing.assert_close(targets @ centres, labels)
    logits = torch.randn(len(labels), num_bins, generator=draw, dtype=torch.float64)
    found = _loss(task, logits, labels)
    torch.testing.assert_close(found, F.cross_entropy(logits, targets), rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(
        lambda logits: _loss(task, logits, labels), logits.requires_grad_()
    )


def test_labels_a_rounding_beside_their_bounds_count_for_the_outer_bins() -> None:
    task = Regression("r", label="r", loss="bins", num_bins=4, bounds=(0.1, 0.7))
    logits = torch.tensor([[1.0, 2, 3, 4]])
    for label, number in ((np.nextafter(0.1, 0), 0), (np.nextafter(0.7, 1), 3)):
        expected = F.cross_entropy(logits, torch.tensor([number]))
        torch.testing.assert_close(_loss(task, logits, torch.tensor([label])), expected)


class _OwnLoss(HeadsModule):
    """Heads that define the loss of task 1."""

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        return Headed(torch.cat(tasks, dim=1))

    def set_bias(self, bias_Z: Tensor) -> None:
        del bias_Z

    def defines_loss(self, number: int) -> bool:
        return number == 1

    def row_losses(self, number: int, headed: Headed, targets: Targets) -> RowLosses | None:
        if number != 1:
            return None
        return RowLosses(headed.logits_BZ[:, 1] * 2, targets.weights_BT[:, 1] + 1)


def test_the_loss_of_the_heads_wins_over_the_own() -> None:
    tasks = (CTR, Binary("cvr", label="buy"))
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    targets = _targets(torch.zeros(3, 2), torch.tensor([[1.0, 0], [1, 1], [1, 3]]))
    found = task_losses(
        Headed(logits), targets, tasks, torch.zeros(2), torch.ones(2), _OwnLoss()
    ).means_T
    assert found.tolist() == pytest.approx([math.log(2), (2 * 1 + 4 * 2 + 6 * 4) / 7])


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"loss": "focal"}, "loss must be left out. Found 'focal'"),
        ({"positive_weight": 2.0}, "positive_weight must be left out. Found 2.0"),
        ({"ranking": "listwise"}, "ranking must be left out. Found 'listwise'"),
    ],
)
def test_settings_of_a_loss_that_the_heads_define_are_refused(
    changed: dict[str, Any], text: str
) -> None:
    plain, asking = Binary("ctr", label="y"), Binary("cvr", label="y", **changed)
    check_losses([asking, plain], _OwnLoss())
    check_losses([plain, asking], Towers(()).build(2, [plain, asking]))
    with pytest.raises(SchemaError) as error:
        check_losses([plain, asking], _OwnLoss())
    assert f"task 'cvr': the heads define its loss or read its probability, so {text}" in str(
        error.value
    )
