"""A first proposal of what the columns of a table mean."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from recsys_mtl.errors import SchemaError
from recsys_mtl.schema.features import Bag, Categorical, Feature, Numeric, Vector
from recsys_mtl.schema.tasks import Binary, Regression, Task
from recsys_mtl.tables import lazy_frame

_log = logging.getLogger(__name__)

_SAMPLE_ROWS = 200_000
_MAX_CODES = 64
_SEPARATORS = ("|", ",", ";")
_JOINED_SHARE = 0.1
_TEXTS = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class Proposal:
    """Features by side, and tasks."""

    user: tuple[Feature, ...]
    item: tuple[Feature, ...]
    context: tuple[Feature, ...]
    tasks: tuple[Task, ...]


def propose(
    table: Any,
    *,
    user: str | None,
    item: str | None,
    tasks: Sequence[Task | str],
    users: Any,
    items: Any,
    exclude: Iterable[str],
) -> Proposal:
    """Propose features and tasks; see `Schema.infer`. Reads the first 200,000 rows of each table."""
    frame = _sample(table, "interactions")
    given = [user, item, *(task for task in tasks if isinstance(task, str))]
    lacking = [name for name in given if name is not None and name not in frame.columns]
    if lacking:
        raise SchemaError(
            f"The interactions must have column {lacking[0]!r}. Columns found: {frame.columns}."
        )
    found = tuple(
        task if isinstance(task, Task) else _task(frame[task], user, item) for task in tasks
    )
    skip = {*exclude, *(task.label for task in found)}
    skip |= {task.sample_weight for task in found if task.sample_weight is not None}
    sides: dict[str | None, list[Feature]] = {"user": [], "item": [], None: []}
    for name, key, own in (("user", user, users), ("item", item, items)):
        if key is None:
            continue
        sides[name].append(Categorical(key))
        skip.add(key)
        if own is not None:
            side_frame = _sample(own, f"{name}s table")
            sides[name] += _features(side_frame, [c for c in side_frame.columns if c not in skip])
            skip |= set(side_frame.columns)
    left = [column for column in frame.columns if column not in skip]
    owner = {
        column: _owner(
            frame, column, None if users is not None else user, None if items is not None else item
        )
        for column in left
    }
    for side in sides:
        sides[side] += _features(frame, [column for column in left if owner[column] == side])
    return Proposal(tuple(sides["user"]), tuple(sides["item"]), tuple(sides[None]), found)


def _sample(table: Any, what: str) -> pl.DataFrame:
    frame = lazy_frame(table, what=what).head(_SAMPLE_ROWS).collect()
    if frame.is_empty():
        raise SchemaError(
            f"The {what} must hold rows to infer a schema from. Found an empty table."
        )
    return frame


def _task(column: pl.Series, user: str | None, item: str | None) -> Task:
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise SchemaError(f"Label column {column.name!r} must hold numbers. Found {column.dtype}.")
    short = column.name.removeprefix("label_")
    name = column.name if short in {user, item} else short
    values = set(column.drop_nulls().drop_nans().unique().cast(pl.Float64))
    return (
        Binary(name, label=column.name)
        if values <= {0.0, 1.0}
        else Regression(name, label=column.name)
    )


def _owner(frame: pl.DataFrame, column: str, user: str | None, item: str | None) -> str | None:
    """Tell on which side a column of the interactions never varies."""
    for side, key in (("user", user), ("item", item)):
        if key is None or frame[key].n_unique() == frame.height:
            continue
        per_key = frame.group_by(key).agg(pl.col(column).n_unique().alias("values"))
        if per_key["values"].max() == 1:
            return side
    return None


def _features(frame: pl.DataFrame, columns: Iterable[str]) -> list[Feature]:
    proposed = {column: _feature(frame[column]) for column in columns}
    skipped = [column for column, feature in proposed.items() if feature is None]
    if skipped:
        _log.info("columns left out, constant or times or of unknown use: %s", skipped)
    return [feature for feature in proposed.values() if feature is not None]


def _feature(column: pl.Series) -> Feature | None:
    dtype = column.dtype
    if isinstance(dtype, pl.Array) and dtype.inner.is_numeric():
        return Vector(column.name, dim=dtype.size)
    if isinstance(dtype, pl.List):
        return Bag(column.name)
    if column.n_unique() <= 1:
        return None
    if dtype in _TEXTS:
        separator = _separator(column.cast(pl.String))
        return (
            Categorical(column.name) if separator is None else Bag(column.name, separator=separator)
        )
    if dtype in (pl.Boolean, pl.Date, pl.Binary):
        return Categorical(column.name)
    if dtype.is_integer():
        is_id = column.name.lower().endswith("id") or column.n_unique() <= _MAX_CODES
        return Categorical(column.name) if is_id else Numeric(column.name)
    return Numeric(column.name) if dtype.is_numeric() else None


def _separator(column: pl.Series) -> str | None:
    """Return the separator of joined strings: one that makes fewer distinct pieces than strings."""
    known = column.drop_nulls()
    distinct = known.unique()
    for separator in _SEPARATORS:
        if known.str.contains(separator, literal=True).sum() <= _JOINED_SHARE * known.len():
            continue
        pieces = distinct.str.split(separator).explode(empty_as_null=False, keep_nulls=False)
        if pieces.n_unique() < distinct.len():
            return separator
    return None
