"""Collisions: which values of a table of ids share a row, and how much of the traffic that touches."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.encoder import Encoder
from recsys_mtl.encoding.kernels import UNKNOWN_ROW
from recsys_mtl.encoding.learning import Sample, read_uses
from recsys_mtl.encoding.maps import RowMap, VocabularyMap
from recsys_mtl.encoding.sources import Algorithm, Rows, Words, place_tokens
from recsys_mtl.schema import IdFeature, Schema

_Members = list[tuple[IdFeature, Sample]]

_COLUMNS: Final = {
    "table": pl.String(),
    "features": pl.List(pl.String),
    "distinct": pl.Int64(),
    "buckets": pl.Int64(),
    "rows": pl.Int64(),
    "expected": pl.Float64(),
    "observed": pl.Float64(),
    "traffic": pl.Float64(),
    "unknown": pl.Float64(),
    "map_bytes": pl.Int64(),
    "table_bytes": pl.Int64(),
    "suggested": pl.Int64(),
}
_MOST_BUCKETS_LOG2: Final = 30  # of the schema's `num_buckets`
_FIRST_VALUE: Final = 2  # tokens of null and the empty string are below


def collision_report(
    encoder: Encoder, rows: Any, *, embedding_dim: int = 16, tolerance: float = 0.03
) -> pl.DataFrame:
    """Count the values that share a row of their table, for choosing `num_buckets`.

    One row per table of ids, not per feature: a value of one feature may collide with a value of
    another that shares the table. Counted are the values of the rows given; give the training rows
    to judge a table's size. Buckets of numbers are not hashed and are left out.

    Two values are the same if their 64-bit hashes are. Among d values the chance that this is
    wrong is at most d**2 / 2**65: 3e-8 for a million. Murmur3 has 32 bits: d**2 / 2**33.

    Parameters
    ----------
    encoder
        A fitted encoder.
    rows
        `Rows`, or any table `scan` takes. A value of a side table counts once for every interaction
        that refers to it.
    embedding_dim
        Width of the tables whose features name none; for `table_bytes`.
    tolerance
        Largest expected share for `suggested`, above 0 and below 1.

    Returns
    -------
    pl.DataFrame
        A share of nothing is 0. The columns:

        - ``table``, ``features``: its name, and the features that look it up;
        - ``distinct``: different values, without null and the empty string, which have own rows;
        - ``buckets``, ``rows``: the hash range, and the rows of the table;
        - ``expected``: share of the distinct values that a random map makes collide (see Notes);
        - ``observed``: share of them that do collide, counted;
        - ``traffic``: share of all occurrences but nulls whose value collides;
        - ``unknown``: share of those whose every row is the unknown one. The two may overlap, as
          collisions are counted in the hash range, whether a bucket was kept or not;
        - ``map_bytes``, ``table_bytes``: memory of the map's lookups and of the float32 table;
        - ``suggested``: smallest power of two, as `num_buckets`, for which ``expected`` is at most
          the tolerance; null if 2**30 is too small.

    Raises
    ------
    NotFittedError
        If the encoder is not fitted.
    EncodingError
        If a column is missing or holds what the schema does not allow.

    Notes
    -----
    Of d values hashed into n buckets, ``1 - (1 - 1/n)**(d - 1)`` share theirs: each of the d - 1
    others falls elsewhere with chance 1 - 1/n (the birthday problem for one guest's birthday;
    Feller, "An Introduction to Probability Theory and Its Applications", vol. 1, 1968, II.3).

    With two hashes a value collides only if another one shares both its rows, in either order, as the
    mean of their vectors is then the same: 1/n becomes ``2 / n**2``.

    A vocabulary's values never collide; d counts the rest, and shares are still of all values.

    Examples
    --------
    >>> from recsys_mtl.schema import Binary, Categorical, Schema
    >>> schema = Schema(context=[Categorical("city", num_buckets=2)], tasks=[Binary("ctr", label="y")])
    >>> table = pl.DataFrame({"city": ["a", "b", "c", None], "y": [0, 1, 0, 1]})
    >>> report = collision_report(Encoder(schema).fit(table), table)
    >>> report.select("table", "distinct", "expected", "suggested").row(0)
    ('city', 3, 0.75, 128)
    """
    if embedding_dim < 1:
        raise ValueError(f"embedding_dim must be at least 1, got {embedding_dim}.")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must be above 0 and below 1, got {tolerance}.")
    learned = encoder.learned
    tables: dict[str, _Members] = {}
    for features, pieces in encoder.samples(rows):
        of_ids = [feature for feature in features if isinstance(feature, IdFeature)]
        for feature, piece in product(of_ids, pieces):
            learned.check_family(feature, piece.frame[feature.source])
            tables.setdefault(feature.table_name, []).append((feature, piece))
    found = []
    for name, members in tables.items():
        width = members[0][0].embedding_dim or embedding_dim
        line = _measure(encoder.schema, members, learned.maps[name], width, tolerance)
        names = list(dict.fromkeys(feature.name for feature, _ in members))
        found.append({"table": name, "features": names, **line})
    return pl.DataFrame(found, schema=_COLUMNS)


def _measure(
    schema: Schema, members: _Members, rows: RowMap, width: int, tolerance: float
) -> dict[str, Any]:
    num_hashes = members[0][0].num_lookups
    tokens, uses, traffic = _count_values(schema, members)
    shared = _shared(_lookups(tokens, rows, schema.hash, num_hashes, as_kept=False))
    unknown = (_lookups(tokens, rows, schema.hash, num_hashes) == UNKNOWN_ROW).all(axis=1)
    listed = np.isin(tokens, rows.tokens).sum() if isinstance(rows, VocabularyMap) else 0
    hashed = tokens.size - int(listed)
    part = _share(hashed, tokens.size)
    sizes = (1 << power for power in range(1, _MOST_BUCKETS_LOG2 + 1))
    fitting = (n for n in sizes if part * _expected(hashed, n, num_hashes) <= tolerance)
    return {
        "distinct": tokens.size,
        "buckets": rows.num_buckets,
        "rows": rows.num_rows,
        "expected": part * _expected(hashed, rows.num_buckets, num_hashes),
        "observed": _share(shared.sum(), tokens.size),
        "traffic": _share(uses[shared].sum(), traffic),
        "unknown": _share(uses[unknown].sum(), traffic),
        "map_bytes": rows.num_bytes,
        "table_bytes": 4 * rows.num_rows * width,
        "suggested": next(fitting, None),
    }


def _count_values(schema: Schema, members: _Members) -> tuple[Words, npt.NDArray[np.int64], int]:
    """Return the distinct values' tokens, their occurrences, and all occurrences but nulls."""
    total = pl.col("uses").sum()
    counted = []
    for feature, piece in members:
        tokens, uses = read_uses(schema, feature, piece)
        counted.append(pl.DataFrame({"token": tokens, "uses": uses}).group_by("token").agg(total))
    merged = pl.concat(counted).filter(pl.col("token") > 0).group_by("token").agg(total)
    values = merged.filter(pl.col("token") >= _FIRST_VALUE)
    return values["token"].to_numpy().copy(), values["uses"].to_numpy(), int(merged["uses"].sum())


def _lookups(
    tokens: Words, rows: RowMap, algorithm: Algorithm, num_hashes: int, *, as_kept: bool = True
) -> Rows:
    """Return each token's table rows, shape (n, num_hashes); or those if every bucket had one."""
    placements = [rows.placement(0, algorithm, number) for number in range(num_hashes)]
    if not as_kept:
        placements = [replace(one, kept=None) for one in placements]
    return np.stack([place_tokens(tokens, placement) for placement in placements], axis=1)


def _shared(placed: Rows) -> npt.NDArray[np.bool_]:
    """Mark the values whose rows, in any order, are those of another one."""
    return pl.DataFrame(np.sort(placed, axis=1)).is_duplicated().to_numpy()


def _expected(num_values: int, num_buckets: int, num_hashes: int) -> float:
    """Return the share of values that a random map makes collide."""
    pair = 1 / num_buckets if num_hashes == 1 else 2 / num_buckets**2
    return -math.expm1(max(num_values - 1, 0) * math.log1p(-pair))


def _share(part: Any, whole: int) -> float:
    return int(part) / whole if whole else 0.0
