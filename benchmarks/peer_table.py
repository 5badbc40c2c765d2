"""The table that training is compared on: latent factors behind it, so that the best AUC is known.

Columns are those of `benchmarks.table`. A value of a column has factors; a row's factors are the sum of
its values', and two of the columns also have to agree with each other. The labels are drawn with
probabilities that are kept in ``oracle_...`` columns: no model can beat them in expectation.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from benchmarks.table import NUM_DENSE, SIZES

NUM_FACTORS = 4
SPREAD = 1.6  # standard deviation of the logits: oracle AUCs of about 0.82 and 0.84
AGREEING = (12, 14)  # id columns of 10,000 and 20,000 values, as users and items
RELATED = 0.7  # cosine between the directions of interest and click
INTEREST_RATE, CLICK_RATE = 0.3, 0.1

Floats = npt.NDArray[np.float64]


def impressions(num_rows: int, *, seed: int = 0) -> pl.DataFrame:
    """Draw rows with three labels: ``interest``, ``click``, and ``rating`` (1 to 5) where clicked.

    Parameters
    ----------
    num_rows
        Rows to draw.
    seed
        Seed of all draws.

    Returns
    -------
    polars.DataFrame
        20 id columns (every other one strings), 8 numbers, the labels and ``oracle_interest`` and
        ``oracle_click``.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, pl.Series] = {}
    factors = np.zeros((num_rows, NUM_FACTORS))
    agreeing = np.ones((num_rows, NUM_FACTORS))
    for place, size in enumerate(SIZES):
        ids = np.minimum((size ** rng.random(num_rows)).astype(np.int64), size) - 1
        of_values = rng.normal(size=(size, NUM_FACTORS)).astype(np.float32)
        factors += of_values[ids]
        if place in AGREEING:
            agreeing *= of_values[ids]
        series = pl.Series(ids)
        columns[f"id_{place}"] = series.cast(pl.String) if place % 2 else series
    numbers = rng.normal(size=(num_rows, NUM_DENSE)).astype(np.float32)
    columns |= {f"number_{place}": pl.Series(column) for place, column in enumerate(numbers.T)}
    shared = _scaled(agreeing.sum(axis=1)) + _scaled(np.sin(2 * numbers[:, :2]).sum(axis=1))
    first, second = np.linalg.qr(rng.normal(size=(NUM_FACTORS, 2)))[0].T
    other = RELATED * first + np.sqrt(1 - RELATED**2) * second
    linear = numbers @ rng.normal(size=(NUM_DENSE, 2))
    tastes = [
        _scaled(2 * _scaled(factors @ direction) + _scaled(linear[:, place]) + shared)
        for place, direction in enumerate((first, other))
    ]
    interest = _probabilities(SPREAD * tastes[0], INTEREST_RATE)
    click = _probabilities(SPREAD * tastes[1], CLICK_RATE)
    clicked = rng.random(num_rows) < click
    utility = 2.5 + 0.4 * (tastes[0] + tastes[1]) + 0.5 * rng.normal(size=num_rows)
    rating = np.where(clicked, np.rint(utility).clip(1, 5), np.nan).astype(np.float32)
    columns["interest"] = pl.Series((rng.random(num_rows) < interest).astype(np.int8))
    columns["click"] = pl.Series(clicked.astype(np.int8))
    columns["rating"] = pl.Series(rating, nan_to_null=True)
    columns |= {"oracle_interest": pl.Series(interest), "oracle_click": pl.Series(click)}
    return pl.DataFrame(columns)


def _scaled(values: Floats) -> Floats:
    return np.asarray((values - values.mean()) / values.std())


def _probabilities(logits: Floats, rate: float) -> Floats:
    """Return probabilities of that mean: the shift is found by bisection."""
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logits + middle).mean() < rate else (low, middle)
    return _sigmoid(logits + low)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))
