"""Do the probabilities mean what they say: mean score over mean label, and by bin."""

import numpy as np
from numpy.typing import ArrayLike

from recsys_mtl.metrics.checks import FloatArray, IntArray, binary_columns, check_probabilities
from recsys_mtl.metrics.warn import nothing_counts, undefined

PCOC_BAND = (0.9, 1.1)
"""Well calibrated on the whole: scores are within a tenth of the labels."""
ECE_SHARE = 0.1
"""Well calibrated by bin: the mean gap is within a tenth of the mean label."""


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
    bins = bins_of_equal_mass(chance, mass, num_bins)
    gaps = np.bincount(bins, weights=mass * (chance - truth))
    return float(np.abs(gaps).sum() / mass.sum())


def bins_of_equal_mass(chance: FloatArray, mass: FloatArray, num_bins: int) -> IntArray:
    """Return each row's bin (n,), from 0; runs of equal probabilities stay together."""
    if not len(chance):
        return np.zeros(0, np.int64)
    order = np.argsort(chance)
    ascending = chance[order]
    is_first = np.r_[True, ascending[1:] != ascending[:-1]]
    run_mass = np.add.reduceat(mass[order], np.flatnonzero(is_first))
    middle = np.cumsum(run_mass) - run_mass / 2
    total = max(float(run_mass.sum()), np.finfo(np.float64).tiny)
    of_run = np.minimum(num_bins * middle / total, num_bins - 1).astype(np.int64)
    bins = np.empty(len(chance), np.int64)
    bins[order] = of_run[np.cumsum(is_first) - 1]
    return bins


def miscalibration(
    labels: ArrayLike, probabilities: ArrayLike, *, weights: ArrayLike | None = None
) -> str:
    """Say in words how a binary task's probabilities are off; empty where they are not.

    They are off where PCOC leaves 0.9 .. 1.1 or ECE exceeds a tenth of the mean label, each by more
    than noise would do in 1 of 40 samples of independent rows if the probabilities were true: the sum
    of weight * (probability - label) has the variance that the probabilities say, in every bin.

    Parameters
    ----------
    labels, probabilities, weights
        As in `ece`.

    Returns
    -------
    str
        Such as ``"pcoc 1.42 is outside 0.9 .. 1.1"``.
    """
    truth, _, mass = binary_columns(labels, probabilities, weights)
    chance = check_probabilities(probabilities)
    observed, total = float((mass * truth).sum()), float(mass.sum())
    if not observed:
        return ""
    noise = mass**2 * chance * (1 - chance)
    gap = float((mass * (chance - truth)).sum())
    found = 1 + gap / observed
    low, high = PCOC_BAND
    if not low <= found <= high and abs(gap) > 2 * float(noise.sum()) ** 0.5:
        return f"pcoc {found:.2f} is outside {low} .. {high}"
    bins = bins_of_equal_mass(chance, mass, 15)
    error = float(np.abs(np.bincount(bins, weights=mass * (chance - truth))).sum()) / total
    deviations = np.sqrt(np.bincount(bins, weights=noise)) / total
    # |gap| of a bin is half-normal: mean sqrt(2 / pi), variance 1 - 2 / pi of the gap's own
    by_chance = (2 / np.pi) ** 0.5 * deviations.sum()
    by_chance += 2 * ((1 - 2 / np.pi) * (deviations**2).sum()) ** 0.5
    allowed = ECE_SHARE * observed / total
    if error > max(allowed, by_chance):
        return f"ece {error:.4f} is above {allowed:.4f}, a tenth of the mean label"
    return ""
