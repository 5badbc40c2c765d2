"""Rows: interactions and the tables of users and items beside them, read lazily."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import polars as pl

from recsys_mtl.errors import EncodingError
from recsys_mtl.tables import Kind, as_kind, damaged_place, kind_of, lazy_frame, paths_of

if TYPE_CHECKING:
    import pandas as pd

_POSITION = "__position__"
_TEXTS = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class SideTable:
    """The table of users or of items, one row each.

    Parameters
    ----------
    source
        The table, lazily.
    name
        ``"users"`` or ``"items"``, for errors.
    paths
        Its parquet files, if it comes from any, for errors.
    """

    source: pl.LazyFrame
    name: str
    paths: tuple[str, ...] = ()

    @cached_property
    def columns(self) -> list[str]:
        """Column names."""
        return self.source.collect_schema().names()

    def frame(self, key: str, columns: Iterable[str]) -> pl.DataFrame:
        """Read the key and the columns asked for; every key must stand once and not be null."""
        wanted = list(dict.fromkeys((key, *columns)))
        require(self.columns, wanted, f"{self.name} table")
        frame = _collect(self.source.select(wanted), f"{self.name} table", self.paths)
        # pandas makes floats of integer keys with a null, and NaN of the null.
        nulls = frame.select(pl.col(key).is_null() | _is_nan(frame[key])).to_series().sum()
        if nulls:
            raise EncodingError(
                f"Column {key!r} of the {self.name} table must name every row. Found {nulls} nulls."
            )
        if frame[key].n_unique() < frame.height:
            twice = frame[key].filter(frame[key].is_duplicated())
            raise EncodingError(
                f"Column {key!r} of the {self.name} table must be unique. {twice.n_unique()} keys"
                f" stand more than once, the first is {twice[0]!r}. Keep one row per key."
            )
        return frame


@dataclass(frozen=True)
class Rows:
    """Interactions to train on or to score, with their side tables; made by `scan`."""

    interactions: pl.LazyFrame
    users: SideTable | None = None
    items: SideTable | None = None
    kind: Kind = "polars"
    paths: tuple[str, ...] = ()
    index: pd.Index | None = field(default=None, compare=False)

    @cached_property
    def columns(self) -> list[str]:
        """Columns of the interactions."""
        return self.interactions.collect_schema().names()

    def filter(self, *conditions: pl.Expr | str) -> Self:
        """Keep the interactions for which all conditions are true, lazily.

        A pandas frame is filtered at once, so that its index stays with its rows.

        Parameters
        ----------
        conditions
            Polars expressions, or SQL conditions such as ``"split = 'test' and price > 1"``.

        Raises
        ------
        TypeError
            If a condition is neither.
        EncodingError
            If the interactions lack a column, or a string is no SQL condition.
        """
        predicates = [_predicate(condition) for condition in conditions]
        used = {name for predicate in predicates for name in predicate.meta.root_names()}
        require(self.columns, sorted(used), "interactions (filters see their columns only)")
        if self.index is None:
            return replace(self, interactions=self.interactions.filter(*predicates))
        numbered = self.interactions.with_row_index(_POSITION).filter(*predicates)
        frame = _collect(numbered, "interactions", self.paths)
        index = self.index.take(frame[_POSITION].to_numpy())
        return replace(self, interactions=frame.drop(_POSITION).lazy(), index=index)

    def count(self) -> int:
        """Return how many interactions there are."""
        counted = _collect(self.interactions.select(pl.len()), "interactions", self.paths)
        return int(counted.item())

    def slice(self, start: int, stop: int) -> Self:
        """Keep the interactions from one row to the one before another, lazily."""
        index = None if self.index is None else self.index[start:stop]
        return replace(self, interactions=self.interactions.slice(start, stop - start), index=index)

    def concat(self, other: Rows) -> Rows:
        """Return these interactions followed by the other's; both must have the same side tables."""
        for one, two in ((self.users, other.users), (self.items, other.items)):
            if one is not two and (one is None or two is None or one.source is not two.source):
                raise ValueError(
                    "Rows can be joined only if they share their users and items tables."
                    " Filter both from one scan()."
                )
        shared = [name for name in self.columns if name in set(other.columns)]
        mine, its = self.interactions.collect_schema(), other.interactions.collect_schema()
        for name in shared:
            _check_joinable(name, mine[name], its[name])
        return replace(
            self,
            interactions=pl.concat(
                [self.interactions.select(shared), other.interactions.select(shared)],
                how="vertical_relaxed",
            ),
            paths=(*self.paths, *other.paths),
            index=None,
        )

    def frame(self, columns: Iterable[str]) -> pl.DataFrame:
        """Read the columns asked for of all interactions into memory."""
        return _collect(self._select(columns), "interactions", self.paths)

    def frames(self, columns: Iterable[str], *, chunk_rows: int) -> Iterator[pl.DataFrame]:
        """Read the interactions in order, at most `chunk_rows` at a time; at least one frame."""
        lazy = self._select(columns)
        empty = True
        for frame in _batches(lazy, chunk_rows, self.paths):
            for start in range(0, frame.height, chunk_rows):
                empty = False
                yield frame.slice(start, chunk_rows)
        if empty:
            yield pl.DataFrame(schema=lazy.collect_schema())

    def restore(self, frame: pl.DataFrame) -> Any:
        """Return a result, one row per interaction, as the kind of table that came in."""
        return as_kind(frame, self.kind, self.index)

    def _select(self, columns: Iterable[str]) -> pl.LazyFrame:
        wanted = list(dict.fromkeys(columns))
        require(self.columns, wanted, "interactions")
        return self.interactions.select(wanted)


