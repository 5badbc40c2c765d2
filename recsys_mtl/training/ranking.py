"""Ranking losses: the rows of one user or request against each other.

Shape letters: B rows, M pairs, G groups (at most B).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_PAIRS_AT_ONCE = 1 << 20


def pairwise_loss(
    scores_B: Tensor, labels_B: Tensor, weights_B: Tensor, groups_B: Tensor
) -> Tensor:
    """Return the mean over pairs of ``softplus(-(score of positive - score of negative))``.

    Parameters
    ----------
    scores_B
        Logits, in float32 or wider.
    labels_B
        1 or 0.
    weights_B
        Sample weights; a row with weight 0 takes no part. A pair weighs the product of its rows'.
    groups_B
        Numbers of the groups; rows of different groups are not compared.

    Returns
    -------
    Tensor
        A scalar; 0 without gradient where no group has both labels.

    Notes
    -----
    Costs as much time as there are pairs, and in training as much memory. The number of pairs is read
    from the device: one wait per call.

    References
    ----------
    S. Rendle et al., "BPR: Bayesian Personalized Ranking from Implicit Feedback", UAI 2009.
    C. Burges et al., "Learning to Rank using Gradient Descent", ICML 2005.
    """
    positive_B, negative_B = _sides(labels_B, weights_B)
    by_label_B = (~negative_B).byte().argsort(stable=True)
    order_B = by_label_B[groups_B[by_label_B].argsort(stable=True)]  # a group's negatives are first
    positive_B, negative_B = positive_B[order_B], negative_B[order_B]
    numbers_B, starts_B = _runs(groups_B[order_B])
    negatives_G = torch.zeros_like(numbers_B).index_add(0, numbers_B, negative_B.long())
    counts_B = negatives_G[numbers_B] * positive_B
    ends_B = counts_B.cumsum(0)  # each positive's pairs are numbered on after the one's before
    firsts_B = ends_B - counts_B
    num_pairs = int(counts_B.sum())
    scores_B, weights_B = scores_B[order_B], weights_B[order_B]
    loss, total = scores_B.new_zeros(()), scores_B.new_zeros(())
    # without a gradient (validation takes all rows at once) memory stays bounded
    for begin in range(0, max(num_pairs, 1), _PAIRS_AT_ONCE):
        stop = min(begin + _PAIRS_AT_ONCE, num_pairs)
        counts_now_B = ends_B.clamp(begin, stop) - firsts_B.clamp(begin, stop)
        better_M = torch.repeat_interleave(counts_now_B, output_size=stop - begin)
        pairs_M = torch.arange(begin, stop, device=scores_B.device)
        worse_M = pairs_M - (firsts_B - starts_B).index_select(0, better_M)
        weights_M = weights_B.index_select(0, better_M) * weights_B.index_select(0, worse_M)
        margin_M = scores_B.index_select(0, better_M) - scores_B.index_select(0, worse_M)
        loss = loss + (F.softplus(-margin_M) * weights_M).sum()
        total = total + weights_M.sum()
    return loss / torch.where(total > 0, total, 1)


def listwise_loss(
    scores_B: Tensor, labels_B: Tensor, weights_B: Tensor, groups_B: Tensor
) -> Tensor:
    """Return the mean over groups of ``-sum over positives of log softmax(scores of the group)``.

    Parameters
    ----------
    scores_B, labels_B, groups_B
        As in `pairwise_loss`.
    weights_B
        Sample weights; a row with weight 0 takes no part. A positive row's term is multiplied by its
        weight and a group counts the mean of its positives' weights; within the softmax all rows
        count alike.

    Returns
    -------
    Tensor
        A scalar; 0 without gradient where no group has both labels.

    Notes
    -----
    DIFF: a group without a negative row is left out. Its loss would be 0 for one row, and for more
    would only pull their scores together.

    References
    ----------
    Z. Cao et al., "Learning to Rank: From Pairwise Approach to Listwise Approach", ICML 2007.
    """
    positive_B, negative_B = _sides(labels_B, weights_B)
    taken_B = positive_B | negative_B
    order_B = groups_B.argsort(stable=True)
    numbers_B = torch.empty_like(order_B).scatter(0, order_B, _runs(groups_B[order_B])[0])
    none_G = torch.zeros_like(scores_B)
    lowest = torch.full_like(scores_B, -torch.inf)
    heights_B = torch.where(taken_B, scores_B.detach(), lowest)
    peaks_G = lowest.scatter_reduce(0, numbers_B, heights_B, "amax")
    shifted_B = torch.where(taken_B, scores_B - peaks_G[numbers_B], 0)
    sums_G = none_G.index_add(0, numbers_B, shifted_B.exp() * taken_B)
    losses_B = sums_G.where(sums_G > 0, 1).log()[numbers_B] - shifted_B

    weights_B = weights_B * positive_B
    positives_G = none_G.index_add(0, numbers_B, positive_B.to(scores_B.dtype))
    negatives_G = none_G.index_add(0, numbers_B, negative_B.to(scores_B.dtype))
    both_G = (positives_G > 0) & (negatives_G > 0)
    mean_G = none_G.index_add(0, numbers_B, weights_B) / positives_G.clamp_min(1)
    total = (mean_G * both_G).sum()
    return (losses_B * weights_B * both_G[numbers_B]).sum() / torch.where(total > 0, total, 1)


def _sides(labels_B: Tensor, weights_B: Tensor) -> tuple[Tensor, Tensor]:
    """Tell which rows are positive and which negative; one without weight is neither."""
    taken_B = weights_B > 0
    return taken_B & (labels_B > 0), taken_B & ~(labels_B > 0)


def _runs(sorted_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of each place's run of equal values, from 0, and where the run begins."""
    new_B = torch.ones_like(sorted_B, dtype=torch.bool)
    new_B[1:] = sorted_B[1:] != sorted_B[:-1]
    places_B = torch.arange(sorted_B.numel(), device=sorted_B.device)
    starts_B = torch.where(new_B, places_B, 0).cummax(0).values
    return new_B.cumsum(0) - 1, starts_B
