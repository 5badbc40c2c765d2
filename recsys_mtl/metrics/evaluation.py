"""All tasks on the same rows: a report, with intervals and by slices of the rows."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from recsys_mtl.metrics.calibration import miscalibration
from recsys_mtl.metrics.checks import BoolArray, IntArray, check_lengths
from recsys_mtl.metrics.intervals import auc_interval, bounded
from recsys_mtl.metrics.measure import measure_task
from recsys_mtl.metrics.ranking import unit_codes
from recsys_mtl.metrics.report import Measurement, Report
from recsys_mtl.metrics.resampling import Resampling, replicate
from recsys_mtl.metrics.slices import slices_of
from recsys_mtl.metrics.statistics import Rows, TaskKind, statistic_of
from recsys_mtl.metrics.warn import MetricWarning


@dataclass(frozen=True)
class TaskLabels:
    """What is true of a task on n rows.

    Parameters
    ----------
    name : str
        Name of the task.
    kind : {"binary", "regression", "multiclass"}
        Kind of the task.
    labels : ndarray of shape (n,)
        Anything where not observed.
    observed : ndarray of bool, shape (n,)
        Whether the row's label is known.
    weights : ndarray of shape (n,), optional
        Sample weights, 0 or more. Default: 1 each.
    """

    name: str
    kind: TaskKind
    labels: NDArray[Any]
    observed: BoolArray
    weights: NDArray[Any] | None = None

    def take(self, rows: BoolArray) -> "TaskLabels":
        """Return what is true of some of the rows."""
        weights = None if self.weights is None else self.weights[rows]
        return replace(
            self, labels=self.labels[rows], observed=self.observed[rows], weights=weights
        )

    def rows(self, scores: NDArray[Any], units: IntArray, num_units: int, *, grouped: bool) -> Rows:
        """Return the observed rows with their scores and units, for `statistic_of`."""
        seen = self.observed
        check_lengths({"labels": len(seen), "scores": len(scores), "units": len(units)})
        weights = None if self.weights is None else self.weights[seen]
        return Rows(
            self.labels[seen], scores[seen], weights, units[seen], num_units, grouped=grouped
        )


def evaluate_tasks(
    tasks: Sequence[TaskLabels],
    scores: Sequence[ArrayLike],
    groups: pl.Series | None = None,
    *,
    by: pl.Series | None = None,
    top: int | None = None,
    resampling: Resampling | None = None,
) -> Report:
    """Measure all tasks on their observed rows.

    Parameters
    ----------
    tasks : sequence of TaskLabels
        What is true, n rows each.
    scores : sequence of array_like, each of shape (n,) or (n, classes)
        One for each task.
    groups : polars.Series of length n, optional
        The user of each row, without nulls: for gauc and ranked lists, and to draw by.
    by : polars.Series of length n, optional
        Measure the slices of the rows with equal values too; its name is that of the column. Numbers
        of more than 20 values are cut at their quintiles; of other values the 20 most frequent are
        slices and the rest is one.
    top : int, optional
        Measure the users' ranked lists of that length too.
    resampling : Resampling, optional
        Give every metric an interval, by drawing users (rows where there are none) this way.

    Returns
    -------
    Report
        A note says which task ranks well (the interval of its AUC lies above 0.5) and is
        miscalibrated; see `miscalibration`.
    """
    columns = [np.asarray(found) for found in scores]
    whole = _evaluate(tasks, columns, groups, top, resampling)
    if by is None:
        return whole
    cut, names = slices_of(by)
    measured, notes = list(whole.measurements), list(whole.notes)
    for number, name in enumerate(names):
        rows = cut == number
        users = None if groups is None else groups.filter(pl.Series(rows))
        some = [task.take(rows) for task in tasks]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetricWarning)  # a small slice shows as nan
            found = _evaluate(some, [column[rows] for column in columns], users, top, resampling)
        measured += [replace(one, slice=name) for one in found.measurements]
        notes += [f"{by.name} {name}: {note}" for note in found.notes if "miscalibrated" in note]
    return Report(tuple(measured), tuple(notes), by=by.name)


def calibration_note(
    task: TaskLabels, scores: ArrayLike, groups: pl.Series | None = None
) -> str | None:
    """Say of a binary task that it ranks well and is miscalibrated; None if it is not both."""
    if task.kind != "binary":
        return None
    seen = task.observed
    labels, chances = task.labels[seen], np.asarray(scores)[seen]
    weights = None if task.weights is None else task.weights[seen]
    words = miscalibration(labels, chances, weights=weights)
    if not words:
        return None
    users = None if groups is None else groups.filter(pl.Series(seen))
    found = auc_interval(labels, chances, users, weights=weights)
    if math.isnan(found.low) or found.low <= 0.5:
        return None
    return (
        f"{task.name}: ranks well (auc {found.value:.3f}, {found.low:.3f} .. {found.high:.3f})"
        f" but is miscalibrated: {words}"
    )


def _evaluate(
    tasks: Sequence[TaskLabels],
    scores: Sequence[NDArray[Any]],
    groups: pl.Series | None,
    top: int | None,
    resampling: Resampling | None,
) -> Report:
    measured: list[Measurement] = []
    notes: list[str] = []
    for task, column in zip(tasks, scores, strict=True):
        found, said = measure_task(
            task.name,
            task.kind,
            labels=task.labels,
            observed=task.observed,
            scores=column,
            weights=task.weights,
            groups=groups if task.kind == "binary" else None,
            top=top,
        )
        measured += found
        notes += said
        note = calibration_note(task, column, groups)
        notes += [] if note is None else [note]
    if resampling is not None:
        measured = _with_intervals(measured, tasks, scores, groups, resampling)
        drawn = "rows, one by one" if groups is None else "users with all their rows"
        notes.append(
            f"intervals: {resampling.level:.0%}, from {resampling.replicates:,} draws of {drawn}"
        )
    return Report(tuple(measured), tuple(notes))


def _with_intervals(
    measured: Sequence[Measurement],
    tasks: Sequence[TaskLabels],
    scores: Sequence[NDArray[Any]],
    groups: pl.Series | None,
    resampling: Resampling,
) -> list[Measurement]:
    units, num_units = units_of(groups, len(tasks[0].labels))
    rows = {
        task.name: (task.kind, task.rows(column, units, num_units, grouped=groups is not None))
        for task, column in zip(tasks, scores, strict=True)
    }
    defined = [found for found in measured if not math.isnan(found.value)]
    statistics = [statistic_of(found.metric, *rows[found.task]) for found in defined]
    replicates = iter(replicate(statistics, num_units, resampling).T)
    made = []
    for found in measured:
        low = high = math.nan
        if not math.isnan(found.value):
            column = next(replicates)
            _, low, high = bounded(found.metric, found.value, column, num_units, resampling)
        made.append(replace(found, low=low, high=high))
    return made


def units_of(groups: pl.Series | None, num_rows: int) -> tuple[IntArray, int]:
    """Return the unit that each row is drawn with (n,), and how many there are."""
    if groups is None:
        return np.arange(num_rows, dtype=np.int64), num_rows
    return unit_codes(groups)
