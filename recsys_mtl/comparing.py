"""Compare models, or anything that scores the same rows, task by task."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.estimator import MultiTaskRanker
from recsys_mtl.loading import load
from recsys_mtl.measuring import resampling_of
from recsys_mtl.metrics import Comparison, TaskLabels, compare_scores
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import Schema
from recsys_mtl.tables import lazy_frame
from recsys_mtl.training import task_labels, user_groups

_Scores = dict[str, npt.NDArray[Any]]


def compare(
    rows: Any,
    models: Mapping[str, Any],
    *,
    schema: Schema | None = None,
    metrics: Collection[str] | None = None,
    top: int | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Say of every task and metric whether the first model is better than each other one.

    All models are measured on the same rows, and in every replicate of the bootstrap on the same drawn
    users (rows, if the schema has no user), so what they have in common cancels.

    Parameters
    ----------
    rows
        Interactions with labels: `Rows`, or any table or path that `scan` takes.
    models
        Name to scores, two or more: a fitted `MultiTaskRanker`, a model folder, a table of scores with
        a column per task (a parquet path too), or a mapping of task to array; or a list of such, one
        for each seed of training: metrics are averaged, and intervals then hold what other seeds would
        change. Give five or more where you can. Scores come in the order of the rows; id
        columns, where a table has them, are checked.
    schema
        Says what the labels are. Default: that of the first model with one.
    metrics
        Only these, such as ``["auc", "gauc"]``. Default: all of each kind of task.
    top
        Compare the users' ranked lists of that length too: ndcg, recall, mrr.
    replicates
        Draws of users.
    seed
        Seed of the draws.
    level
        Probability of the intervals.

    Returns
    -------
    Comparison
        Prints as a table; ``.to_frame()`` has one row per task, metric and pair of models: both values,
        the difference with its interval, the share of draws that the first wins, and a verdict.

    Raises
    ------
    SchemaError
        No model has a schema and none is given, or two mean different things by one task.
    EncodingError
        Scores are of other rows.
    ValueError
        As in `recsys_mtl.metrics.compare_scores`.

    Examples
    --------
    >>> import numpy as np, polars as pl
    >>> from recsys_mtl import Binary, Categorical, Schema, compare
    >>> table = pl.DataFrame({"hour": [7, 8] * 100, "click": [1, 0] * 100})
    >>> schema = Schema(context=[Categorical("hour")], tasks=[Binary("ctr", label="click")])
    >>> scores = {"rule": {"ctr": np.tile([0.8, 0.3], 100)}, "none": {"ctr": np.full(200, 0.5)}}
    >>> compare(table, scores, schema=schema).find("ctr", "auc").verdict
    'better'
    """
    opened = scan(rows)
    given = {name: _opened(model) for name, model in models.items()}
    rankers = [one for found in given.values() for one in found if isinstance(one, MultiTaskRanker)]
    schemas = [one.scorer.schema for one in rankers]
    known = schema or next(iter(schemas), None)
    if known is None:
        raise SchemaError(
            "A comparison needs a schema that says what the labels are: pass schema=."
        )
    for other in schemas:
        _check_alike(known, other)
    frame = opened.frame([*known.keys, *known.label_columns])
    if frame.height == 0:
        raise EncodingError("The interactions must hold rows to compare on. Found an empty table.")
    tasks = task_labels(known, *read_labels(frame, known.tasks))
    scores = {
        name: [_scores(name, one, opened, frame, tasks, known) for one in found]
        for name, found in given.items()
    }
    return compare_scores(
        tasks,
        scores,
        user_groups(known, frame),
        metrics=metrics,
        top=top,
        resampling=resampling_of(replicates, seed=seed, level=level),
    )


def _opened(model: Any) -> list[Any]:
    """Return the seeds of a model; folders are loaded."""
    found = list(model) if isinstance(model, list | tuple) else [model]
    return [
        load(one) if isinstance(one, str | Path) and (Path(one) / "model.json").exists() else one
        for one in found
    ]


def _check_alike(known: Schema, other: Schema) -> None:
    own = {task.name: task for task in known.tasks}
    for task in other.tasks:
        mine = own.get(task.name)
        if mine is not None and (mine.kind, mine.label, mine.within) != (
            *(task.kind, task.label, task.within),
        ):
            raise SchemaError(
                f"Models that are compared must mean one thing by task {task.name!r}. Found a"
                f" {mine.kind} task of column {mine.label!r} within {mine.within!r} and a {task.kind}"
                f" task of column {task.label!r} within {task.within!r}: rename one."
            )


def _scores(
    name: str, model: Any, rows: Rows, frame: pl.DataFrame, tasks: list[TaskLabels], schema: Schema
) -> _Scores:
    """Return the scores of the tasks that the model has, in the order of the rows."""
    if isinstance(model, MultiTaskRanker):
        scorer = model.scorer
        model = pl.concat(list(scorer.frames(rows)))
    if isinstance(model, Mapping):
        found = {task.name: np.asarray(model[task.name]) for task in tasks if task.name in model}
    else:
        table = lazy_frame(model, what=f"scores of {name!r}").collect()
        _check_ids(name, table, frame, schema)
        found = {task.name: _matrix(table[task.name]) for task in tasks if task.name in table}
    for task, column in found.items():
        if len(column) != frame.height:
            raise EncodingError(
                f"The scores of {name!r} must be of the rows compared, in order. Found {len(column):,}"
                f" scores of task {task!r} for {frame.height:,} rows."
            )
    return found


def _check_ids(name: str, table: pl.DataFrame, frame: pl.DataFrame, schema: Schema) -> None:
    for key in schema.keys:
        if key not in table.columns or table.height != frame.height:
            continue
        same = table[key].cast(pl.String).eq_missing(frame[key].cast(pl.String))
        if not same.all():
            raise EncodingError(
                f"The scores of {name!r} must be in the order of the rows. Column {key!r} differs in"
                f" {int((~same).sum()):,} of {frame.height:,} rows, first in row {same.arg_min()}."
            )


def _matrix(column: pl.Series) -> npt.NDArray[Any]:
    """Return scores as an array (n,), or (n, classes)."""
    if column.dtype == pl.List and len(column):
        column = column.list.to_array(int(column.list.len()[0]))
    return column.to_numpy()
