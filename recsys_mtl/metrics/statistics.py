"""Every metric as a function of how often each user was drawn: what a bootstrap evaluates."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recsys_mtl.metrics.auc_kernel import group_aucs, replicate_aucs
from recsys_mtl.metrics.calibration import bins_of_equal_mass
from recsys_mtl.metrics.checks import (
    BoolArray,
    FloatArray,
    IntArray,
    binary_columns,
    check_classes,
    check_finite,
    check_lengths,
    check_probabilities,
    check_weights,
)
from recsys_mtl.metrics.ranking import ranked_lists, sorted_groups
from recsys_mtl.metrics.resampling import Statistic

TaskKind = Literal["binary", "regression", "multiclass"]

_EPS = float(np.finfo(np.float64).eps)


class Rows(NamedTuple):
    """Observed rows of one task, each of a unit that is drawn as a whole.

    Parameters
    ----------
    labels, scores, weights
        As the metrics take them, n rows; weights None for 1 each.
    units : ndarray of int64, shape (n,)
        From 0 to num_units - 1.
    num_units : int
        Units that are drawn; some may have no row here.
    grouped : bool
        Whether units are users; else gauc and the metrics of ranked lists do not apply.
    """

    labels: NDArray[Any]
    scores: NDArray[Any]
    weights: NDArray[Any] | None
    units: IntArray
    num_units: int
    grouped: bool = True


@dataclass(frozen=True)
class Ratio:
    """A sum over another: means, their roots, PCOC, averages over users.

    Parameters
    ----------
    sums : ndarray of shape (units, 2)
        Numerator and denominator of each unit.
    root : bool, default=False
        Whether the metric is the square root of the ratio.
    """

    sums: FloatArray
    root: bool = False

    def values(self, counts: FloatArray) -> FloatArray:
        """Return the metric of every replicate; see `Statistic`."""
        above, below = (counts @ self.sums).T
        with np.errstate(invalid="ignore", divide="ignore"):
            found: FloatArray = np.where(below > 0, above / below, np.nan)
            return np.sqrt(found) if self.root else found


@dataclass(frozen=True)
class SortedAUC:
    """The AUC of rows that are sorted once, whatever their weights become."""

    labels: BoolArray
    weights: FloatArray
    units: IntArray
    last_of_tie: BoolArray

    def values(self, counts: FloatArray) -> FloatArray:
        """Return the metric of every replicate; see `Statistic`."""
        return replicate_aucs(
            self.labels, self.weights, self.units, last_of_tie=self.last_of_tie, counts=counts
        )


@dataclass(frozen=True)
class BinnedGaps:
    """The ECE over the bins of all rows, which stay as they are.

    Parameters
    ----------
    gaps : ndarray of shape (units, bins)
        Sum of weight * (probability - label).
    mass : ndarray of shape (units,)
        Sum of weights.
    """

    gaps: FloatArray
    mass: FloatArray

    def values(self, counts: FloatArray) -> FloatArray:
        """Return the metric of every replicate; see `Statistic`."""
        total = counts @ self.mass
        with np.errstate(invalid="ignore", divide="ignore"):
            found: FloatArray = np.abs(counts @ self.gaps).sum(axis=1) / total
        return np.where(total > 0, found, np.nan)


def statistic_of(metric: str, kind: TaskKind, rows: Rows) -> Statistic:
    """Prepare a metric for replicates; with every unit drawn once it is the metric itself.

    Raises
    ------
    ValueError
        The metric is none of the kind's, or a value of the rows is out of its range.
    """
    check_lengths(
        {"labels": len(rows.labels), "scores": len(rows.scores), "units": len(rows.units)}
    )
    name, _, depth = metric.partition("@")
    if kind == "binary" and rows.grouped and name in ("ndcg", "recall", "mrr"):
        return _of_lists(name, int(depth) if depth else None, rows)
    if kind == "binary" and rows.grouped and metric == "gauc":
        return _gauc(rows)
    if kind == "binary" and metric == "auc":
        return _auc(rows)
    if kind == "binary" and metric == "ece":
        return _ece(rows)
    mass = check_weights(rows.weights, len(rows.labels))
    if kind == "binary" and metric == "pcoc":
        truth, numbers, mass = binary_columns(rows.labels, rows.scores, rows.weights)
        return Ratio(_sums(rows, mass * numbers, mass * truth))
    costs = _costs(metric, kind, rows)
    return Ratio(_sums(rows, mass * costs, mass), root=metric == "rmse")


def _costs(metric: str, kind: TaskKind, rows: Rows) -> FloatArray:
    """Return what each row adds to a mean."""
    if kind == "regression" and metric in ("rmse", "mae"):
        gap: FloatArray = check_finite("scores", rows.scores) - check_finite("labels", rows.labels)
        distance: FloatArray = np.abs(gap)
        return distance * distance if metric == "rmse" else distance
    if kind == "binary" and metric in ("log_loss", "accuracy"):
        truth, numbers, _ = binary_columns(rows.labels, rows.scores, rows.weights)
        if metric == "accuracy":
            return np.equal(numbers >= 0.5, truth).astype(np.float64)
        chance = np.clip(check_probabilities(rows.scores), _EPS, 1 - _EPS)
        cost: FloatArray = -np.log(np.where(truth, chance, 1 - chance))
        return cost
    if kind == "multiclass" and metric in ("log_loss", "accuracy"):
        chances = check_probabilities(rows.scores, ndim=2)
        classes = check_classes(rows.labels, chances.shape[1])
        if metric == "accuracy":
            hits: FloatArray = np.equal(chances.argmax(axis=1), classes).astype(np.float64)
            return hits
        surprise: FloatArray = -np.log(np.clip(chances[np.arange(len(classes)), classes], _EPS, 1))
        return surprise
    among = "users" if rows.grouped else "rows without users"
    raise ValueError(f"metric must be one of a {kind} task with {among}; found '{metric}'")


def _auc(rows: Rows) -> SortedAUC:
    truth, numbers, mass = binary_columns(rows.labels, rows.scores, rows.weights)
    order = np.argsort(numbers)
    ascending = numbers[order]
    last = np.r_[ascending[1:] != ascending[:-1], True][: len(order)]
    return SortedAUC(truth[order], mass[order], rows.units[order], last)


def _gauc(rows: Rows) -> Ratio:
    truth, numbers, mass = binary_columns(rows.labels, rows.scores, rows.weights)
    order, starts = sorted_groups(rows.units, numbers)
    aucs, group_mass = group_aucs(truth, numbers, mass, order=order, starts=starts)
    used = ~np.isnan(aucs)
    sums = np.zeros((rows.num_units, 2))
    places = rows.units[order][starts[:-1]][used]
    sums[places] = np.stack([aucs * group_mass, group_mass], axis=1)[used]
    return Ratio(sums)


def _of_lists(name: str, k: int | None, rows: Rows) -> Ratio:
    lists = ranked_lists(rows.labels, rows.scores, rows.units, k=k)
    found: FloatArray = getattr(lists, name)
    used = ~np.isnan(found)
    sums = np.zeros((rows.num_units, 2))
    sums[lists.codes[used], 0] = found[used]
    sums[lists.codes[used], 1] = 1
    return Ratio(sums)


def _ece(rows: Rows, num_bins: int = 15) -> BinnedGaps:
    truth, chance, mass = binary_columns(rows.labels, rows.scores, rows.weights)
    check_probabilities(rows.scores)
    bins = bins_of_equal_mass(chance, mass, num_bins)
    places = rows.units * num_bins + bins
    size = rows.num_units * num_bins
    gaps = np.bincount(places, weights=mass * (chance - truth), minlength=size)
    total = np.bincount(rows.units, weights=mass, minlength=rows.num_units)
    by_bin = gaps.reshape(rows.num_units, num_bins)
    return BinnedGaps(by_bin.astype(np.float64, copy=False), total.astype(np.float64, copy=False))


def _sums(rows: Rows, numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Sum two columns by unit, shape (units, 2)."""
    columns = [
        np.bincount(rows.units, weights=column, minlength=rows.num_units)
        for column in (numerator, denominator)
    ]
    return np.stack(columns, axis=1).astype(np.float64, copy=False)
