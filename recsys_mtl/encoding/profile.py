"""Profile: what training rows looked like, feature by feature, and how far other rows are from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recsys_mtl.encoding.batch import Batch, Part, Ragged
from recsys_mtl.encoding.kernels import NUM_RESERVED
from recsys_mtl.encoding.layout import InputLayout
from recsys_mtl.schema import Feature, IdFeature, ListFeature, Numeric, Schema

PROFILE_ROWS = 1 << 16
"""Training rows that a profile is taken of, where there are more."""
_BUCKETS = 10
_FLOOR = 1e-4
_NULL, _UNKNOWN = 0, 1

_Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Counts:
    """One feature of some rows.

    Parameters
    ----------
    rows, null
        Rows, and those without a value.
    values, unseen
        Ids, and those without a row in the table; a list has several.
    buckets
        Numbers between each two edges of the training rows; empty for other features.
    """

    rows: int = 0
    null: int = 0
    values: int = 0
    unseen: int = 0
    buckets: tuple[int, ...] = ()

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(self.buckets or (0,) * len(other.buckets), other.buckets, strict=True)
        return Counts(
            self.rows + other.rows,
            self.null + other.null,
            self.values + other.values,
            self.unseen + other.unseen,
            tuple(mine + its for mine, its in pairs),
        )

    @property
    def null_share(self) -> float:
        """Share of rows without a value."""
        return self.null / self.rows if self.rows else 0.0

    @property
    def unseen_share(self) -> float:
        """Share of ids that training did not keep."""
        return self.unseen / self.values if self.values else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self) | {"buckets": list(self.buckets)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_dict` returned."""
        return cls(**{**values, "buckets": tuple(values["buckets"])})


