"""LightGBM on the static columns and the same features of earlier rows, and as a teacher of networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from recsys_mtl import AsOfState
from recsys_mtl.reading import Rows
from recsys_mtl.schema import Regression, Task
from result_sets import ROW, DataSet, Floats, Scored, bounded, label_of

TREES: dict[str, Any] = {
    "learning_rate": 0.03,
    "num_leaves": 31,
    "min_child_samples": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "verbose": -1,
}
MAX_TREES, TREE_PATIENCE = 1500, 50

FOLDS = 4
TEACHER = "{}_trees"

_Numbers = tuple[pl.DataFrame, Floats]


def trees(data: DataSet, seed: int) -> Scored:
    """Score test with one model a task."""
    both, test = _numbers(data, "train", "valid"), _numbers(data, "train", "valid", scored="test")
    found = {}
    for task in data.schema.tasks:
        model = _train(task, both, _num_trees(data, task, seed), seed)
        found[task.name] = bounded(task, np.asarray(model.predict(test[1])))
    return Scored(pl.DataFrame(found))


@cache
def teach(data: DataSet, *learned: str) -> DataSet:
    """Return the data set with its tasks taught by trees, which score rows that they did not see.

    Parameters
    ----------
    data
        The data set.
    learned
        The splits that the trees are fitted on, by all folds but one, and whose rows they score.
    """
    frame, x = _numbers(data, *learned)
    fold = np.random.default_rng(0).integers(0, FOLDS, frame.height)
    columns = {ROW: frame[ROW].to_numpy()}
    for task in data.schema.tasks:
        number = _num_trees(data, task, 0)
        scores = np.empty(frame.height)
        for left_out in range(FOLDS):
            seen = fold != left_out
            model = _train(task, (frame.filter(seen), x[seen]), number, left_out)
            scores[~seen] = model.predict(x[~seen])
        columns[TEACHER.format(task.name)] = scores
    interactions = data.rows.interactions.join(
        pl.DataFrame(columns).lazy(), on=ROW, how="left", maintain_order="left"
    )
    tasks = [_taught(task) for task in data.schema.tasks]
    return dataclasses.replace(
        data,
        rows=dataclasses.replace(data.rows, interactions=interactions),
        schema=dataclasses.replace(data.schema, tasks=tasks),
    )


def _taught(task: Task) -> Task:
    teacher = TEACHER.format(task.name)
    if isinstance(task, Regression):  # a teacher's score is a mean, no distribution over bins
        return dataclasses.replace(task, teacher=teacher, loss="mse")
    return dataclasses.replace(task, teacher=teacher)


@cache
def _num_trees(data: DataSet, task: Task, seed: int) -> int:
    """Choose on valid."""
    train, valid = _numbers(data, "train"), _numbers(data, "train", scored="valid")
    model = _train(task, train, MAX_TREES, seed, valid)
    return int(model.best_iteration)


def _train(
    task: Task, given: _Numbers, number: int, seed: int, valid: _Numbers | None = None
) -> Any:
    import lightgbm

    kind = "regression" if isinstance(task, Regression) else "binary"
    stop: list[Any] = (
        [] if valid is None else [lightgbm.early_stopping(TREE_PATIENCE, verbose=False)]
    )
    return lightgbm.train(
        TREES | {"objective": kind, "seed": seed},
        _labelled(task, given),
        number,
        valid_sets=None if valid is None else [_labelled(task, valid)],
        callbacks=stop,
    )


def _labelled(task: Task, given: _Numbers) -> Any:
    import lightgbm

    labels = label_of(given[0], task)
    known = ~np.isnan(labels)
    return lightgbm.Dataset(given[1][known], labels[known])


@cache
def _numbers(data: DataSet, *learned: str, scored: str | None = None) -> _Numbers:
    """Return a split with features of earlier rows, and all numbers the trees read.

    Parameters
    ----------
    data
        The data set.
    learned
        What the features of earlier rows are learned from.
    scored
        Whose they are; None: theirs.
    """
    frame, computed = _recalled(data, learned, scored)
    texts = _texts(data)
    static = data.joined(frame).drop(data.schema.keys)
    columns = [
        (column.cast(texts[column.name]).to_physical() if column.name in texts else column)
        .cast(pl.Float64)
        .rename(f"{place}")
        for place, column in enumerate([*static.get_columns(), *computed.get_columns()])
        if column.dtype != pl.Date
    ]
    return frame, pl.DataFrame(columns).to_numpy()


def _recalled(
    data: DataSet, learned: Sequence[str], scored: str | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return interactions and their features of earlier rows, if the schema has such features."""
    names = [one.name for one in data.schema.computed]
    if not names:
        frame = data.frame(*learned) if scored is None else data.frame(scored)
        return frame, frame.select([])
    state = AsOfState(data.schema)
    rows: Rows = state.learn(data.split(*learned), leave_out=True)
    if scored is not None:
        rows = state.apply(data.split(scored))
    frame = rows.frame(rows.columns)
    return frame, frame.select(names)


@cache
def _texts(data: DataSet) -> dict[str, pl.Enum]:
    """Return the values of each column of text."""
    whole = data.joined(data.frame("train", "valid", "test"))
    return {
        column.name: pl.Enum(column.drop_nulls().unique().sort())
        for column in whole.get_columns()
        if column.dtype == pl.String
    }
