"""Is one model better than another? Both on the same rows, the same users drawn for both."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

from recsys_mtl.metrics.checks import FloatArray
from recsys_mtl.metrics.evaluation import TaskLabels, calibration_note, units_of
from recsys_mtl.metrics.measure import metrics_of
from recsys_mtl.metrics.report import higher_is_better, laid_out, laid_out_html, number_text
from recsys_mtl.metrics.resampling import Resampling, Statistic, replicate, spread
from recsys_mtl.metrics.statistics import statistic_of

Scores = Mapping[str, ArrayLike]
"""Task name to scores, of shape (n,) or (n, classes)."""


@dataclass(frozen=True)
class Difference:
    """One metric of one task of two models.

    Parameters
    ----------
    task, metric : str
        What is compared.
    first, second : str
        Names of the models.
    first_value, second_value : float
        The metric of each, a mean over its seeds.
    difference : float
        First minus second; of pcoc, which is best at 1, it is that of |log pcoc|.
    low, high : float
        Bounds of the difference; NaN where it is undefined.
    wins : float
        Share of replicates in which the first is better, a tie counting one half.
    verdict : str
        Of the first: ``"better"`` or ``"worse"`` where the interval leaves 0 out, ``"no evidence"``
        where it does not, ``"undefined"`` where there is none.
    rows : int
        Rows with an observed label.
    """

    task: str
    metric: str
    first: str
    second: str
    first_value: float
    second_value: float
    difference: float
    low: float
    high: float
    wins: float
    verdict: str
    rows: int


@dataclass(frozen=True)
class Comparison:
    """What two or more models differ by, metric by metric; prints as a table.

    Parameters
    ----------
    differences : tuple of Difference
        One for each task, metric and model but the first.
    notes : tuple of str, default=()
        What a reader should know beside the numbers.
    """

    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = ()

    def find(self, task: str, metric: str, *, second: str | None = None) -> Difference:
        """Return one difference.

        Parameters
        ----------
        task, metric
            What is compared.
        second
            The model compared with; None: the first there is.

        Raises
        ------
        KeyError
            There is none; the error lists those there are.
        """
        for found in self.differences:
            if (found.task, found.metric) == (task, metric) and second in (None, found.second):
                return found
        known = ", ".join(f"{one.task}/{one.metric}/{one.second}" for one in self.differences)
        asked = f"'{metric}' of task '{task}'" + ("" if second is None else f" with '{second}'")
        raise KeyError(f"No difference {asked}. The comparison has: {known or 'none'}")

    def to_frame(self) -> pl.DataFrame:
        """Return one row per difference; the columns are the fields of `Difference`."""
        texts = ("task", "metric", "first", "second", "verdict")
        schema = {
            name: pl.String() if name in texts else pl.Int64() if name == "rows" else pl.Float64()
            for name in Difference.__dataclass_fields__
        }
        columns = {name: [getattr(one, name) for one in self.differences] for name in schema}
        return pl.DataFrame(columns, schema=schema)

    def __str__(self) -> str:
        """Lay out one line per difference, then the notes."""
        return laid_out(self._cells(), self.notes, texts=2)

    def _repr_html_(self) -> str:
        return laid_out_html(self._cells(), self.notes)

    def _cells(self) -> list[list[str]]:
        seconds = list(dict.fromkeys(one.second for one in self.differences))
        firsts = list(dict.fromkeys(one.first for one in self.differences))
        only = len(seconds) == 1
        names = [*firsts, seconds[0] if only else "value"] if firsts else ["first", "second"]
        head = ["task", "metric", *([] if only else ["against"]), *names]
        lines = [
            [
                *(one.task, one.metric, *([] if only else [one.second])),
                *map(number_text, (one.first_value, one.second_value)),
                *map(_signed, (one.difference, one.low, one.high)),
                *("nan" if math.isnan(one.wins) else f"{one.wins:.1%}", one.verdict),
            ]
            for one in self.differences
        ]
        return [[*head, "difference", "low", "high", "wins", "verdict"], *lines]


def compare_scores(
    tasks: Sequence[TaskLabels],
    models: Mapping[str, Sequence[Scores]],
    groups: pl.Series | None = None,
    *,
    metrics: Collection[str] | None = None,
    top: int | None = None,
    resampling: Resampling | None = None,
) -> Comparison:
    """Compare the first model with each other one on the same rows, whatever made the scores.

    In every replicate the same users (rows, where there are none) are drawn for all models and tasks,
    so what is common to the models leaves the difference.

    Parameters
    ----------
    tasks : sequence of TaskLabels
        What is true, n rows each.
    models : mapping of str to sequence of mappings
        Two models or more; each has one mapping of scores for every seed it was trained with. A metric
        is the mean over seeds; in a replicate, over seeds that are drawn again like users, so that the
        interval holds what other seeds would change. Tasks that a model lacks are left out.
    groups : polars.Series of length n, optional
        The user of each row, without nulls.
    metrics : collection of str, optional
        Only these. Default: all of each kind of task.
    top : int, optional
        Compare the users' ranked lists of that length too.
    resampling : Resampling, optional
        Replicates, seed and level. Default: 1,000 at 95 %.

    Returns
    -------
    Comparison
        A note names each model that ranks a task well and is miscalibrated on it.

    Raises
    ------
    ValueError
        There are fewer than two models, no task is common to all, a metric applies to none of them, or
        scores are impossible or of another length.

    References
    ----------
    Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Sakai, "Statistical
    Significance, Power, and Sample Sizes", SIGIR 2016, on paired tests of rankers.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([0, 0, 1, 1] * 50)
    >>> task = TaskLabels("ctr", "binary", truth, np.ones(200, dtype=bool))
    >>> scores = {"good": [{"ctr": truth * 0.5 + 0.2}], "none": [{"ctr": np.full(200, 0.5)}]}
    >>> found = compare_scores([task], scores).find("ctr", "auc")
    >>> found.first_value, found.second_value, found.wins, found.verdict
    (1.0, 0.5, 1.0, 'better')
    """
    plan = resampling or Resampling()
    shared, notes = _shared_tasks(tasks, models)
    grouped = groups is not None
    units, num_units = units_of(groups, len(tasks[0].labels))
    places: list[tuple[TaskLabels, str]] = []
    for task in shared:
        wanted = metrics_of(task.kind, grouped=grouped, top=top)
        places += [(task, name) for name in wanted if metrics is None or name in metrics]
    if not places:
        raise ValueError(f"metrics must hold one that applies to a task; found {metrics}")
    statistics: list[Statistic] = []
    seeds = [len(found) for found in models.values()]
    for task, metric in places:
        for scores in (one[task.name] for found in models.values() for one in found):
            rows = task.rows(np.asarray(scores), units, num_units, grouped=grouped)
            statistics.append(statistic_of(metric, task.kind, rows))
    everyone = np.ones((1, num_units))
    values = np.concatenate([one.values(everyone) for one in statistics])[None]
    drawn = np.concatenate([values, replicate(statistics, num_units, plan)])
    by_model = _means_over_seeds(drawn, [metric for _, metric in places], seeds, plan)
    differences = [
        _difference(task, metric, list(models), by_model[number], other, num_units, plan)
        for number, (task, metric) in enumerate(places)
        for other in range(1, len(models))
    ]
    notes += _calibration_notes(shared, models, groups)
    notes += _method_notes(differences, models, plan, grouped=grouped)
    return Comparison(tuple(differences), tuple(notes))


class _Means(NamedTuple):
    """A metric of each model, the whole first and then the replicates: shapes (1 + R, models)."""

    values: FloatArray
    badness: FloatArray


def _means_over_seeds(
    drawn: FloatArray, metrics: Sequence[str], seeds: Sequence[int], plan: Resampling
) -> list[_Means]:
    """Turn columns of all metrics, models and seeds into means over seeds for each metric."""
    found = []
    weights = np.concatenate([_seed_weights(count, plan) for count in seeds], axis=1)
    starts = np.cumsum([0, *seeds])
    for number, metric in enumerate(metrics):
        columns = drawn[:, number * starts[-1] : (number + 1) * starts[-1]]
        upward = higher_is_better(metric)
        if upward is None:
            with np.errstate(divide="ignore"):
                badness = np.abs(np.log(columns))
        else:
            badness = -columns if upward else columns
        with np.errstate(invalid="ignore"):  # a pcoc of 0 is infinitely bad
            values, bad = (
                np.add.reduceat(part * weights, starts[:-1], axis=1) for part in (columns, badness)
            )
        found.append(_Means(values, bad))
    return found


def _seed_weights(count: int, plan: Resampling) -> FloatArray:
    """Return what each seed counts in the whole and in every replicate, shape (1 + R, count).

    Seeds are drawn again as users are, and spread by sqrt(S / (S - 1)), so that the variance of the mean
    is that of S seeds, not the smaller one of a bootstrap of few. Models with as many seeds get the same
    draws: seeds that belong together stay together, and those that do not lose nothing by it.
    """
    even = np.full((1 + plan.replicates, count), 1 / count)
    if count == 1:
        return even
    rng = np.random.default_rng([plan.seed, count])
    counts = rng.multinomial(count, even[0], size=plan.replicates)
    even[1:] += (counts - 1) / count * math.sqrt(count / (count - 1))
    return even


def _difference(
    task: TaskLabels,
    metric: str,
    names: Sequence[str],
    means: _Means,
    other: int,
    num_units: int,
    plan: Resampling,
) -> Difference:
    with np.errstate(invalid="ignore"):  # of two models whose pcoc is 0
        worse = means.badness[:, 0] - means.badness[:, other]
    gaps = -worse if higher_is_better(metric) else worse
    low = high = math.nan
    if num_units > 1:
        low, high = spread(float(gaps[0]), gaps[1:], plan.level, shifted=metric == "ece")
    known = worse[1:][~np.isnan(worse[1:])]
    wins = float((known < 0).mean() + 0.5 * (known == 0).mean()) if len(known) else math.nan
    return Difference(
        task=task.name,
        metric=metric,
        first=names[0],
        second=names[other],
        first_value=float(means.values[0, 0]),
        second_value=float(means.values[0, other]),
        difference=float(gaps[0]),
        low=low,
        high=high,
        wins=wins,
        verdict=_verdict(low, high, upward=bool(higher_is_better(metric))),
        rows=int(task.observed.sum()),
    )


def _verdict(low: float, high: float, *, upward: bool) -> str:
    if math.isnan(low):
        return "undefined"
    if low <= 0 <= high:
        return "no evidence"
    return "better" if (low > 0) == upward else "worse"


def _shared_tasks(
    tasks: Sequence[TaskLabels], models: Mapping[str, Sequence[Scores]]
) -> tuple[list[TaskLabels], list[str]]:
    """Return the tasks that all models score, and notes on the others."""
    if len(models) < 2 or not all(models.values()):
        raise ValueError(
            "A comparison needs two models or more, each with the scores of one seed or more; found "
            f"{ {name: len(found) for name, found in models.items()} }"
        )
    lacking = {
        task.name: [
            name for name, found in models.items() if any(task.name not in one for one in found)
        ]
        for task in tasks
    }
    shared = [task for task in tasks if not lacking[task.name]]
    if not shared:
        raise ValueError(f"A comparison needs a task that all models score; missing are {lacking}")
    notes = [
        f"{task}: not scored by {', '.join(names)}" for task, names in lacking.items() if names
    ]
    return shared, notes


def _calibration_notes(
    tasks: Sequence[TaskLabels], models: Mapping[str, Sequence[Scores]], groups: pl.Series | None
) -> list[str]:
    notes = []
    for name, found in models.items():
        for task in tasks:
            scores: NDArray[Any] = np.asarray(found[0][task.name])
            note = calibration_note(task, scores, groups)
            notes += [] if note is None else [f"{name}, {note}"]
    return notes


def _method_notes(
    differences: Sequence[Difference],
    models: Mapping[str, Sequence[Scores]],
    plan: Resampling,
    *,
    grouped: bool,
) -> list[str]:
    drawn = "users, the same for all models" if grouped else "rows, the same for all models"
    many = ", ".join(f"{name} {len(found)}" for name, found in models.items())
    notes = [
        f"intervals: {plan.level:.0%}, from {plan.replicates:,} draws of {drawn}, and of seeds of"
        f" training; given were: {many}"
    ]
    once = [name for name, found in models.items() if len(found) == 1]
    if once:
        notes.append(
            f"what another seed of training would change is not in the intervals of {', '.join(once)}"
        )
    chance = (1 - plan.level) * len(differences)
    if chance >= 0.5:
        notes.append(
            f"of {len(differences)} differences about {chance:.1f} would be called better or worse by"
            " chance if there were none"
        )
    if any(one.metric == "pcoc" for one in differences):
        notes.append("pcoc is best at 1: its difference is that of |log pcoc|, lower is better")
    return notes


def _signed(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:+.4f}"
