"""Do the probabilities mean what they say: mean score over mean label, and by bin."""

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.checks import binary_columns, check_probabilities
from recsys_mtl.metrics.warn import nothing_counts, undefined


def pcoc(labels: ArrayLike, scores: ArrayLike, *, weights: ArrayLike | None = None) -> float:
    """Compute predicted over observed: mean score / mean label (inverse: COPC).

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    scores : array_like of shape (n,)
        Probabilities, or expected counts.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        1 is best; above 1 the scores are too high. NaN, with a `MetricWarning`, where no row is
        positive.

    Raises
    ------
    ValueError
        Lengths differ, a label is not 0 or 1, a score is not finite, a weight is below 0.

    References
    ----------
    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", ADKDD 2014,
    section 2 ("calibration").

    Examples
    --------
    >>> pcoc([0, 1], [0.5, 0.25])
    0.75
    """
    truth, numbers, mass = binary_columns(labels, scores, weights)
    if not mass.any():
        return undefined(f"pcoc is undefined: {nothing_counts(len(truth))}")
    observed = (mass * truth).sum()
    if not observed:
        return undefined(f"pcoc is undefined: none of {len(truth)} rows is positive")
    return float((mass * numbers).sum() / observed)


def ece(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    num_bins: int = 15,
    weights: ArrayLike | None = None,
) -> float:
    """Compute the expected calibration error over bins of equal mass.

    The mean over rows of |mean probability - mean label| of the row's bin. A run of equal
    probabilities is never split: it falls whole into the bin of its middle, so the result does not
    depend on the order of rows.

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    probabilities : array_like of shape (n,)
        Probability of label 1, in [0, 1].
    num_bins : int, default=15
        Number of bins, 1 or more; each holds about 1 / num_bins of the total weight.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.

    Returns
    -------
    float
        In [0, 1], 0 is best; NaN, with a `MetricWarning`, where there is nothing to average.

    Raises
    ------
    ValueError
        Lengths differ, a value is out of its range, or `num_bins` is below 1.

    References
    ----------
    Naeini, Cooper & Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning",
    AAAI 2015. Nixon et al., "Measuring Calibration in Deep Learning", CVPR workshops 2019.
    DIFF: Naeini's bins have equal width; on rare events that puts nearly all rows into the first.

    Examples
    --------
    >>> round(ece([0, 0, 0, 1, 1, 1], [0.1, 0.1, 0.1, 0.1, 0.8, 0.8], num_bins=2), 7)
    0.1666667
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be 1 or more; found {num_bins}")
    truth, _, mass = binary_columns(labels, probabilities, weights)
    chance = check_probabilities(probabilities)
    if not mass.any():
        return undefined(f"ece is undefined: {nothing_counts(len(truth))}")
    order = np.argsort(chance)
    ascending = chance[order]
    starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])
    run_mass = np.add.reduceat(mass[order], starts)
    run_gap = np.add.reduceat((mass * (chance - truth))[order], starts)
    middle = np.cumsum(run_mass) - run_mass / 2
    bins = np.minimum(num_bins * middle / run_mass.sum(), num_bins - 1).astype(np.int64)
    return float(np.abs(np.bincount(bins, weights=run_gap)).sum() / run_mass.sum())
