"""The last rows of each key before a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading.as_of.kernels import FloatArray, IntArray, find_earlier
from recsys_mtl.reading.as_of.keys import read_ids, read_values
from recsys_mtl.reading.as_of.plan import Trail


@dataclass(frozen=True)
class Steps:
    """What a trail holds: rows by key, time and value.

    Parameters
    ----------
    frame
        Columns ``code``, ``time`` and ``value``; None before the first row.
    """

    frame: pl.DataFrame | None = None


def own_steps(trail: Trail, frame: pl.DataFrame, codes: IntArray, ticks: IntArray) -> pl.DataFrame:
    """Return the rows of a table as steps, in the order of the table; those without a key are left out."""
    where = "A feature of earlier rows"
    if trail.column is None:
        value = pl.Series(np.zeros(frame.height, np.float64))
    elif trail.ids:
        value = read_ids(frame[trail.column], where)
    else:
        value = read_values(frame[trail.column], where)
    steps = pl.DataFrame({"code": codes, "time": ticks, "value": value})
    counts = pl.col("code") >= 0
    if trail.ids:
        counts &= pl.col("value").is_not_null()
    if trail.where is not None:
        counts &= read_values(frame[trail.where], where).fill_null(0.0) > 0
    return steps.filter(counts)


class Walk:
    """The steps that rows of one table have behind them.

    Parameters
    ----------
    trail, past
        What is kept, and what is known so far.
    own
        Steps of the table itself; None where its rows do not count for one another.
    codes, periods
        Key and period of each row, shape (n,), in the order of their times.
    num_codes
        Number of keys.
    offset
        As in `Time`, in ticks.
    """

    def __init__(
        self,
        trail: Trail,
        past: Steps,
        own: pl.DataFrame | None,
        codes: IntArray,
        periods: IntArray,
        *,
        num_codes: int,
        offset: int,
    ) -> None:
        self._trail, self._codes = trail, codes
        self._steps = _joined(trail, [frame for frame in (past.frame, own) if frame is not None])
        code = self._steps["code"].to_numpy()
        self._periods = (self._steps["time"].to_numpy() + offset) // trail.period
        counts = np.bincount(code, minlength=num_codes)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.int64)
        self._first = np.where(codes >= 0, starts[codes], 0)
        self._last = find_earlier(self._periods, starts, codes, periods, 0)

    def previous(self) -> tuple[FloatArray, FloatArray]:
        """Return time and number of each row's previous step, NaN where there is none."""
        exists = self._last > self._first
        at = self._last[exists] - 1
        time, value = (np.full(exists.size, np.nan) for _ in range(2))
        time[exists] = self._steps["time"].to_numpy()[at]
        value[exists] = self._steps["value"].cast(pl.Float64).to_numpy()[at]
        return time, value

    def lists(self, order: IntArray, max_length: int) -> pl.Series:
        """Return each row's last ids, oldest first, row ``order[i]`` of the sorted ones as the i-th."""
        last = self._last[order]
        first = np.maximum(self._first[order], last - max_length)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(last - first)])
        places = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], last - first)
        values = self._steps["value"].gather(places).to_arrow()
        listed = pa.LargeListArray.from_arrays(pa.array(offsets), values)
        return pl.Series(pl.from_arrow(listed))

    def steps(self, settled: int) -> Steps:
        """Return what must be kept after these rows, if no later row is of a period before `settled`."""
        if self._steps.is_empty():
            return Steps(self._steps)
        code = self._steps["code"].to_numpy()
        told = np.maximum(self._periods, settled - 1)
        begins = np.r_[True, (np.diff(code) != 0) | (np.diff(told) != 0)]
        ends = np.r_[np.flatnonzero(begins)[1:], code.size]
        left = ends[np.cumsum(begins) - 1] - np.arange(code.size)
        return Steps(self._steps.filter(left <= self._trail.keep))


def _joined(trail: Trail, frames: list[pl.DataFrame]) -> pl.DataFrame:
    kinds = {frame["value"].dtype for frame in frames} - {pl.Null()}
    if len(kinds) > 1:
        raise EncodingError(
            f"Column {trail.column!r} must hold one kind of ids in all tables. Found"
            f" {' and '.join(sorted(map(str, kinds)))}: cast it."
        )
    if not frames:
        kind = pl.Int64() if trail.ids else pl.Float64()
        return pl.DataFrame(schema={"code": pl.Int64(), "time": pl.Int64(), "value": kind})
    return pl.concat(frames, how="vertical_relaxed").sort("code", "time", "value")
