"""Labels of all tasks, checked against what the tasks allow, and the groups of ranking losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.batch import MISSING, OBSERVED, OUT_OF_SPACE, FloatArray, IntArray
from recsys_mtl.encoding.hashing import hash64
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Binary, Multiclass, Regression, Task

_LARGEST = float(np.finfo(np.float32).max)

Labels = tuple[FloatArray, npt.NDArray[np.uint8], FloatArray]


def read_labels(frame: pl.DataFrame, tasks: Sequence[Task], *, taught: bool = False) -> Labels:
    """Read the labels of all tasks.

    Parameters
    ----------
    frame
        Interactions with the label and weight columns, n rows.
    tasks
        T tasks.
    taught
        Whether labels are to be learned: mixed with the scores of the tasks' teachers.

    Returns
    -------
    labels, states, weights
        Each of shape (n, T). A label is 0 and its weight 1 where its state is not `OBSERVED`.
        What stands in the columns outside a task's space is never looked at.

    Raises
    ------
    EncodingError
        If a label or weight is outside its task's domain; names the task, column, value and row.
    """
    shape = frame.height, len(tasks)
    labels = np.zeros(shape, dtype=np.float32)
    weights = np.ones(shape, dtype=np.float32)
    values: dict[str, npt.NDArray[np.float64]] = {}
    states: dict[str, npt.NDArray[np.int64]] = {}
    for task in _parents_first(tasks):
        if task.within is None:
            space = np.full(frame.height, OBSERVED)
        else:
            parent, positive = states[task.within], values[task.within] == 1
            space = np.where((parent == OBSERVED) & positive, OBSERVED, OUT_OF_SPACE)
            space[parent == MISSING] = MISSING
        found = _values(frame[task.label], task, space == OBSERVED)
        values[task.name] = found
        states[task.name] = np.where((space == OBSERVED) & np.isnan(found), MISSING, space)
    for column, task in enumerate(tasks):
        if taught and task.teacher is not None:
            mixed = _mixed(values[task.name], frame[task.teacher], task)
            values[task.name] = mixed
            states[task.name] = np.where(np.isnan(mixed), MISSING, OBSERVED)
        observed = states[task.name] == OBSERVED
        labels[observed, column] = values[task.name][observed]
        if task.sample_weight is not None:
            read = _sample_weights(frame[task.sample_weight], task, observed)
            weights[observed, column] = read[observed]
    stacked = np.stack([states[task.name] for task in tasks], axis=1).astype(np.uint8)
    return labels, stacked, weights


def read_groups(column: pl.Series, *, first_row: int = 0) -> IntArray:
    """Give each row the number of its user or request, within which rows are compared.

    Parameters
    ----------
    column
        Their ids, of length n.
    first_row
        Where the first of these rows stands among all: chunks of one table are numbered as the whole.

    Returns
    -------
    ndarray of int64, shape (n,)
        The upper 63 bits of the id's hash: two of n ids share a number with a chance of
        n**2 / 2**64. A null (or NaN) is a group of its own, numbered -1 - its row.

    Raises
    ------
    EncodingError
        If values of the column's type cannot be ids.
    """
    alone = -1 - np.arange(first_row, first_row + column.len())
    if column.dtype == pl.Null:
        return alone
    try:
        hashes = hash64(column, seed=0)
    except EncodingError as error:
        raise EncodingError(f"Group column {column.name!r}: {error}") from None
    known = column.is_not_null()
    if column.dtype.is_float():
        known &= column.is_not_nan().fill_null(False)
    return np.where(known.to_numpy(), (hashes >> np.uint64(1)).view(np.int64), alone)


def _values(
    column: pl.Series, task: Task, inside: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the labels, NaN where missing; only those inside the task's space are checked."""
    if column.dtype == pl.Null:
        return np.full(column.len(), np.nan)
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise EncodingError(
            f"Task {task.name!r} reads label column {column.name!r}, which must hold numbers."
            f" Found {column.dtype}. Make it 0 and 1, such as"
            f" (pl.col({column.name!r}) == 'yes').cast(pl.Int8)."
        )
    values = column.cast(pl.Float64).to_numpy()
    rule, allowed = _domain(values, task)
    wrong = inside & ~(allowed | np.isnan(values))
    if wrong.any():
        row = int(wrong.argmax())
        raise EncodingError(
            f"Task {task.name!r} reads label column {column.name!r}, which must hold {rule}, or null"
            f" where missing. Found {column[row]} in row {row} ({int(wrong.sum())} such rows)."
        )
    return values


def _mixed(
    labels: npt.NDArray[np.float64], column: pl.Series, task: Task
) -> npt.NDArray[np.float64]:
    """Return what training takes from the label and the teacher's score, NaN where both miss."""
    if not (column.dtype.is_float() or column.dtype == pl.Null):
        raise EncodingError(
            f"Task {task.name!r} reads its teacher's scores from column {column.name!r}, which must"
            f" hold floats. Found {column.dtype}."
        )
    scores = column.cast(pl.Float64).to_numpy()
    allowed = np.isfinite(scores)
    if isinstance(task, Binary):
        allowed &= (scores >= 0) & (scores <= 1)
    elif isinstance(task, Regression) and task.bounds is not None:
        scores = np.clip(scores, *task.bounds)
    wrong = ~(allowed | np.isnan(scores))
    if wrong.any():
        row = int(wrong.argmax())
        rule = "probabilities" if isinstance(task, Binary) else "finite numbers"
        raise EncodingError(
            f"Task {task.name!r} reads its teacher's scores from column {column.name!r}, which must"
            f" hold {rule}, or null. Found {column[row]} in row {row} ({int(wrong.sum())} such rows)."
        )
    mixed = (1 - task.teacher_share) * labels + task.teacher_share * scores
    alone = np.where(np.isnan(labels), scores, labels)
    return np.where(np.isnan(mixed), alone, mixed)


def _domain(values: npt.NDArray[np.float64], task: Task) -> tuple[str, npt.NDArray[np.bool_]]:
    if isinstance(task, Binary):
        return "0 or 1", (values == 0) | (values == 1)
    if isinstance(task, Multiclass):
        whole = (values >= 0) & (values < task.num_classes) & (np.floor(values) == values)
        return f"whole numbers 0 .. {task.num_classes - 1}", whole
    if isinstance(task, Regression) and task.bounds is not None:
        low, high = task.bounds
        # A float32 label on its bound lies beside the bound's float64.
        lowest, highest = min(low, float(np.float32(low))), max(high, float(np.float32(high)))
        return f"numbers in {low} .. {high}", (values >= lowest) & (values <= highest)
    return "finite numbers", np.abs(values) <= _LARGEST


def _sample_weights(
    column: pl.Series, task: Task, observed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Return the weights; only those of observed labels are checked."""
    numeric = column.dtype.is_numeric() or column.dtype == pl.Boolean
    values = column.cast(pl.Float64).to_numpy() if numeric else np.full(column.len(), np.nan)
    wrong = observed & ~((values >= 0) & (values <= _LARGEST))
    if wrong.any():
        row = int(wrong.argmax())
        raise EncodingError(
            f"Task {task.name!r} reads sample weights from column {column.name!r}, which must hold"
            f" finite numbers of at least 0. Found {column[row]!r} in row {row}."
        )
    return values


def _parents_first(tasks: Sequence[Task]) -> list[Task]:
    """Order tasks so that the space of a parent is known before its children's."""
    by_name = {task.name: task for task in tasks}

    def depth(task: Task) -> int:
        return 0 if task.within is None else 1 + depth(by_name[task.within])

    return sorted(tasks, key=depth)
