"""The one loop behind the metrics of a group's ranked list: gains, hits, the first hit."""

import numpy as np

from recsys_mtl.compiled import compiled
from recsys_mtl.metrics.checks import FloatArray, IntArray


def rank_groups(
    gains: FloatArray, scores: FloatArray, *, order: IntArray, starts: IntArray, k: int
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Walk every group's rows from the highest score down.

    Rows of equal scores stand in random order: what is returned is the mean over all orders they
    could stand in, so it depends neither on the table's order nor on a seed, and a scorer that gives
    everything one score gets what chance gives.

    Parameters
    ----------
    gains, scores : ndarray of shape (n,)
        Columns in their original order. A row is relevant where its gain is above 0.
    order : ndarray of int64, shape (n,)
        Row numbers sorted by group, and within a group by falling score.
    starts : ndarray of int64, shape (groups + 1,)
        Where each group begins in `order`; the last entry is n.
    k : int
        Ranks that count for gains and hits.

    Returns
    -------
    discounted : ndarray of shape (groups,)
        Sum over the first k ranks of gain / log2(rank + 1), ranks from 1.
    hits : ndarray of shape (groups,)
        Relevant rows among the first k.
    reciprocal : ndarray of shape (groups,)
        1 / rank of the first relevant row, of all ranks; 0 where no row is relevant.
    """
    longest = int(np.diff(starts).max(initial=0))
    discounts = 1 / np.log2(np.arange(longest) + 2.0)
    discounts[k:] = 0
    found: tuple[FloatArray, FloatArray, FloatArray]
    found = _walk(gains, scores, order, starts, discounts, k)
    return found


@compiled
def _walk(
    gains: FloatArray,
    scores: FloatArray,
    order: IntArray,
    starts: IntArray,
    discounts: FloatArray,
    k: int,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    num_groups = len(starts) - 1
    discounted = np.zeros(num_groups)
    hits = np.zeros(num_groups)
    reciprocal = np.zeros(num_groups)
    for group in range(num_groups):
        first = starts[group]
        end = starts[group + 1]
        at = first
        seen = False
        while at < end:
            score = scores[order[at]]
            above = at - first
            gain = 0.0
            relevant = 0
            discount = 0.0
            while at < end and scores[order[at]] == score:
                gain += gains[order[at]]
                relevant += gains[order[at]] > 0
                discount += discounts[at - first]
                at += 1
            tied = at - first - above
            discounted[group] += gain * discount / tied
            hits[group] += relevant * max(0, min(k - above, tied)) / tied
            if relevant and not seen:
                reciprocal[group] = _first_hit(above, tied, relevant)
                seen = True
    return discounted, hits, reciprocal


@compiled
def _first_hit(above: int, tied: int, relevant: int) -> float:
    """Return the mean of 1 / rank of the first of `relevant` among `tied` rows behind `above`."""
    found = 0.0
    none_before = 1.0
    for place in range(1, tied - relevant + 2):
        left = tied - place + 1
        found += none_before * relevant / left / (above + place)
        none_before *= (left - relevant) / left
    return found
