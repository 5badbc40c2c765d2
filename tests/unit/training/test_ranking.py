"""Ranking losses against loops over groups, pairs and rows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.training import ranking
from recsys_mtl.training.ranking import listwise_loss, pairwise_loss

Rows = tuple[Tensor, Tensor, Tensor, Tensor]
BOTH = pytest.mark.parametrize("loss", [pairwise_loss, listwise_loss])
LARGE = 2**62  # numbers of groups are hashes


def _rows(num_rows: int = 60, *, num_groups: int = 9, seed: int = 0) -> Rows:
    """Draw rows; some weigh 0, and their labels are not to be looked at."""
    draw = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(num_rows, generator=draw, dtype=torch.float64)
    labels = torch.randint(2, (num_rows,), generator=draw).double()
    weights = 0.5 + torch.rand(num_rows, generator=draw, dtype=torch.float64)
    weights *= torch.rand(num_rows, generator=draw) < 0.8
    groups = torch.randint(num_groups, (num_rows,), generator=draw)
    return scores, labels, weights, groups * (LARGE // num_groups) - LARGE // 2


def _pairwise_loop(scores: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    loss = total = torch.zeros((), dtype=scores.dtype)
    for i in range(len(scores)):
        for j in range(len(scores)):
            if groups[i] == groups[j] and labels[i] > labels[j]:
                weight = weights[i] * weights[j]
                loss = loss - F.logsigmoid(scores[i] - scores[j]) * weight
                total = total + weight
    return loss / total


def _listwise_loop(scores: Tensor, labels: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    losses, sizes = [], []
    for group in groups.unique():
        rows = (groups == group) & (weights > 0)
        positive = rows & (labels == 1)
        if not positive.any() or (labels[rows] == 1).all():
            continue
        loss = torch.zeros((), dtype=scores.dtype)
        for row in positive.nonzero()[:, 0]:
            loss = loss + weights[row] * (torch.logsumexp(scores[rows], 0) - scores[row])
        losses.append(loss)
        sizes.append(weights[positive].mean())
    return torch.stack(losses).sum() / torch.stack(sizes).sum()


@pytest.mark.parametrize(
    ("loss", "loop"), [(pairwise_loss, _pairwise_loop), (listwise_loss, _listwise_loop)]
)
@pytest.mark.parametrize("num_groups", [1, 9, 40])
def test_loss_and_gradient_are_those_of_a_loop(
    loss: Callable[..., Tensor], loop: Callable[..., Tensor], num_groups: int
):
    scores, *rest = _rows(num_groups=num_groups)
    scores.requires_grad_()
    found, expected = loss(scores, *rest), loop(scores, *rest)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(found, scores)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, scores)[0])


def test_one_positive_per_request_is_the_cross_entropy_of_torch():
    scores = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([0, 4, 2, 2, 1, 3])
    groups = torch.arange(6).repeat_interleave(5)
    labels = F.one_hot(chosen, 5).flatten()
    found = listwise_loss(scores.flatten(), labels, torch.ones(30), groups)
    torch.testing.assert_close(found, F.cross_entropy(scores, chosen))


def test_two_rows_are_the_same_to_both_losses():
    rows = torch.tensor([0.3, -1.1]), torch.tensor([0, 1]), torch.ones(2), torch.zeros(2).long()
    torch.testing.assert_close(pairwise_loss(*rows), F.softplus(torch.tensor(1.4)))
    torch.testing.assert_close(listwise_loss(*rows), F.softplus(torch.tensor(1.4)))


@BOTH
def test_the_order_of_rows_and_the_numbers_of_groups_are_of_no_account(
    loss: Callable[..., Tensor],
):
    scores, labels, weights, groups = _rows()
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(1))
    moved = [column[order] for column in (scores, labels, weights)]
    found = loss(*moved, -groups[order] + 7)
    torch.testing.assert_close(found, loss(scores, labels, weights, groups), rtol=1e-12, atol=0)


@BOTH
def test_a_constant_added_to_one_groups_scores_is_of_no_account(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    shifted = scores + 5 * (groups == groups[0])
    found = loss(shifted, labels, weights, groups)
    torch.testing.assert_close(found, loss(scores, labels, weights, groups), rtol=1e-12, atol=0)


@BOTH
def test_the_scale_of_weights_is_of_no_account(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    found = loss(scores, labels, 1000 * weights, groups)
    torch.testing.assert_close(found, loss(scores, labels, weights, groups), rtol=1e-12, atol=0)


@BOTH
def test_rows_without_weight_are_as_if_they_were_not_there(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    kept = weights > 0
    assert not kept.all()
    expected = loss(scores[kept], labels[kept], weights[kept], groups[kept])
    scores = scores.where(kept, 1e4).requires_grad_()
    found = loss(scores, labels.where(kept, 77.0), weights, groups)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not torch.autograd.grad(found, scores)[0][~kept].any()


@BOTH
@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("weight", [0, 1])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_rows_of_one_label_give_no_loss_and_no_gradient(
    loss: Callable[..., Tensor], label: int, weight: int, num_rows: int
):
    scores = torch.linspace(-3, 3, num_rows, requires_grad=True)
    labels, weights = torch.full((num_rows,), label), torch.full((num_rows,), float(weight))
    found = loss(scores, labels, weights, torch.zeros(num_rows, dtype=torch.int64))
    assert found == 0
    assert torch.equal(torch.autograd.grad(found, scores)[0], torch.zeros(num_rows))


@BOTH
def test_groups_of_one_label_change_nothing(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    more = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    found = loss(
        torch.cat([scores, more, more]),
        torch.cat([labels, torch.ones(3), torch.zeros(3)]),
        torch.cat([weights, more, more]),
        torch.cat([groups, torch.full((3,), LARGE), torch.full((3,), -LARGE)]),
    )
    torch.testing.assert_close(found, loss(scores, labels, weights, groups), rtol=1e-12, atol=0)


@BOTH
@pytest.mark.parametrize("positive", [90.0, -90.0])
def test_huge_scores_give_finite_losses_and_gradients(loss: Callable[..., Tensor], positive: float):
    scores = torch.tensor([positive, -positive], requires_grad=True)
    found = loss(scores, torch.tensor([1, 0]), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert found.item() == pytest.approx(0 if positive > 0 else 180)
    (gradient,) = torch.autograd.grad(found, scores)
    assert gradient.tolist() == pytest.approx([0, 0] if positive > 0 else [-1, 1])


@BOTH
def test_gradients_are_finite_differences(loss: Callable[..., Tensor]):
    scores, *rest = _rows(15, num_groups=3)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, *rest), scores.requires_grad_())


@BOTH
def test_dtype_of_the_scores_is_kept(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    found = loss(scores.float(), labels.float(), weights.float(), groups)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(scores, labels, weights, groups).item(), rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 1000])
def test_pairs_at_once_are_of_no_account(at_once: int, monkeypatch: pytest.MonkeyPatch):
    rows = _rows()
    expected = pairwise_loss(*rows)
    monkeypatch.setattr(ranking, "_PAIRS_AT_ONCE", at_once)
    torch.testing.assert_close(pairwise_loss(*rows), expected, rtol=1e-12, atol=0)


@BOTH
def test_descent_ranks_the_positives_first(loss: Callable[..., Tensor]):
    scores, labels, weights, groups = _rows()
    scores.requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        loss(scores, labels, weights, groups).backward()
        optimizer.step()
    for group in groups.unique():
        rows = (groups == group) & (weights > 0)
        positive, negative = scores[rows & (labels == 1)], scores[rows & (labels == 0)]
        if len(positive) and len(negative):
            assert positive.min() > negative.max()
