"""Rows cut by the values of a column."""

from typing import Any

import numpy as np
import polars as pl

from recsys_mtl.metrics.checks import IntArray

MOST_SLICES = 20
_NUM_QUANTILES = 5


def slices_of(column: pl.Series) -> tuple[IntArray, list[str]]:
    """Cut rows by a column of any type that has an order and an equality.

    Parameters
    ----------
    column : polars.Series of length n
        Numbers of more than 20 values are cut at their quintiles. Of more than 20 other values, the
        most frequent 20 are slices and all others one.

    Returns
    -------
    slices : ndarray of int64, shape (n,)
        Number of each row's slice.
    names : list of str
        Names of the slices, in order of their values, or of falling frequency; rows without a value come last, as ``(null)``.

    Raises
    ------
    ValueError
        The column is nested or holds objects.

    Examples
    --------
    >>> slices_of(pl.Series("tab", [2, 1, None, 2]))
    (array([1, 0, 2, 1]), ['1', '2', '(null)'])
    """
    if column.dtype.is_nested() or column.dtype == pl.Object:
        raise ValueError(
            f"Slices must be by a column of plain values; '{column.name}' is {column.dtype}. "
            "Derive a column of numbers or strings from it"
        )
    plain = column.fill_nan(None) if column.dtype.is_float() else column
    values = plain.drop_nulls().unique().sort()
    if len(values) > MOST_SLICES and column.dtype.is_numeric():
        places, names = _quantiles(plain)
    else:
        kept = values if len(values) <= MOST_SLICES else _most_frequent(plain)
        names = kept.cast(pl.String).to_list()
        numbers = pl.Series(range(len(kept)), dtype=pl.Int64)
        found = plain.replace_strict(kept, numbers, default=len(kept), return_dtype=pl.Int64)
        places = found.to_numpy().astype(np.int64)
        if len(kept) < len(values):
            names.append("(others)")
    if plain.null_count():
        places = np.where(plain.is_null().to_numpy(), len(names), places)
        names.append("(null)")
    return places, names


def _quantiles(column: pl.Series) -> tuple[IntArray, list[str]]:
    numbers = column.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    known = numbers[~np.isnan(numbers)]
    inner = np.unique(np.quantile(known, np.arange(1, _NUM_QUANTILES) / _NUM_QUANTILES))
    cut = np.searchsorted(inner, numbers, side="left")
    used, places = np.unique(np.where(np.isnan(numbers), 0, cut), return_inverse=True)
    parts = [column.filter(pl.Series((cut == number) & ~np.isnan(numbers))) for number in used]
    bounds: list[tuple[Any, Any]] = [(part.min(), part.max()) for part in parts]
    names = [f"{low:g} .. {high:g}" for low, high in bounds]
    if len(set(names)) < len(names):
        names = [f"{low} .. {high}" for low, high in bounds]
    return places.astype(np.int64), names


def _most_frequent(column: pl.Series) -> pl.Series:
    counts = column.drop_nulls().alias("value").value_counts()
    return counts.sort(["count", "value"], descending=[True, False])["value"].head(MOST_SLICES)
