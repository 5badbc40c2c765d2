"""Metrics of order within a group: a user, a request, a session."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from recsys_mtl.metrics.auc_kernel import group_aucs
from recsys_mtl.metrics.checks import (
    FloatArray,
    IntArray,
    binary_columns,
    check_finite,
    check_lengths,
)
from recsys_mtl.metrics.warn import nothing_counts, undefined

Groups = pl.Series | ArrayLike | Sequence[Any]
"""A column of groups in any of the forms that `group_series` converts."""


@dataclass(frozen=True)
class GroupedAUC:
    """A grouped AUC and what it rests on.

    Parameters
    ----------
    value : float
        Mean of the groups' AUCs, weighted by their impressions; NaN if no group counts.
    groups_used : int
        Groups with both classes.
    groups_dropped : int
        Groups with one class only, which have no AUC.
    rows_used : int
        Rows in the groups used.
    """

    value: float
    groups_used: int
    groups_dropped: int
    rows_used: int


def gauc(
    labels: ArrayLike, scores: ArrayLike, groups: Groups, *, weights: ArrayLike | None = None
) -> GroupedAUC:
    """Compute the AUC within each group, averaged by the groups' impressions.

    Unlike AUC it says nothing of how well users are told apart, only of how well each one's
    candidates are ordered, which is what a ranker does.

    Parameters
    ----------
    labels : array_like of shape (n,)
        0 or 1.
    scores : array_like of shape (n,)
        Any finite numbers, comparable within a group.
    groups : array_like or polars.Series or pyarrow array of shape (n,)
        The group of each row, often the user: integers, strings, bytes or categories, no nulls;
        see `group_series`.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more; a group's impressions are then the sum of its weights.
        Default: 1 each.

    Returns
    -------
    GroupedAUC
        The value, and how many groups were used and dropped. NaN, with a `MetricWarning`, where no
        group has both classes.

    Raises
    ------
    ValueError
        Lengths differ, a label is not 0 or 1, a score is not finite, a weight is below 0, a group
        is null or a float.

    References
    ----------
    Zhu et al., "Optimized Cost per Click in Taobao Display Advertising", KDD 2017, section 4.

    Examples
    --------
    >>> gauc([0, 1, 1, 0, 1], [0.1, 0.9, 0.3, 0.4, 0.5], ["ann", "ann", "bob", "bob", "cy"])
    GroupedAUC(value=0.5, groups_used=2, groups_dropped=1, rows_used=4)
    """
    truth, numbers, mass = binary_columns(labels, scores, weights)
    codes = _group_codes(group_series(groups))
    check_lengths({"labels": len(truth), "groups": len(codes)})
    if not len(truth):
        return GroupedAUC(undefined(f"gauc is undefined: {nothing_counts(0)}"), 0, 0, 0)
    order = np.lexsort((numbers, codes)).astype(np.int64, copy=False)
    ascending = codes[order]
    is_start = np.r_[True, ascending[1:] != ascending[:-1], True]
    starts = np.flatnonzero(is_start).astype(np.int64, copy=False)
    aucs, group_mass = group_aucs(truth, numbers, mass, order=order, starts=starts)
    used = ~np.isnan(aucs)
    num_used = int(used.sum())
    if num_used:
        value = float(np.average(aucs[used], weights=group_mass[used]))
    else:
        value = undefined(f"gauc is undefined: none of {len(aucs)} groups has both classes")
    return GroupedAUC(
        value=value,
        groups_used=num_used,
        groups_dropped=len(aucs) - num_used,
        rows_used=int(np.diff(starts)[used].sum()),
    )


def ndcg(
    relevances: ArrayLike, scores: ArrayLike, groups: Groups, *, k: int | None = None
) -> float:
    """Compute the normalised discounted cumulative gain, averaged over groups.

    Parameters
    ----------
    relevances : array_like of shape (n,)
        Gains, 0 or more.
    scores : array_like of shape (n,)
        Any finite numbers, comparable within a group. Rows with equal scores share the mean discount of
        the ranks they hold, so their order in the table does not matter.
    groups : array_like or polars.Series or pyarrow array of shape (n,)
        The group of each row, often the user or the request; see `group_series`.
    k : int, optional
        Only the first k ranks count. Default: all.

    Returns
    -------
    float
        In 0 .. 1. Groups without any relevance have no NDCG and are left out; NaN with a
        `MetricWarning` where none has one.

    References
    ----------
    Jarvelin & Kekalainen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM TOIS 20(4), 2002.

    Examples
    --------
    >>> round(ndcg([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.4], ["ann", "ann", "bob", "bob"]), 4)
    0.8155
    """
    gains = check_finite("relevances", relevances)
    numbers = check_finite("scores", scores)
    codes = _group_codes(group_series(groups))
    check_lengths({"relevances": len(gains), "scores": len(numbers), "groups": len(codes)})
    if (gains < 0).any():
        raise ValueError(f"relevances must be 0 or more; found {gains.min()}")
    if k is not None and k < 1:
        raise ValueError(f"k must be 1 or more; found {k}")
    if not len(gains):
        return undefined(f"ndcg is undefined: {nothing_counts(0)}")
    found = _discounted_gains(gains, numbers, codes, k)
    best = _discounted_gains(gains, gains, codes, k)
    used = best > 0
    if not used.any():
        return undefined(f"ndcg is undefined: none of {len(best)} groups has any relevance")
    return float((found[used] / best[used]).mean())


def _discounted_gains(
    gains: FloatArray, scores: FloatArray, codes: IntArray, k: int | None
) -> FloatArray:
    """Return the discounted gain of each group, ordered by falling score."""
    order = np.lexsort((-scores, codes))
    group, score = codes[order], scores[order]
    rows = np.arange(len(order))
    first_of_group = np.r_[True, group[1:] != group[:-1]]
    rank = rows - np.maximum.accumulate(np.where(first_of_group, rows, 0))
    discount = 1 / np.log2(rank + 2)
    if k is not None:
        discount[rank >= k] = 0
    first_of_tie = first_of_group | np.r_[True, score[1:] != score[:-1]]
    ties = np.cumsum(first_of_tie) - 1
    shared = np.bincount(ties, weights=discount) / np.bincount(ties)
    summed = np.bincount(np.cumsum(first_of_group) - 1, weights=gains[order] * shared[ties])
    return summed.astype(np.float64, copy=False)


def group_series(groups: Groups) -> pl.Series:
    """Convert a column of groups to polars, the one conversion all metrics share.

    Parameters
    ----------
    groups : array_like or polars.Series or pyarrow array of shape (n,)
        polars, pandas, Arrow (plain, chunked, dictionary), NumPy (integers, strings, objects that
        are all strings or all integers), or a list.

    Returns
    -------
    polars.Series
        The groups, in order; the same memory where the type allows it.

    Raises
    ------
    ValueError
        The groups are of several types, floats, or nested.
    """
    values: Any = groups
    if isinstance(groups, np.ndarray) and groups.dtype == object:
        values = groups.tolist()
    try:
        series = pl.Series("groups", values)
    except TypeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"groups must be of one type: {reason}") from error
    if series.dtype.is_float() or series.dtype.is_nested() or series.dtype == pl.Object:
        raise ValueError(
            f"groups must be integers, strings, bytes or categories; found {series.dtype}. "
            "Ids lose digits as floats; cast the column at its source"
        )
    return series


def _group_codes(series: pl.Series) -> IntArray:
    """Give equal groups equal integers; integers serve as they are."""
    if series.null_count():
        raise ValueError(
            f"groups must not be null; found {series.null_count()} nulls among {len(series)} rows. "
            "Drop these rows or give them a group"
        )
    if series.dtype.is_integer():
        return series.to_numpy()
    numbered = series.to_frame().with_row_index("row")
    first_row = numbered.select(pl.col("row").first().over("groups"))
    return first_row.to_series().to_numpy()