def scan(interactions: Any, *, users: Any = None, items: Any = None) -> Rows:
    """Open interactions, and the users and items tables if they are kept apart.

    Parameters
    ----------
    interactions
        One row per impression: parquet paths (folders and globs too), a polars, pandas or Arrow
        table. Nothing is read yet. `Rows` are returned as they are.
    users, items
        Tables with one row per user and item, found by the schema's keys. They are encoded once per
        user and item, never joined to every interaction. A key that is absent from its table keeps
        its own id; its other features count as null, and reports count such rows.

    Examples
    --------
    >>> import polars as pl
    >>> rows = scan(pl.DataFrame({"user_id": [1, 2], "split": ["train", "test"]}))
    >>> rows.filter(pl.col("split") == "test").frame(["user_id"])["user_id"].to_list()
    [2]
    """
    if isinstance(interactions, Rows):
        if users is not None or items is not None:
            raise TypeError(
                "Rows carry their side tables already: give users= or items= to one scan."
            )
        return interactions
    frame = lazy_frame(interactions, what="interactions")
    kind = kind_of(interactions)
    index = interactions.index if kind == "pandas" else None
    return Rows(
        interactions=frame,
        users=None if users is None else _side_table(users, "users"),
        items=None if items is None else _side_table(items, "items"),
        kind=kind,
        paths=paths_of(interactions),
        index=index,
    )


def _side_table(table: Any, name: str) -> SideTable:
    return SideTable(lazy_frame(table, what=f"{name} table"), name, paths_of(table))


def require(
    columns: Sequence[str], wanted: Sequence[str], where: str, remedy: str | None = None
) -> None:
    """Raise an `EncodingError` that names the columns a table lacks, and the remedy if there is one."""
    missing = [name for name in wanted if name not in set(columns)]
    if missing:
        raise EncodingError(
            f"The {where} must have column {missing[0]!r}"
            f"{f' and {len(missing) - 1} more: {missing[1:]}' if missing[1:] else ''}."
            f" Columns found: {list(columns)}.{'' if remedy is None else f' {remedy}'}"
        )


def _is_nan(column: pl.Series) -> pl.Expr:
    return pl.col(column.name).is_nan() if column.dtype.is_float() else pl.lit(False)


def _predicate(condition: Any) -> pl.Expr:
    if isinstance(condition, pl.Expr):
        return condition
    if not isinstance(condition, str):
        raise TypeError(
            "A filter must be a polars expression, such as pl.col('split') == 'test', or a SQL"
            f" condition, such as \"split = 'test'\". Found {type(condition).__name__}."
        )
    try:
        return pl.sql_expr(condition)
    except pl.exceptions.PolarsError as error:
        raise EncodingError(
            f"A filter must be a SQL condition, such as \"split = 'test'\"."
            f" Found {condition!r}: {error}."
        ) from error


def _check_joinable(name: str, mine: pl.DataType, its: pl.DataType) -> None:
    """Refuse text beside another type: polars would make strings of ids, which are other ids."""
    if pl.Null not in (mine, its) and (mine in _TEXTS) != (its in _TEXTS):
        raise EncodingError(
            f"Column {name!r} must have one type in all rows that are joined. Found {mine} and"
            f" {its}: cast one of them."
        )


def _collect(lazy: pl.LazyFrame, what: str, paths: Sequence[str]) -> pl.DataFrame:
    try:
        return lazy.collect()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(what, paths, error) from error


def _batches(lazy: pl.LazyFrame, rows: int, paths: Sequence[str]) -> Iterator[pl.DataFrame]:
    try:
        yield from lazy.collect_batches(chunk_size=rows, maintain_order=True)
    except pl.exceptions.PolarsError as error:
        raise _unreadable("interactions", paths, error) from error


def _unreadable(what: str, paths: Sequence[str], error: Exception) -> EncodingError:
    return EncodingError(f"The {what} could not be read: {damaged_place(paths) or error}")
