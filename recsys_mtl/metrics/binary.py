"""Metrics of a binary task: ranking, likelihood, decisions."""

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.auc_kernel import group_aucs
from recsys_mtl.metrics.checks import (
    BoolArray,
    FloatArray,
    binary_columns,
    check_probabilities,
    weighted_mean,
)
from recsys_mtl.metrics.warn import nothing_counts, undefined

_EPS = float(np.finfo(np.float64).eps)


def auc(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the probability that a positive outranks a negative, a tie counting one half.

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    scores : array_like of shape (n,)
        Any finite numbers, higher for a likelier positive; compared in float64.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        In [0, 1]; NaN, with a `MetricWarning`, where one class is absent.

    Raises
    ------
    ValueError
        Lengths differ, a label is not 0 or 1, a score is not finite, a weight is below 0.

    References
    ----------
    Hanley & McNeil, "The Meaning and Use of the Area under a Receiver Operating Characteristic
    (ROC) Curve", Radiology 143(1), 1982.

    Examples
    --------
    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8])
    0.875
    """
    truth, numbers, mass = binary_columns(labels, scores, weights)
    absent = _absent_class(truth, mass)
    if absent:
        return undefined(f"auc is undefined: {absent}")
    aucs, _ = group_aucs(
        truth,
        numbers,
        mass,
        order=np.argsort(numbers).astype(np.int64, copy=False),
        starts=np.array([0, len(truth)], dtype=np.int64),
    )
    return float(aucs[0])


def log_loss(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Compute the mean negative log likelihood of the labels, in nats.

    Computed in float64 whatever the input's type. Probabilities are clipped to [eps, 1 - eps] with
    eps = 2.2e-16, so a float32 probability of exactly 0 or 1 that is wrong costs 36.04, not
    infinity. (scikit-learn clips float32 input at float32's eps: a wrong one costs 15.9 there.)

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    probabilities : array_like of shape (n,)
        Probability of label 1, in [0, 1].
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        0 or more; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, or a value is out of its range.

    Examples
    --------
    >>> round(log_loss([0, 1], [0.5, 0.5]), 6)
    0.693147
    """
    truth, _, mass = binary_columns(labels, probabilities, weights)
    chance = check_probabilities(probabilities)
    if not mass.any():
        return undefined(f"log_loss is undefined: {nothing_counts(len(truth))}")
    clipped = np.clip(chance, _EPS, 1 - _EPS)
    return weighted_mean(-np.log(np.where(truth, clipped, 1 - clipped)), mass)


def accuracy(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    threshold: float = 0.5,
) -> float:
    """Compute the share of rows whose label is told rightly by a threshold on the score.

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    scores : array_like of shape (n,)
        Probabilities, or any scores with a threshold to match.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.
    threshold : float, default=0.5
        A score at or above it says 1.

    Returns
    -------
    float
        In [0, 1]; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, or a value is out of its range.

    Examples
    --------
    >>> accuracy([0, 1, 1], [0.2, 0.5, 0.4])
    0.6666666666666666
    """
    truth, numbers, mass = binary_columns(labels, scores, weights)
    if not mass.any():
        return undefined(f"accuracy is undefined: {nothing_counts(len(truth))}")
    return weighted_mean((numbers >= threshold) == truth, mass)


def _absent_class(labels: BoolArray, weights: FloatArray) -> str:
    """Say which class has no row of positive weight; empty where both have one."""
    counted = labels[weights > 0]
    if not len(counted):
        return nothing_counts(len(labels))
    num_positive = int(counted.sum())
    if 0 < num_positive < len(counted):
        return ""
    which = "rows" if len(counted) == len(labels) else "rows of positive weight"
    return f"all {len(counted)} {which} have label {int(num_positive > 0)}"
