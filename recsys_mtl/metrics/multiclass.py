"""Metrics of a multiclass task."""

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.checks import (
    FloatArray,
    IntArray,
    check_classes,
    check_finite,
    check_lengths,
    check_probabilities,
    check_weights,
    weighted_mean,
)
from recsys_mtl.metrics.warn import nothing_counts, undefined

_EPS = float(np.finfo(np.float64).eps)


def multiclass_accuracy(
    labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Compute the share of rows whose highest score is at the label.

    Parameters
    ----------
    labels : array_like of shape (n,)
        Whole numbers from 0 to C - 1.
    scores : array_like of shape (n, C)
        Any finite numbers; the first of equal highest scores is the one told.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

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
    >>> multiclass_accuracy([0, 2], [[0.6, 0.3, 0.1], [0.5, 0.3, 0.2]])
    0.5
    """
    numbers = check_finite("scores", scores, ndim=2)
    truth, mass = _labels_and_weights(labels, numbers, weights)
    if not mass.any():
        return undefined(f"accuracy is undefined: {nothing_counts(len(truth))}")
    return weighted_mean(numbers.argmax(axis=1) == truth, mass)


def multiclass_log_loss(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> float:
    """Compute the mean negative log likelihood of the labels, in nats.

    Computed in float64 whatever the input's type, with probabilities clipped from below at
    float64's eps, 2.2e-16: a label given probability 0 costs 36.04, not infinity.

    Parameters
    ----------
    labels : array_like of shape (n,)
        Whole numbers from 0 to C - 1.
    probabilities : array_like of shape (n, C)
        Rows sum to 1.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        0 or more; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, a value is out of its range, or a row does not sum to 1.

    Examples
    --------
    >>> round(multiclass_log_loss([0, 1], [[0.5, 0.5], [0.5, 0.5]]), 6)
    0.693147
    """
    chance = check_probabilities(probabilities, ndim=2)
    truth, mass = _labels_and_weights(labels, chance, weights)
    if not mass.any():
        return undefined(f"log_loss is undefined: {nothing_counts(len(truth))}")
    of_label = chance[np.arange(len(truth)), truth]
    return weighted_mean(-np.log(np.clip(of_label, _EPS, 1)), mass)


def _labels_and_weights(
    labels: ArrayLike, scores: FloatArray, weights: ArrayLike | None
) -> tuple[IntArray, FloatArray]:
    truth = check_classes(labels, scores.shape[1])
    check_lengths({"labels": len(truth), "scores": len(scores)})
    return truth, check_weights(weights, len(truth))
