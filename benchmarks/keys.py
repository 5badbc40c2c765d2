"""The columns that the hashing benchmarks read: strings of 4 to 20 bytes and ids, all skewed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

NUM_STRINGS, NUM_LONGS, NUM_SHORTS = 12, 6, 2
"""Columns of the table: strings, int64 and int32."""
_SIZES = (
    16,
    100,
    500,
    2_000,
    10_000,
    30_000,
    100_000,
    200_000,
    300_000,
    500_000,
    700_000,
    1_000_000,
)
_NULL_COLUMNS = 5
_NULL_SHARE = 0.05
_SHORTEST_SHARE = 0.02

Integers = npt.NDArray[np.int64]


def draw(num_rows: int, num_distinct: int, rng: np.random.Generator) -> Integers:
    """Draw positions in a vocabulary by Zipf's law: the k-th value has a share of about 1 / k."""
    ranks: Integers = np.exp(rng.random(num_rows) * np.log(num_distinct + 1)).astype(np.int64)
    return np.minimum(ranks, num_distinct) - 1


def vocabulary(num_distinct: int, rng: np.random.Generator) -> pl.Series:
    """Make distinct digit strings of 4 to 20 bytes, about 12 in the mean, 4 in 5 of at most 12."""
    short, long = rng.integers(8, 13, num_distinct), rng.integers(13, 21, num_distinct)
    lengths = np.where(rng.random(num_distinct) < 0.81, short, long)
    lengths[rng.random(num_distinct) < _SHORTEST_SHARE] = 4
    number = (np.arange(num_distinct) * 2_654_435_761 % 2**32).astype(np.uint64)
    text = pl.DataFrame({"key": number}).select(pl.col("key").cast(pl.String).str.zfill(20))
    return text.select(pl.col("key").str.tail(pl.Series(lengths)))["key"]


def strings(num_rows: int, num_distinct: int, rng: np.random.Generator) -> pl.Series:
    """Draw a column of strings."""
    return vocabulary(num_distinct, rng).gather(draw(num_rows, num_distinct, rng))


def table(num_rows: int, *, seed: int = 0) -> pl.DataFrame:
    """Draw a table of 20 columns; five of them have 5 % nulls."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    for place, size in zip(range(NUM_STRINGS), _SIZES, strict=True):
        # A new series: a gathered one points all over the vocabulary, a table read from disk does not.
        columns[f"text_{place}"] = pl.Series(strings(num_rows, size, rng).to_list())
    for place in range(NUM_LONGS):
        columns[f"id_{place}"] = draw(num_rows, 10 ** (place + 1), rng) * 7_919
    for place in range(NUM_SHORTS):
        columns[f"code_{place}"] = draw(num_rows, 1_000, rng).astype(np.int32)
    frame = pl.DataFrame(columns)
    known = {name: rng.random(num_rows) >= _NULL_SHARE for name in frame.columns[:_NULL_COLUMNS]}
    return frame.with_columns(
        pl.when(pl.lit(pl.Series(keep))).then(pl.col(name)).alias(name)
        for name, keep in known.items()
    )
