"""Drawing users again: counts of a multinomial bootstrap, and what replicates say of a metric."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from recsys_mtl.metrics.checks import FloatArray

_BLOCK_NUMBERS = 1 << 17  # counts that stay in a core's cache while all metrics read them


@dataclass(frozen=True)
class Resampling:
    """A bootstrap over users: as many are drawn, with replacement, as there are.

    Parameters
    ----------
    replicates : int, default=1000
        How often; 1 or more. Bounds are good to about a tenth of their distance at 1,000.
    seed : int, default=0
        The same seed draws the same users.
    level : float, default=0.95
        Probability of the intervals, between 0 and 1.

    Raises
    ------
    ValueError
        A number is out of its range.
    """

    replicates: int = 1000
    seed: int = 0
    level: float = 0.95

    def __post_init__(self) -> None:
        if self.replicates < 1:
            raise ValueError(f"replicates must be 1 or more; found {self.replicates}")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1; found {self.level}")


class Statistic(Protocol):
    """A metric as a function of how often each unit was drawn."""

    def values(self, counts: FloatArray) -> FloatArray:
        """Return the metric of every replicate (R,) from `counts` (R, units); NaN if undefined."""
        ...


def draws(num_units: int, resampling: Resampling) -> Iterator[FloatArray]:
    """Yield counts (some replicates, units), each row summing to the number of units."""
    rng = np.random.default_rng(resampling.seed)
    block = max(1, _BLOCK_NUMBERS // max(num_units, 1))
    for start in range(0, resampling.replicates, block):
        size = min(block, resampling.replicates - start)
        if not num_units:
            yield np.zeros((size, 0))
            continue
        drawn = rng.integers(num_units, size=(size, num_units))
        drawn += np.arange(size)[:, None] * num_units
        counts = np.bincount(drawn.ravel(), minlength=size * num_units)
        yield counts.reshape(size, num_units).astype(np.float64)


def replicate(
    statistics: Sequence[Statistic], num_units: int, resampling: Resampling
) -> FloatArray:
    """Return all statistics of the same draws, shape (replicates, statistics)."""
    if not statistics:
        return np.empty((resampling.replicates, 0))
    blocks = [
        np.stack([one.values(counts) for one in statistics], axis=1)
        for counts in draws(num_units, resampling)
    ]
    return np.concatenate(blocks)


def spread(
    value: float, replicates: FloatArray, level: float, *, shifted: bool = False
) -> tuple[float, float]:
    """Return the bounds of a percentile interval.

    Parameters
    ----------
    value : float
        The metric on the rows themselves.
    replicates : ndarray of shape (R,)
        Those where the metric is undefined, such as an AUC of one class, are left out.
    level : float
        Probability of the interval.
    shifted : bool, default=False
        Whether to move the interval by the mean excess of the replicates over the value. An ECE is
        biased upward by noise, and a replicate has that noise twice.

    Returns
    -------
    low, high : float
        NaN where the value is, or more than half of the replicates are.
    """
    known = replicates[~np.isnan(replicates)]
    if math.isnan(value) or 2 * len(known) <= len(replicates):
        return math.nan, math.nan
    tail = (1 - level) / 2
    excess = float(known.mean()) - value if shifted else 0.0
    low, high = (np.quantile(known, [tail, 1 - tail]) - excess).tolist()
    return low, high
