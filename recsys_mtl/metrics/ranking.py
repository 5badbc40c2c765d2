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
from recsys_mtl.metrics.rank_kernel import rank_groups
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
    order, starts = sorted_groups(codes, numbers)
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
    return _mean_over_groups("ndcg", ranked_lists(relevances, scores, groups, k=k).ndcg)


def recall(labels: ArrayLike, scores: ArrayLike, groups: Groups, *, k: int) -> float:
    """Compute the share of a group's relevant rows among its first k, averaged over groups.

    Parameters
    ----------
    labels : array_like of shape (n,)
        A row is relevant where its label is above 0.
    scores, groups : as in `ndcg`
        Rows of equal scores stand in random order: the value is the mean over all their orders.
    k : int
        Ranks that count. A group with more relevant rows than k stays below 1.

    Returns
    -------
    float
        In 0 .. 1. Groups without a relevant row are left out; NaN with a `MetricWarning` where
        none has one.

    Examples
    --------
    >>> recall([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.4], ["ann", "ann", "bob", "bob"], k=1)
    0.5
    """
    return _mean_over_groups("recall", ranked_lists(labels, scores, groups, k=k).recall)


def mrr(labels: ArrayLike, scores: ArrayLike, groups: Groups) -> float:
    """Compute the reciprocal rank of a group's first relevant row, averaged over groups.

    Parameters
    ----------
    labels, scores, groups : as in `recall`
        Ties likewise.

    Returns
    -------
    float
        In 0 .. 1, of all ranks. Groups without a relevant row are left out; NaN with a
        `MetricWarning` where none has one.

    Examples
    --------
    >>> mrr([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.4], ["ann", "ann", "bob", "bob"])
    0.75
    """
    return _mean_over_groups("mrr", ranked_lists(labels, scores, groups).mrr)


@dataclass(frozen=True)
class RankedLists:
    """What each group's ranked list is worth.

    Parameters
    ----------
    codes : ndarray of int64, shape (groups,)
        The groups, ascending: their ids if those are integers, else the row each first stands in.
    ndcg, recall, mrr : ndarray of shape (groups,)
        In 0 .. 1; NaN for a group without a relevant row.
    """

    codes: IntArray
    ndcg: FloatArray
    recall: FloatArray
    mrr: FloatArray


def ranked_lists(
    relevances: ArrayLike, scores: ArrayLike, groups: Groups, *, k: int | None = None
) -> RankedLists:
    """Measure the ranked list of each group, such as a user; the arguments are those of `ndcg`.

    Examples
    --------
    >>> ranked_lists([0, 1, 1, 0], [0.1, 0.9, 0.2, 0.4], [7, 7, 8, 8], k=1).recall
    array([1., 0.])
    """
    gains = check_finite("relevances", relevances)
    numbers = check_finite("scores", scores)
    codes = _group_codes(group_series(groups))
    check_lengths({"relevances": len(gains), "scores": len(numbers), "groups": len(codes)})
    if (gains < 0).any():
        raise ValueError(f"relevances must be 0 or more; found {gains.min()}")
    if k is not None and k < 1:
        raise ValueError(f"k must be 1 or more; found {k}")
    depth = max(len(gains), 1) if k is None else k
    order, starts = sorted_groups(codes, -numbers)
    found, hits, reciprocal = rank_groups(gains, numbers, order=order, starts=starts, k=depth)
    ideal, _ = sorted_groups(codes, -gains)
    best, _, _ = rank_groups(gains, gains, order=ideal, starts=starts, k=depth)
    relevant = np.diff(np.r_[0, np.cumsum(gains[order] > 0)][starts])
    none = np.where(relevant > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore"):
        return RankedLists(
            codes=codes[order][starts[:-1]],
            ndcg=found / best * none,
            recall=hits / relevant * none,
            mrr=reciprocal * none,
        )


def sorted_groups(codes: IntArray, numbers: FloatArray) -> tuple[IntArray, IntArray]:
    """Sort rows by group and then by number; return the order (n,) and the starts (groups + 1,)."""
    order = np.lexsort((numbers, codes)).astype(np.int64, copy=False)
    ascending = codes[order]
    is_start = np.r_[True, ascending[1:] != ascending[:-1], True]
    starts = np.flatnonzero(is_start if len(codes) else is_start[:1]).astype(np.int64, copy=False)
    return order, starts


def unit_codes(series: pl.Series) -> tuple[IntArray, int]:
    """Return the number of each row's group (n,), from 0, and how many groups there are."""
    _, codes = np.unique(_group_codes(series), return_inverse=True)
    return codes.astype(np.int64, copy=False), int(codes.max(initial=-1)) + 1


def _mean_over_groups(metric: str, values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    if len(known):
        return float(known.mean())
    if not len(values):
        return undefined(f"{metric} is undefined: {nothing_counts(0)}", inside=1)
    reason = f"{metric} is undefined: none of {len(values)} groups has any relevance"
    return undefined(reason, inside=1)


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
