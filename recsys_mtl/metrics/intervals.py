"""How sure a metric is: DeLong's interval of an AUC, and bootstraps over users for all others."""

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.checks import (
    BoolArray,
    FloatArray,
    IntArray,
    binary_columns,
    check_lengths,
)
from recsys_mtl.metrics.ranking import Groups, group_series, unit_codes
from recsys_mtl.metrics.resampling import Resampling, replicate, spread
from recsys_mtl.metrics.statistics import Rows, TaskKind, statistic_of


class Interval(NamedTuple):
    """A value and the range that holds its expectation with the level's probability.

    Parameters
    ----------
    value : float
        The metric; NaN where it is undefined, and then so are both bounds.
    low, high : float
        NaN also where the rows are too few to tell: one user, one row of a class.
    """

    value: float
    low: float
    high: float


def auc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Groups | None = None,
    *,
    weights: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """Compute an AUC and its confidence interval in one sort, without resampling.

    The variance is that of the rows' structural components: how large a part of the other class each
    row is on the right side of. With `groups`, the components of a user's rows are summed first, since
    they are not independent. The interval is normal on the logit scale, so it stays within 0 .. 1; of
    a perfect order (AUC 0 or 1) the variance, and with it the width, is 0.

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    scores : array_like of shape (n,)
        Any finite numbers.
    groups : array_like or polars.Series or pyarrow array of shape (n,), optional
        Rows of one group, often the user, are drawn together. Default: every row on its own.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.
    level : float, default=0.95
        Probability that the interval holds the AUC of the population.

    Returns
    -------
    Interval
        NaN where a class has no row; bounds are NaN where all rows of a class are in one group.

    Raises
    ------
    ValueError
        Lengths differ, or a value is out of its range.

    References
    ----------
    DeLong, DeLong & Clarke-Pearson, "Comparing the Areas under Two or More Correlated Receiver
    Operating Characteristic Curves", Biometrics 44(3), 1988. Sun & Xu, "Fast Implementation of
    DeLong's Algorithm", IEEE Signal Processing Letters 21(11), 2014. With groups: Obuchowski,
    "Nonparametric Analysis of Clustered ROC Curve Data", Biometrics 53(2), 1997.

    Examples
    --------
    >>> found = auc_interval([0, 0, 0, 1, 1, 1], [0.1, 0.3, 0.4, 0.2, 0.6, 0.8])
    >>> [round(number, 3) for number in found]
    [0.778, 0.173, 0.983]
    """
    truth, numbers, mass = binary_columns(labels, scores, weights)
    value, influence = auc_influence(truth, numbers, mass)
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    codes, num_units = np.arange(len(truth), dtype=np.int64), len(truth)
    if groups is not None:
        codes, num_units = unit_codes(group_series(groups))
        check_lengths({"labels": len(truth), "groups": len(codes)})
    variance = _variance(codes, num_units, truth, mass, influence)
    return _logit_interval(value, variance, level)


def auc_influence(
    labels: BoolArray, scores: FloatArray, weights: FloatArray
) -> tuple[float, FloatArray]:
    """Return the AUC and how much each row moves it, shape (n,), in the rows' order.

    A row's influence is weight * (placement - AUC) / weight of its class, where its placement is the
    share of the other class that it is on the right side of, ties counting one half.
    """
    positive, negative = weights * labels, weights * ~labels
    total_positive, total_negative = positive.sum(), negative.sum()
    if not (total_positive > 0 and total_negative > 0):
        return math.nan, np.zeros(len(labels))
    order = np.argsort(scores)
    ascending = scores[order]
    is_first = np.r_[True, ascending[1:] != ascending[:-1]]
    starts, run = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    run_positive = np.add.reduceat(positive[order], starts)
    run_negative = np.add.reduceat(negative[order], starts)
    below = (np.cumsum(run_negative) - run_negative / 2) / total_negative
    above = 1 - (np.cumsum(run_positive) - run_positive / 2) / total_positive
    placement = np.empty(len(labels))
    placement[order] = np.where(labels[order], below[run], above[run])
    value = float((positive * placement).sum() / total_positive)
    share = np.where(labels, positive / total_positive, negative / total_negative)
    return value, share * (placement - value)


