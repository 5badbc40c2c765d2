"""All metrics of one task, on the rows whose label is observed."""

import math
import warnings
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from recsys_mtl.metrics.binary import accuracy, auc, log_loss
from recsys_mtl.metrics.calibration import ece, pcoc
from recsys_mtl.metrics.checks import check_lengths
from recsys_mtl.metrics.multiclass import multiclass_accuracy, multiclass_log_loss
from recsys_mtl.metrics.ranking import (
    GroupedAUC,
    Groups,
    gauc,
    group_series,
    mrr,
    ndcg,
    recall,
)
from recsys_mtl.metrics.regression import mae, rmse
from recsys_mtl.metrics.report import HIGHER_IS_BETTER, Measurement
from recsys_mtl.metrics.statistics import TaskKind
from recsys_mtl.metrics.warn import MetricWarning

_METRICS: dict[TaskKind, dict[str, Callable[..., float]]] = {
    "binary": {"auc": auc, "log_loss": log_loss, "accuracy": accuracy, "pcoc": pcoc, "ece": ece},
    "regression": {"rmse": rmse, "mae": mae},
    "multiclass": {"accuracy": multiclass_accuracy, "log_loss": multiclass_log_loss},
}


def metrics_of(kind: TaskKind, *, grouped: bool, top: int | None = None) -> list[str]:
    """Return the metrics that apply to a kind of task, in the order of a report.

    Parameters
    ----------
    kind : {"binary", "regression", "multiclass"}
        Kind of the task.
    grouped : bool
        Whether rows have groups, as gauc needs.
    top : int, optional
        Length of the ranked lists whose metrics are wanted too, for binary tasks with groups.
    """
    if kind not in _METRICS:
        raise ValueError(f"kind must be one of {list(_METRICS)}; found '{kind}'")
    applicable = {*_METRICS[kind], *(("gauc",) if kind == "binary" and grouped else ())}
    found = [metric for metric in HIGHER_IS_BETTER if metric in applicable]
    if "gauc" in applicable and top is not None:
        found += [f"ndcg@{top}", f"recall@{top}", "mrr"]
    return found


def measure_task(
    name: str,
    kind: TaskKind,
    *,
    labels: ArrayLike,
    observed: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None = None,
    groups: Groups | None = None,
    metrics: Collection[str] | None = None,
    top: int | None = None,
) -> tuple[list[Measurement], list[str]]:
    """Measure one task on the rows whose label is observed, for a `Report`.

    Parameters
    ----------
    name : str
        Name of the task.
    kind : {"binary", "regression", "multiclass"}
        Which metrics apply: auc, gauc (with `groups`), log_loss, accuracy, pcoc, ece; rmse, mae;
        accuracy, log_loss.
    labels : array_like of shape (n,)
        Anything, NaN too, where not observed.
    observed : array_like of bool, shape (n,)
        Whether the row's label is known.
    scores : array_like of shape (n,), or (n, classes) if multiclass
        Probabilities, or values if regression. Anything where not observed.
    weights : array_like of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.
    groups : array_like or polars.Series or pyarrow array of shape (n,), optional
        Groups of gauc, often the user.
    metrics : collection of str, optional
        Only these metrics; those that do not apply to the kind are left out. Default: all.
    top : int, optional
        Measure the groups' ranked lists too: ndcg and recall of the first `top`, and mrr; for binary
        tasks with `groups`.

    Returns
    -------
    measurements : list of Measurement
        In the order of `HIGHER_IS_BETTER`, each with the number of observed rows. With no observed
        row all values are NaN, with one `MetricWarning`.
    notes : list of str
        Groups without a grouped AUC, metrics that are undefined, no observed rows.

    Raises
    ------
    ValueError
        Lengths differ, a metric or kind is unknown, or an observed row has an impossible value.

    Examples
    --------
    >>> measurements, notes = measure_task(
    ...     "rating",
    ...     "regression",
    ...     labels=[4.0, float("nan")],
    ...     observed=[True, False],
    ...     scores=[3.0, 5.0],
    ... )
    >>> measurements[0].metric, measurements[0].value, measurements[0].rows
    ('rmse', 1.0, 1)
    """
    known = _observed_rows(labels, observed, scores, weights, groups)
    rows = len(known.labels)
    wanted = _applicable(kind, metrics, grouped=groups is not None, top=top)
    if not rows:
        warnings.warn(f"Task '{name}' has no observed rows", MetricWarning, stacklevel=2)
        empty = [Measurement(name, metric, math.nan, 0) for metric in wanted]
        return empty, [f"{name}: no observed rows"]
    values: dict[str, float] = {}
    notes: list[str] = []
    for metric in wanted:
        if metric == "gauc" and known.groups is not None:
            found = gauc(known.labels, known.scores, known.groups, weights=known.weights)
            values[metric] = found.value
            if found.groups_dropped:
                notes.append(f"{name}: {_groups_note(found)}")
        elif metric not in HIGHER_IS_BETTER and known.groups is not None and top is not None:
            values[metric] = _of_lists(metric, known, known.groups, top)
        else:
            compute = _METRICS[kind][metric]
            values[metric] = compute(known.labels, known.scores, weights=known.weights)
    missing = [metric for metric, value in values.items() if math.isnan(value)]
    if missing:
        notes.append(f"{name}: {', '.join(missing)} undefined on these {rows:,} rows")
    return [Measurement(name, metric, value, rows) for metric, value in values.items()], notes


