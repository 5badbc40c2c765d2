"""What an encoder learns from training rows: which buckets exist, how numbers are scaled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.batch import FloatArray, IntArray
from recsys_mtl.encoding.columns import (
    IdType,
    count_distinct,
    id_type,
    read_ids,
    read_lists,
    read_numbers,
)
from recsys_mtl.encoding.hashing import EMPTY_ROW, NULL_ROW, NUM_RESERVED, UNKNOWN_ROW
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Feature, IdFeature, ListFeature, Numeric, Schema

Array = npt.NDArray[Any]
_MIN_BUCKETS = 2**16
_MAX_BUCKETS = 2**26
_BUCKETS_PER_VALUE = 32
_MAX_DEVIATIONS = 5.0


def default_buckets(num_distinct: int) -> int:
    """Choose a hash range: 32 buckets per distinct value, a power of two in 2**16 .. 2**26."""
    wanted = _BUCKETS_PER_VALUE * max(num_distinct, 1)
    return min(max(1 << (wanted - 1).bit_length(), _MIN_BUCKETS), _MAX_BUCKETS)


class BucketMap:
    """Give every bucket that training rows hit a row of its table.

    Rows 0, 1, 2 are null, unknown and the empty string; row 3 + i belongs to the i-th bucket kept.
    All other buckets lead to the unknown row.

    Parameters
    ----------
    num_buckets
        Hash range.
    buckets
        The buckets kept, ascending.
    """

    def __init__(self, num_buckets: int, buckets: IntArray) -> None:
        self.num_buckets = num_buckets
        self.buckets = buckets
        rows = np.full(NUM_RESERVED + num_buckets, UNKNOWN_ROW, dtype=np.int32)
        rows[[NULL_ROW, EMPTY_ROW]] = NULL_ROW, EMPTY_ROW
        rows[NUM_RESERVED + buckets] = NUM_RESERVED + np.arange(buckets.size, dtype=np.int32)
        self._rows = rows

    @classmethod
    def from_counts(cls, counts: npt.NDArray[np.int32], *, min_count: int) -> BucketMap:
        """Keep the buckets seen in `min_count` rows or more; counts are indexed by code."""
        kept = np.flatnonzero(counts[NUM_RESERVED:] >= min_count)
        return cls(counts.size - NUM_RESERVED, kept.astype(np.int64))

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return NUM_RESERVED + int(self.buckets.size)

    def rows(self, codes: IntArray) -> IntArray:
        """Return the table row of each code."""
        return self._rows[codes].astype(np.int64)


@dataclass(frozen=True)
class NumericScale:
    """How the numbers of one feature become inputs.

    Parameters
    ----------
    scaling
        As in `Numeric`.
    mean, std
        Of the training values, after the logarithm if there is one.
    edges
        Ascending quantile edges; empty for the other scalings.
    """

    scaling: str
    mean: float
    std: float
    edges: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, feature: Numeric, values: npt.NDArray[np.float64]) -> NumericScale:
        """Learn the scale from training values, NaN where missing."""
        known = _transform(feature.scaling, values[~np.isnan(values)])
        if feature.scaling == "quantile":
            steps = np.linspace(0, 1, feature.num_quantiles + 1)[1:-1]
            edges = np.unique(np.quantile(known, steps)) if known.size else np.empty(0)
            return cls(feature.scaling, 0.0, 1.0, edges)
        mean = float(known.mean()) if known.size else 0.0
        # The deviation of a constant is not 0 when its mean is rounded.
        varies = known.size > 0 and known.min() < known.max()
        return cls(feature.scaling, mean, float(known.std()) if varies else 1.0, np.empty(0))

    @property
    def num_rows(self) -> int:
        """Rows of the bucket table of ``"quantile"``: the reserved ones and one per bucket."""
        return NUM_RESERVED + int(self.edges.size) + 1

    def rows(self, values: npt.NDArray[np.float64]) -> IntArray:
        """Return the bucket's table row of each value; missing ones have the null row."""
        found = np.searchsorted(self.edges, values, side="right") + NUM_RESERVED
        return np.where(np.isnan(values), NULL_ROW, found).astype(np.int64)

    def dense(self, values: npt.NDArray[np.float64]) -> FloatArray:
        """Return shape (n, 2): the scaled number (0 where missing, at most 5 off), and a missing flag."""
        missing = np.isnan(values)
        scaled = (_transform(self.scaling, values) - self.mean) / self.std
        scaled = scaled.clip(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        return np.stack([np.where(missing, 0.0, scaled), missing], axis=1).astype(np.float32)


def _transform(scaling: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sign(values) * np.log1p(np.abs(values)) if scaling == "log" else values


@dataclass(frozen=True)
class Sample:
    """Rows to learn from, and how many training interactions refer to each."""

    frame: pl.DataFrame
    uses: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Learned:
    """All that an encoder has learned.

    Parameters
    ----------
    maps
        A bucket map per table.
    scales
        A scale per numeric feature.
    families
        What kind of ids each table was learned from; tables that saw only nulls have none.
    """

    maps: dict[str, BucketMap]
    scales: dict[str, NumericScale]
    families: dict[str, IdType]

    def check_family(self, feature: IdFeature, column: pl.Series) -> None:
        """Refuse ids of another kind than the trained ones: all of them would be unknown."""
        trained, found = self.families.get(feature.table_name), id_type(feature, column)
        if trained is not None and found is not None and trained.family != found.family:
            raise EncodingError(
                f"Feature {feature.name!r} was trained on {trained}. Found {found.dtype}: cast the"
                f" column {column.name!r}."
            )

    def state(self) -> tuple[dict[str, Any], dict[str, Array]]:
        """Return JSON values and named arrays."""
        values = {
            "tables": {name: found.num_buckets for name, found in self.maps.items()},
            "numerics": {
                name: {"scaling": scale.scaling, "mean": scale.mean, "std": scale.std}
                for name, scale in self.scales.items()
            },
            "families": {name: asdict(family) for name, family in self.families.items()},
        }
        arrays: dict[str, Array] = {f"buckets.{name}": m.buckets for name, m in self.maps.items()}
        return values, arrays | {f"edges.{name}": s.edges for name, s in self.scales.items()}

    @classmethod
    def from_state(cls, values: Mapping[str, Any], arrays: Mapping[str, Array]) -> Learned:
        """Rebuild from what `state` returned."""
        maps = {
            name: BucketMap(int(num_buckets), arrays[f"buckets.{name}"])
            for name, num_buckets in values["tables"].items()
        }
        scales = {
            name: NumericScale(**scale, edges=arrays[f"edges.{name}"])
            for name, scale in values["numerics"].items()
        }
        families = {name: IdType(**family) for name, family in values["families"].items()}
        return cls(maps, scales, families)


def learn(schema: Schema, samples: Sequence[tuple[Sequence[Feature], list[Sample]]]) -> Learned:
    """Learn from the frames each group of features is read from."""
    by_table: dict[str, list[tuple[IdFeature, Sample]]] = {}
    scales: dict[str, NumericScale] = {}
    for features, pieces in samples:
        for feature in features:
            if isinstance(feature, IdFeature):
                members = by_table.setdefault(feature.table_name, [])
                members += [(feature, piece) for piece in pieces]
            elif isinstance(feature, Numeric):
                numbers = [read_numbers(p.frame[feature.source], feature.name) for p in pieces]
                repeated = [np.repeat(x, p.uses) for x, p in zip(numbers, pieces, strict=True)]
                scales[feature.name] = NumericScale.fit(feature, np.concatenate(repeated))
    families = {name: _learn_family(name, members) for name, members in by_table.items()}
    maps = {name: _learn_map(schema, members) for name, members in by_table.items()}
    return Learned(maps, scales, {name: f for name, f in families.items() if f is not None})


def _learn_family(table: str, members: Sequence[tuple[IdFeature, Sample]]) -> IdType | None:
    """Learn what kind of ids one table holds; all the features that share it must agree."""
    first: tuple[IdFeature, IdType] | None = None
    for feature, piece in members:
        found = id_type(feature, piece.frame[feature.source])
        if found is None:
            continue
        first = first or (feature, found)
        if first[1].family != found.family:
            raise EncodingError(
                f"Features of table {table!r} must hold one kind of ids. Found {first[1]} in"
                f" {first[0].name!r} and {found} in {feature.name!r}: cast one of the columns."
            )
    return None if first is None else first[1]


def _learn_map(schema: Schema, members: Sequence[tuple[IdFeature, Sample]]) -> BucketMap:
    """Learn one table's map from all the features that share it."""
    settings = members[0][0]
    num_buckets = settings.num_buckets or default_buckets(
        sum(count_distinct(piece.frame, feature) for feature, piece in members)
    )
    counts = np.zeros(NUM_RESERVED + num_buckets, dtype=np.int32)
    for feature, piece in members:
        uses = piece.uses.astype(np.int32)
        if isinstance(feature, ListFeature):
            lists = read_lists(schema, feature, piece.frame, num_buckets)
            np.add.at(counts, lists.values, np.repeat(uses, np.diff(lists.offsets)))
        else:
            np.add.at(counts, read_ids(schema, feature, piece.frame, num_buckets), uses)
    return BucketMap.from_counts(counts, min_count=settings.min_count)
