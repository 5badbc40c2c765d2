"""The table all training benchmarks read: 20 id columns, 8 numbers, three labels.

Sizes and rates are those of a mid-sized log; values are drawn log-uniformly, so few ids make up most
rows. Labels come from a few of the columns: timing needs no more.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.schema import Binary, Categorical, Numeric, Regression, Schema

SIZES = (10, 10, 20, 50, 100, 100, 200, 500, 1_000, 1_000, 2_000, 5_000, 10_000, 10_000, 20_000,
         50_000, 100_000, 100_000, 500_000, 1_000_000)  # fmt: skip
NUM_DENSE = 8

Floats = npt.NDArray[np.float64]


def schema() -> Schema:
    """Return what the columns mean; every other id column holds strings."""
    ids = [Categorical(f"id_{place}") for place in range(len(SIZES))]
    numbers = [Numeric(f"number_{place}", scaling="standard") for place in range(NUM_DENSE)]
    return Schema(
        context=[*ids, *numbers],
        tasks=[
            Binary("interest", label="interest"),
            Binary("ctr", label="click"),
            Regression("rating", label="rating", within="ctr"),
        ],
    )


def impressions(num_rows: int, *, seed: int = 0) -> pl.DataFrame:
    """Draw rows: a click for 10 %, an interest for 30 %, a rating of 1 to 5 where clicked."""
    rng = np.random.default_rng(seed)
    columns: dict[str, pl.Series] = {}
    wish = rng.normal(size=num_rows)
    for place, size in enumerate(SIZES):
        ids = np.minimum((size ** rng.random(num_rows)).astype(np.int64), size) - 1
        wish += rng.normal(0, 0.3, min(size, 1_000))[ids % 1_000 % min(size, 1_000)]
        series = pl.Series(ids)
        columns[f"id_{place}"] = series.cast(pl.String) if place % 2 else series
    for place in range(NUM_DENSE):
        columns[f"number_{place}"] = pl.Series(rng.normal(size=num_rows).astype(np.float32))
    click = wish > np.quantile(wish, 0.9)
    stars = 1 + np.digitize(wish + rng.normal(size=num_rows), np.quantile(wish, (0.91, 0.94, 0.97)))
    columns["interest"] = pl.Series((wish > np.quantile(wish, 0.7)).astype(np.int8))
    columns["click"] = pl.Series(click.astype(np.int8))
    columns["rating"] = pl.Series(np.where(click, stars, np.nan).astype(np.float32))
    return pl.DataFrame(columns)
