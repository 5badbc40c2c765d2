"""AsOfState: what is known of earlier rows, carried from training to scoring and from day to day."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading.as_of.file import definition_of, read_past, write_past
from recsys_mtl.reading.as_of.plan import Plan
from recsys_mtl.reading.as_of.run import (
    Mode,
    Past,
    Run,
    check_columns,
    check_rows,
    read_ticks,
)
from recsys_mtl.reading.scan import Rows, scan
from recsys_mtl.schema import Schema
from recsys_mtl.tables import lazy_frame


class AsOfState:
    """Compute features from earlier rows only, the same in training, scoring and serving.

    No row sees itself, a row of the same time, or a later one, in whatever order rows stand in a
    table. Tables must come in the order of their times: a row from before the end of what is
    known is refused, as what is known would tell it its future.

    Parameters
    ----------
    schema
        Its computed features (`AsOf`, `Recency`, `Previous`, `AsOfHistory`) and its time.

    Raises
    ------
    SchemaError
        If the schema has no such feature.

    Notes
    -----
    Memory: one entry per key and feature, one more per period inside a window; the ids of a
    history; and each key's value once. Sums are exact, so that it makes no difference whether rows
    come at once or in pieces: see `QUANTUM`.

    Examples
    --------
    >>> import polars as pl
    >>> from recsys_mtl import AsOf, Binary, Schema
    >>> clicks = AsOf("clicks", key="item", label="click", statistic="sum", period=None)
    >>> schema = Schema(context=[clicks], tasks=[Binary("ctr", label="click")], time="time")
    >>> state = AsOfState(schema)
    >>> state.learn(pl.DataFrame({"item": [7, 7, 7], "time": [3, 1, 2], "click": [0, 1, 1]}))[
    ...     "clicks"
    ... ].to_list()
    [2.0, 0.0, 1.0]
    >>> state.apply(pl.DataFrame({"item": [7, 8], "time": [4, 5]}))["clicks"].to_list()
    [2.0, 0.0]
    """

    def __init__(self, schema: Schema) -> None:
        clock = schema.clock
        if clock is None or not schema.computed:
            raise SchemaError(
                "The schema must have a time and features that are computed from earlier rows. Found"
                " none: there is no state to keep."
            )
        self._plan = Plan(clock, schema.computed)
        self._past = Past.empty(self._plan)

    @property
    def end(self) -> int | None:
        """The largest time of the rows known, in the clock's unit; None where there are none."""
        return self._past.end

    @property
    def definition(self) -> dict[str, Any]:
        """The time and the features that the state is of, as JSON values."""
        return definition_of(self._plan)

    def learn(self, rows: Any, *, leave_out: bool = False) -> Any:
        """Add the features to rows with outcomes, each from earlier rows alone; then know these, too.

        Parameters
        ----------
        rows
            `Rows`, or any table `scan` takes. None may lie before `end`; several may have one time.
        leave_out
            Whether to leave out the rows of the clock's `warm_up` from what is returned.

        Returns
        -------
        Rows or table
            Of the kind that came in, its rows in their order, with a column per feature.

        Raises
        ------
        EncodingError
            If a row lies before `end`, has no time, or a column is missing or of another kind. The
            state stays as it was.
        """
        opened = scan(rows)
        frame, run = self._opened(opened, "learn")
        made = frame.with_columns(run.columns(self._plan.features))
        past = run.learned()
        index = opened.index
        if leave_out and past.begin is not None:
            kept = read_ticks(frame, self._plan.clock) >= self._warm_from(past.begin)
            made, index = made.filter(kept), None if index is None else index[kept]
        self._past = past
        return _as_given(rows, replace(opened, interactions=made.lazy(), paths=(), index=index))

    def apply(self, rows: Any) -> Any:
        """Add the features to rows whose outcomes are not known, or must not be used.

        Statistics of outcomes are those at the end of the state, with the row's own period left
        out. All others count the earlier rows of this table, too. The state stays as it was.

        Parameters
        ----------
        rows
            As for `learn`; columns of outcomes are not read.

        Returns
        -------
        Rows or table
            As for `learn`.

        Raises
        ------
        EncodingError
            As for `learn`.
        """
        opened = scan(rows)
        frame, run = self._opened(opened, "apply")
        made = frame.with_columns(run.columns(self._plan.features))
        return _as_given(rows, replace(opened, interactions=made.lazy(), paths=()))

    def update(self, rows: Any) -> None:
        """Know rows with outcomes, such as those of a day, once these are known.

        Parameters
        ----------
        rows
            As for `learn`.

        Raises
        ------
        EncodingError
            As for `learn`.
        """
        self._past = self._opened(scan(rows), "learn")[1].learned()

    def current(self, keys: Any, *, at: int | datetime | None = None) -> pl.DataFrame:
        """Return what the features are now, for a service that looks users and items up.

        Parameters
        ----------
        keys
            Table of key columns, such as one of items. Features of which it lacks a key are left out.
        at
            The moment; by default the beginning of the first period of all features after the end.

        Returns
        -------
        polars.DataFrame
            The table, with a column per feature.

        Raises
        ------
        EncodingError
            If the moment lies before the end of the state.
        """
        frame = lazy_frame(keys, what="table of keys").collect()
        found = [
            feature
            for feature in self._plan.features
            if all(
                set(asked.key_columns) <= set(frame.columns) for asked in self._plan.chain(feature)
            )
        ]
        moment = self._after_end() if at is None else at
        column = self._plan.clock.column
        timed = frame.with_columns(pl.lit(moment).alias(column))
        ticks = read_ticks(timed, self._plan.clock)
        check_rows(frame, self._plan, "alone", self._past, ticks)
        run = Run(self._plan, self._past, frame, ticks, "alone")
        return frame.with_columns(run.columns(found))

    def to_arrow(self) -> pa.Table:
        """Return the state as a table that any version of the package with its format can read."""
        return write_past(self._plan, self._past)

    @classmethod
    def from_arrow(cls, table: pa.Table, schema: Schema) -> Self:
        """Rebuild a state from what `to_arrow` returned.

        Raises
        ------
        EncodingError
            If the table is damaged, of an unknown format, or of other features than the schema's.
        """
        made = cls(schema)
        made._past = read_past(made._plan, table)
        return made

    def to_parquet(self, path: str | Path) -> None:
        """Write what `to_arrow` returns to a file, whole or not at all."""
        target = Path(path)
        part = target.with_name(f".{target.name}.part")
        parquet.write_table(self.to_arrow(), part, compression="zstd")
        part.replace(target)

    @classmethod
    def from_parquet(cls, path: Any, schema: Schema) -> Self:
        """Read a state from a file that `to_parquet` wrote, or from an open one.

        Raises
        ------
        EncodingError
            As for `from_arrow`, or if the file is no parquet.
        """
        try:
            table = parquet.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise EncodingError(f"The state must be a parquet file. {path}: {error}") from error
        return cls.from_arrow(table, schema)

    def _opened(self, rows: Rows, mode: Mode) -> tuple[pl.DataFrame, Run]:
        check_columns(rows.columns, self._plan, mode)
        frame = rows.frame(rows.columns)
        ticks = read_ticks(frame, self._plan.clock)
        check_rows(frame, self._plan, mode, self._past, ticks)
        return frame, Run(self._plan, self._past, frame, ticks, mode)

    def _warm_from(self, begin: int) -> int:
        """Return the time from which on rows are trained on."""
        clock, offset = self._plan.clock, self._plan.offset
        if clock.warm_up is None:
            return begin
        border = clock.warm_up_border
        return (begin + offset) // border * border - offset + clock.ticks(clock.warm_up)

    def _after_end(self) -> int:
        """Return where the first period after the end begins, the longest one's."""
        periods = [ledger.period for ledger in self._plan.ledgers]
        longest = max(periods + [trail.period for trail in self._plan.trails])
        offset, end = self._plan.offset, self._past.end or 0
        return ((end + offset) // longest + 1) * longest - offset


def _as_given(given: Any, rows: Rows) -> Any:
    """Return rows as `Rows` if they were given so, else as the kind of table they were."""
    return rows if isinstance(given, Rows) else rows.restore(rows.interactions.collect())
