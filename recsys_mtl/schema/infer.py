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
_OUTCOMES = ("label_", "oracle_")
_SPLIT = "split"
_SEPARATORS = ("|", ",", ";")
_JOINED_SHARE = 0.1
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_IDS = (*_TEXTS, pl.Boolean, pl.Date, pl.Binary)


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
    for name, names in (("tasks", tasks), ("exclude", exclude)):
        if isinstance(names, str | Task):
            raise SchemaError(
                f"{name} must be a list of names. Found {names!r}: write [{names!r}]."
            )
    frame = _sample(table, "interactions")
    given = [user, item, *(task for task in tasks if isinstance(task, str))]
    lacking = [name for name in given if name is not None and name not in frame.columns]
    if lacking:
        raise SchemaError(
            f"The interactions must have column {lacking[0]!r}. Columns found: {frame.columns}."
        )
    own = {
        side: None if key is None or table is None else _sample(table, f"{side}s table")
        for side, key, table in (("user", user, users), ("item", item, items))
    }
    known = set(frame.columns).union(*(side.columns for side in own.values() if side is not None))
    left_out = list(exclude)
    unknown = [column for column in left_out if column not in known]
    if unknown:
        raise SchemaError(
            f"exclude must name columns of the tables. Found {unknown[0]!r}; columns: {sorted(known)}."
        )
    found = tuple(
        task if isinstance(task, Task) else _task(frame[task], user, item) for task in tasks
    )
    skip = {*left_out, *(task.label for task in found), *(k for k in (user, item) if k is not None)}
    skip |= {task.sample_weight for task in found if task.sample_weight is not None}
    skip |= {task.teacher for task in found if task.teacher is not None}
    outcomes = [c for c in sorted(known - skip) if c == _SPLIT or c.startswith(_OUTCOMES)]
    if outcomes:
        _log.info("columns left out, outcomes that a model must not see: %s", outcomes)
    skip.update(outcomes)
    sides = _side_features(frame, {"user": user, "item": item}, own, skip)
    return Proposal(tuple(sides["user"]), tuple(sides["item"]), tuple(sides[None]), found)


def _side_features(
    frame: pl.DataFrame,
    keys: dict[str, str | None],
    own: dict[str, pl.DataFrame | None],
    skip: set[str],
) -> dict[str | None, list[Feature]]:
    """Propose the features of both sides and, under None, of the context."""
    sides: dict[str | None, list[Feature]] = {side: [] for side in (*keys, None)}
    elsewhere: set[str] = set()
    for side, key in keys.items():
        sides[side] += [] if key is None else [Categorical(key)]
        table = own[side]
        if table is not None:
            columns = [column for column in table.columns if column not in skip]
            names = {c: f"{side}_{c}" if c in elsewhere else c for c in columns}
            sides[side] += _features(table, names)
            elsewhere.update(columns)
    left = [column for column in frame.columns if column not in skip | elsewhere]
    flat = {side: key for side, key in keys.items() if own[side] is None}
    owners = {column: _owner(frame, column, flat) for column in left}
    for owner, features in sides.items():
        mine = [column for column in left if owners[column] == owner]
        features.extend(_features(frame, {column: column for column in mine}))
    return sides


def _sample(table: Any, what: str) -> pl.DataFrame:
    frame = lazy_frame(table, what=what).head(_SAMPLE_ROWS).collect()
    if frame.is_empty():
        raise SchemaError(
            f"The {what} must hold rows to infer a schema from. Found an empty table."
        )
    return frame


def _task(column: pl.Series, user: str | None, item: str | None) -> Task:
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise SchemaError(
            f"Label column {column.name!r} must hold numbers. Found {column.dtype}. Make it 0 and 1,"
            f" such as (pl.col({column.name!r}) == 'yes').cast(pl.Int8)."
        )
    short = column.name.removeprefix("label_")
    name = column.name if short in {user, item} else short
    values = set(column.drop_nulls().drop_nans().unique().cast(pl.Float64))
    return (
        Binary(name, label=column.name)
        if values <= {0.0, 1.0}
        else Regression(name, label=column.name)
    )


def _owner(frame: pl.DataFrame, column: str, keys: dict[str, str | None]) -> str | None:
    """Tell on which side a column of the interactions never varies."""
    for side, key in keys.items():
        if key is None or frame[key].n_unique() == frame.height:
            continue
        per_key = frame.group_by(key).agg(pl.col(column).n_unique().alias("values"))
        if per_key["values"].max() == 1:
            return side
    return None


def _features(frame: pl.DataFrame, names: dict[str, str]) -> list[Feature]:
    """Propose a feature for each column, by the names given."""
    proposed = {column: _feature(frame[column], name) for column, name in names.items()}
    skipped = [column for column, feature in proposed.items() if feature is None]
    if skipped:
        _log.info("columns left out, constant or times or of unknown use: %s", skipped)
    return [feature for feature in proposed.values() if feature is not None]


def _feature(column: pl.Series, name: str) -> Feature | None:
    dtype = column.dtype
    source = None if name == column.name else column.name
    if isinstance(dtype, pl.List | pl.Array):
        return _list_feature(column, dtype, name, source)
    if column.n_unique() <= 1:
        return None
    if dtype in _TEXTS:
        separator = _separator(column.cast(pl.String))
        if separator is not None:
            return Bag(name, column=source, separator=separator)
    if dtype in _IDS or _holds_ids(column):
        return Categorical(name, column=source)
    return Numeric(name, column=source) if dtype.is_numeric() else None


def _list_feature(
    column: pl.Series, dtype: pl.List | pl.Array, name: str, source: str | None
) -> Feature | None:
    inner = dtype.inner
    if inner in _IDS or inner.is_integer():
        return Bag(name, column=source)
    lengths = column.cast(pl.List(inner)).list.len().drop_nulls().unique().to_list()
    if inner.is_float() and len(lengths) == 1 and lengths[0] > 0:
        return Vector(name, column=source, dim=lengths[0])
    return None


def _holds_ids(column: pl.Series) -> bool:
    named = column.name.lower().endswith("id")
    if column.dtype.is_float():  # pandas makes floats of integers with a missing value
        known = column.drop_nulls().drop_nans()
        return named and bool((known.floor() == known).all())
    return column.dtype.is_integer() and (named or column.n_unique() <= _MAX_CODES)


def _separator(column: pl.Series) -> str | None:
    """Return the separator of joined strings: one that makes fewer distinct pieces than strings."""
    known = column.drop_nulls()
    distinct = known.unique()
    for separator in _SEPARATORS:
        if known.str.contains(separator, literal=True).sum() <= _JOINED_SHARE * known.len():
            continue
        pieces = distinct.str.split(separator).explode().str.strip_chars()
        if pieces.n_unique() < distinct.len():
            return separator
    return None
