"""The one counting loop behind AUC and grouped AUC."""

import numpy as np

from recsys_mtl.compiled import compiled
from recsys_mtl.metrics.checks import BoolArray, FloatArray, IntArray


def group_aucs(
    labels: BoolArray,
    scores: FloatArray,
    weights: FloatArray,
    *,
    order: IntArray,
    starts: IntArray,
) -> tuple[FloatArray, FloatArray]:
    """Compute the AUC of every group of rows, for the metrics built on it.

    Parameters
    ----------
    labels, scores, weights : ndarray of shape (n,)
        Columns in their original order.
    order : ndarray of int64, shape (n,)
        Row numbers sorted by group, and within a group by ascending score.
    starts : ndarray of int64, shape (groups + 1,)
        Where each group begins in `order`; the last entry is n.

    Returns
    -------
    aucs : ndarray of shape (groups,)
        NaN where a class is absent or has no positive weight.
    mass : ndarray of shape (groups,)
        Sum of the group's weights.
    """
    aucs: FloatArray
    mass: FloatArray
    aucs, mass = _count(labels, scores, weights, order, starts)
    return aucs, mass


@compiled
def _count(
    labels: BoolArray, scores: FloatArray, weights: FloatArray, order: IntArray, starts: IntArray
) -> tuple[FloatArray, FloatArray]:
    num_groups = len(starts) - 1
    aucs = np.full(num_groups, np.nan)
    mass = np.zeros(num_groups)
    for group in range(num_groups):
        wins = 0.0
        positive = 0.0
        negative = 0.0
        at = starts[group]
        end = starts[group + 1]
        while at < end:
            score = scores[order[at]]
            tied_positive = 0.0
            tied_negative = 0.0
            while at < end and scores[order[at]] == score:
                row = order[at]
                if labels[row]:
                    tied_positive += weights[row]
                else:
                    tied_negative += weights[row]
                at += 1
            wins += tied_positive * (negative + 0.5 * tied_negative)
            positive += tied_positive
            negative += tied_negative
        mass[group] = positive + negative
        if positive > 0 and negative > 0:
            aucs[group] = wins / positive / negative
    return aucs, mass


def replicate_aucs(
    labels: BoolArray,
    weights: FloatArray,
    units: IntArray,
    *,
    last_of_tie: BoolArray,
    counts: FloatArray,
) -> FloatArray:
    """Compute the AUC of every replicate of a bootstrap in one pass over sorted rows each.

    Parameters
    ----------
    labels, weights : ndarray of shape (n,)
        In the order of ascending score.
    units : ndarray of int64, shape (n,)
        The unit that each row is drawn with, a column of `counts`; same order.
    last_of_tie : ndarray of bool, shape (n,)
        Whether the next row has a higher score; True for the last.
    counts : ndarray of shape (replicates, units)
        How often each unit was drawn.

    Returns
    -------
    ndarray of shape (replicates,)
        NaN where a replicate lacks a class.
    """
    found: FloatArray
    found = _recount(labels, weights, units, last_of_tie, counts)
    return found


@compiled
def _recount(
    labels: BoolArray,
    weights: FloatArray,
    units: IntArray,
    last_of_tie: BoolArray,
    counts: FloatArray,
) -> FloatArray:
    found = np.full(len(counts), np.nan)
    for replicate in range(len(counts)):
        drawn = counts[replicate]
        wins = 0.0
        positive = 0.0
        negative = 0.0
        tied_positive = 0.0
        tied_negative = 0.0
        for row in range(len(labels)):
            mass = drawn[units[row]] * weights[row]
            if labels[row]:
                tied_positive += mass
            else:
                tied_negative += mass
            if last_of_tie[row]:
                wins += tied_positive * (negative + 0.5 * tied_negative)
                positive += tied_positive
                negative += tied_negative
                tied_positive = 0.0
                tied_negative = 0.0
        if positive > 0 and negative > 0:
            found[replicate] = wins / positive / negative
    return found
