"""Metrics of a regression task."""

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.checks import (
    FloatArray,
    check_finite,
    check_lengths,
    check_weights,
    weighted_mean,
)
from recsys_mtl.metrics.warn import nothing_counts, undefined


def rmse(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the root of the mean squared error, in the label's unit.

    Parameters
    ----------
    labels, scores : array_like of shape (n,)
        Finite numbers.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        0 or more; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, a value is not finite, or a weight is below 0.

    Examples
    --------
    >>> rmse([1.0, 5.0], [4.0, 1.0])
    3.5355339059327378
    """
    truth, numbers, mass = _columns(labels, scores, weights)
    if not mass.any():
        return undefined(f"rmse is undefined: {nothing_counts(len(truth))}")
    return float(np.sqrt(weighted_mean((numbers - truth) ** 2, mass)))


def mae(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the mean absolute error, in the label's unit.

    Parameters
    ----------
    labels, scores : array_like of shape (n,)
        Finite numbers.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        0 or more; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, a value is not finite, or a weight is below 0.

    Examples
    --------
    >>> mae([1.0, 5.0], [4.0, 1.0])
    3.5
    """
    truth, numbers, mass = _columns(labels, scores, weights)
    if not mass.any():
        return undefined(f"mae is undefined: {nothing_counts(len(truth))}")
    return weighted_mean(np.abs(numbers - truth), mass)


def r2(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute the share of the labels' variance that the scores explain.

    Parameters
    ----------
    labels, scores : array_like of shape (n,)
        Finite numbers.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        At most 1; 0 for the mean label as score. NaN, with a `MetricWarning`, where all labels are
        equal or there are none. (scikit-learn gives 1 or 0 for equal labels.)

    Raises
    ------
    ValueError
        Lengths differ, a value is not finite, or a weight is below 0.

    Examples
    --------
    >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
    0.5
    """
    truth, numbers, mass = _columns(labels, scores, weights)
    counted = truth[mass > 0]
    if not len(counted):
        return undefined(f"r2 is undefined: {nothing_counts(len(truth))}")
    if counted.min() == counted.max():
        return undefined(f"r2 is undefined: all {len(counted)} labels are {counted[0]}")
    spread = weighted_mean((truth - weighted_mean(truth, mass)) ** 2, mass)
    return 1 - weighted_mean((numbers - truth) ** 2, mass) / spread


def _columns(
    labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    truth = check_finite("labels", labels)
    numbers = check_finite("scores", scores)
    check_lengths({"labels": len(truth), "scores": len(numbers)})
    return truth, numbers, check_weights(weights, len(truth))