@dataclass(frozen=True)
class Profile:
    """Training rows, feature by feature.

    Parameters
    ----------
    counts
        By feature.
    edges
        By numeric feature: ascending edges between the buckets, on the scale of its input.
    """

    counts: Mapping[str, Counts]
    edges: Mapping[str, tuple[float, ...]]

    @classmethod
    def of(cls, schema: Schema, layout: InputLayout, batch: Batch) -> Self:
        """Take the profile of training rows."""
        steps = np.linspace(0, 1, _BUCKETS + 1)[1:-1]
        edges: dict[str, tuple[float, ...]] = {}
        for feature, numbers in _dense_numbers(schema, layout, batch):
            known = numbers[~np.isnan(numbers)]
            found = np.unique(np.quantile(known, steps)) if known.size else np.empty(0)
            edges[feature.name] = tuple(float(edge) for edge in found)
        empty = cls({}, edges)
        return cls(empty.count(schema, layout, batch), edges)

    def count(self, schema: Schema, layout: InputLayout, batch: Batch) -> dict[str, Counts]:
        """Count other rows by the same edges."""
        sizes = {table.name: table.num_rows for table in layout.tables}
        counts: dict[str, Counts] = {}
        for feature, part, place in _id_columns(schema, batch):
            ids = _ids(part, place)
            quantiles = isinstance(feature, Numeric)
            buckets: tuple[int, ...] = ()
            if quantiles:
                rows = sizes[f"{feature.name}.quantiles"] - NUM_RESERVED
                known = ids[ids >= NUM_RESERVED] - NUM_RESERVED
                grouped = known * min(_BUCKETS, rows) // rows
                buckets = tuple(np.bincount(grouped, minlength=min(_BUCKETS, rows)).tolist())
            null, unseen = int((ids == _NULL).sum()), int((ids == _UNKNOWN).sum())
            values = 0 if quantiles else ids.size
            counts[feature.name] = Counts(ids.size, null, values, unseen, buckets)
        for feature, part, place in _list_columns(schema, batch):
            found = part.block.lists[place]
            counts[feature.name] = _several(feature, found, part)
        for feature, numbers in _dense_numbers(schema, layout, batch):
            buckets = _bucketed(numbers, self.edges.get(feature.name, ()))
            null = numbers.size - sum(buckets)
            counts[feature.name] = Counts(numbers.size, null, buckets=buckets)
        return counts

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "counts": {name: counts.to_dict() for name, counts in self.counts.items()},
            "edges": {name: list(edges) for name, edges in self.edges.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from what `to_dict` returned."""
        counts = {name: Counts.from_dict(found) for name, found in values["counts"].items()}
        return cls(counts, {name: tuple(edges) for name, edges in values["edges"].items()})


def stability_index(trained: Counts, found: Counts) -> float | None:
    """Return the population stability index of a number's buckets; None where there are none.

    It is ``sum of (q - p) * ln(q / p)`` over the shares p in training and q now, those below 0.0001
    counted as 0.0001. By custom, below 0.1 is no change and above 0.25 a large one.
    """
    if len(trained.buckets) < 2 or not sum(trained.buckets) or not sum(found.buckets):
        return None
    p, q = (
        np.maximum(np.array(one.buckets) / sum(one.buckets), _FLOOR) for one in (trained, found)
    )
    return float(((q - p) * np.log(q / p)).sum())


def _bucketed(numbers: _Numbers, edges: Sequence[float]) -> tuple[int, ...]:
    """Count the numbers from each edge to the next; NaN is in no bucket."""
    exact = np.array(edges)
    narrow = exact.astype(np.float32)  # numbers are compared as they are, many times faster
    narrow = np.where(narrow < exact, np.nextafter(narrow, np.float32(np.inf)), narrow)
    above = [int(np.count_nonzero(numbers >= edge)) for edge in narrow]
    known = numbers.size - int(np.count_nonzero(np.isnan(numbers)))
    return tuple(more - fewer for more, fewer in itertools.pairwise([known, *above, 0]))


def _sides(schema: Schema, batch: Batch) -> Iterator[tuple[tuple[Feature, ...], Part]]:
    groups = [tuple(side.features) for side in (schema.user, schema.item) if side is not None]
    if schema.context:
        groups.append(tuple(schema.context))
    yield from zip(groups, batch.parts, strict=True)


def _id_columns(schema: Schema, batch: Batch) -> Iterator[tuple[Feature, Part, int]]:
    for features, part in _sides(schema, batch):
        own = [one for one in features if _is_one_id(one)]
        yield from ((feature, part, place) for place, feature in enumerate(own))


def _list_columns(schema: Schema, batch: Batch) -> Iterator[tuple[IdFeature, Part, int]]:
    for features, part in _sides(schema, batch):
        own = [one for one in features if isinstance(one, IdFeature) and not _is_one_id(one)]
        yield from ((feature, part, place) for place, feature in enumerate(own))


def _is_one_id(feature: Feature) -> bool:
    if isinstance(feature, IdFeature):
        return not isinstance(feature, ListFeature) and feature.num_lookups == 1
    return isinstance(feature, Numeric) and feature.scaling == "quantile"


def _dense_numbers(
    schema: Schema, layout: InputLayout, batch: Batch
) -> Iterator[tuple[Feature, _Numbers]]:
    """Yield numbers as the network reads them, NaN where missing."""
    widths = dict(layout.dense_names)
    for features, part in _sides(schema, batch):
        start = 0
        for feature in features:
            width = widths.get(feature.name, 0)
            if isinstance(feature, Numeric) and width == 2:
                pairs = part.block.dense[:, start : start + 2]
                numbers = np.where(pairs[:, 1] > 0, np.float32(np.nan), pairs[:, 0])
                yield feature, numbers if part.rows is None else numbers[part.rows]
            start += width


def _ids(part: Part, place: int) -> npt.NDArray[np.int32]:
    ids = part.block.ids[:, place]
    return ids if part.rows is None else ids[part.rows]


def _several(feature: IdFeature, found: Ragged, part: Part) -> Counts:
    """Count a list, or one id that is looked up by several hashes."""
    listed = isinstance(feature, ListFeature)
    used = np.ones(len(found.offsets) - 1, np.int64)
    if part.rows is not None:
        used = np.bincount(part.rows, minlength=used.size)
    lengths = np.diff(found.offsets)
    each = np.repeat(used, lengths)
    null = int(used[lengths == 0].sum())
    if not listed:
        null += int(each[found.values == _NULL].sum()) // feature.num_lookups
    unseen = int(each[found.values == _UNKNOWN].sum())
    return Counts(int(used.sum()), null, int(each.sum()), unseen)