class _Rows(NamedTuple):
    labels: NDArray[Any]
    scores: NDArray[Any]
    weights: NDArray[Any] | None
    groups: pl.Series | None


def _observed_rows(
    labels: ArrayLike,
    observed: ArrayLike,
    scores: ArrayLike,
    weights: ArrayLike | None,
    groups: Groups | None,
) -> _Rows:
    """Keep the observed rows of all columns, whatever the others hold."""
    mask = np.asarray(observed)
    if mask.dtype != np.bool_ or mask.ndim != 1:
        raise ValueError(
            f"observed must be booleans of one dimension; found {mask.dtype} of shape {mask.shape}"
        )
    columns = _Rows(
        labels=np.asarray(labels),
        scores=np.asarray(scores),
        weights=None if weights is None else np.asarray(weights),
        groups=None if groups is None else group_series(groups),
    )
    lengths = {
        name: len(column) for name, column in columns._asdict().items() if column is not None
    }
    check_lengths({"observed": len(mask), **lengths})
    return _Rows(
        labels=columns.labels[mask],
        scores=columns.scores[mask],
        weights=None if columns.weights is None else columns.weights[mask],
        groups=None if columns.groups is None else columns.groups.filter(pl.Series(mask)),
    )


def _applicable(
    kind: TaskKind, metrics: Collection[str] | None, *, grouped: bool, top: int | None
) -> list[str]:
    """Return the names of the metrics to measure, in the order of a report."""
    applicable = metrics_of(kind, grouped=grouped, top=top)
    unknown = sorted(set(metrics or ()) - {*HIGHER_IS_BETTER, *applicable})
    if unknown:
        raise ValueError(f"metrics must be among {list(HIGHER_IS_BETTER)}; found {unknown}")
    if kind == "binary" and not grouped and "gauc" in (metrics or ()):
        raise ValueError("gauc needs groups, one for each row; found none. Pass groups=")
    return [metric for metric in applicable if metrics is None or metric in metrics]


def _of_lists(metric: str, known: _Rows, groups: pl.Series, top: int) -> float:
    """Measure the groups' ranked lists."""
    if metric == "mrr":
        return mrr(known.labels, known.scores, groups)
    measure = ndcg if metric.startswith("ndcg") else recall
    return measure(known.labels, known.scores, groups, k=top)


def _groups_note(found: GroupedAUC) -> str:
    total = found.groups_used + found.groups_dropped
    return (
        f"gauc uses {found.groups_used:,} of {total:,} groups ({found.rows_used:,} rows); "
        f"{found.groups_dropped:,} dropped, with labels of one class"
    )