def bootstrap_interval(
    metric: str,
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Groups | None = None,
    *,
    kind: TaskKind = "binary",
    weights: ArrayLike | None = None,
    resampling: Resampling | None = None,
) -> Interval:
    """Compute a metric and its interval by drawing users, with all their rows, again and again.

    Parameters
    ----------
    metric : str
        A metric of the kind: "auc", "gauc", "log_loss", "accuracy", "pcoc", "ece", "ndcg@10",
        "recall@10", "mrr"; "rmse", "mae"; those that look within users need `groups`.
    labels, scores : array_like of shape (n,)
        As the metric itself takes them.
    groups : array_like or polars.Series or pyarrow array of shape (n,), optional
        The user of each row. Default: every row is drawn on its own.
    kind : {"binary", "regression", "multiclass"}, default="binary"
        Kind of the task.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.
    resampling : Resampling, optional
        Replicates, seed and level. Default: 1,000 at 95 %.

    Returns
    -------
    Interval
        The value is the metric's own.

    Raises
    ------
    ValueError
        Lengths differ, a value is out of its range, or the metric is none of the kind's.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Field & Welsh,
    "Bootstrapping Clustered Data", JRSS B 69(3), 2007.

    Examples
    --------
    >>> found = bootstrap_interval("rmse", [1, 2, 3, 4], [1, 2, 3, 2], kind="regression")
    >>> [round(number, 3) for number in found]
    [1.0, 0.0, 1.732]
    """
    plan = resampling or Resampling()
    truth = np.asarray(labels)
    if groups is None:
        codes, num_units = np.arange(len(truth), dtype=np.int64), len(truth)
    else:
        codes, num_units = unit_codes(group_series(groups))
    rows = Rows(
        truth,
        np.asarray(scores),
        None if weights is None else np.asarray(weights),
        codes,
        num_units,
        grouped=groups is not None,
    )
    found = statistic_of(metric, kind, rows)
    value = float(found.values(np.ones((1, num_units)))[0])
    return bounded(metric, value, replicate([found], num_units, plan)[:, 0], num_units, plan)


def bounded(
    metric: str, value: float, replicates: FloatArray, num_units: int, resampling: Resampling
) -> Interval:
    """Return the value with the bounds that its replicates (R,) give; NaN for a single unit."""
    if num_units < 2:
        return Interval(value, math.nan, math.nan)
    low, high = spread(value, replicates, resampling.level, shifted=metric == "ece")
    return Interval(value, max(low, 0.0), high) if metric == "ece" else Interval(value, low, high)


def _variance(
    codes: IntArray,
    num_units: int,
    labels: BoolArray,
    weights: FloatArray,
    influence: FloatArray,
) -> float:
    """Return the variance of an AUC whose rows are drawn by unit; NaN where a class has one unit."""
    sums, factors = [], []
    for members in (labels & (weights > 0), ~labels & (weights > 0)):
        used = int((np.bincount(codes[members], minlength=num_units) > 0).sum())
        if used < 2:
            return math.nan
        sums.append(np.bincount(codes, weights=influence * members, minlength=num_units))
        factors.append(used / (used - 1))
    used = int((np.bincount(codes[weights > 0], minlength=num_units) > 0).sum())
    own = sum(factor * float(one @ one) for factor, one in zip(factors, sums, strict=True))
    return max(0.0, own + 2 * used / (used - 1) * float(sums[0] @ sums[1]))


def _logit_interval(value: float, variance: float, level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; found {level}")
    if math.isnan(variance):
        return Interval(value, math.nan, math.nan)
    inside = value * (1 - value)
    if inside <= 0 or variance == 0:
        return Interval(value, value, value)
    width = NormalDist().inv_cdf(0.5 + level / 2) * math.sqrt(variance) / inside
    center = math.log(value / (1 - value))
    low, high = (1 / (1 + math.exp(-(center + side))) for side in (-width, width))
    return Interval(value, low, high)
