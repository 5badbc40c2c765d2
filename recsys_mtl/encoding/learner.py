"""Learner: what an encoder learns, taken up piece by piece, so that rows may be more than fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.batch import IntArray
from recsys_mtl.encoding.columns import IdType, id_type, read_numbers
from recsys_mtl.encoding.learning import Learned, NumericScale, Sample, read_uses
from recsys_mtl.encoding.maps import BucketMap, RowMap, VocabularyMap
from recsys_mtl.encoding.sources import Words
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Feature, IdFeature, Numeric, Schema

SAMPLED_NUMBERS = 1 << 20
"""Numbers of a feature that its scale is learned from, at least, where there are more: every n-th."""
_PENDING_TOKENS = 1 << 18

_Numbers = npt.NDArray[np.float64]


class _Values:
    """The values of one table met so far, as tokens, and how often each was used."""

    def __init__(self) -> None:
        self._tokens: list[Words] = []
        self._uses: list[IntArray] = []
        self._limit = _PENDING_TOKENS

    def add(self, tokens: Words, uses: IntArray) -> None:
        """Take up more; now and then, equal ones become one."""
        self._tokens.append(tokens)
        self._uses.append(uses)
        if len(self._tokens) > 1 and sum(map(len, self._tokens)) > self._limit:
            found = pl.DataFrame(dict(zip(("token", "uses"), self.all(), strict=True)))
            merged = found.group_by("token").agg(pl.col("uses").sum())
            self._tokens = [merged["token"].to_numpy().copy()]
            self._uses = [merged["uses"].to_numpy().copy()]
            self._limit = max(_PENDING_TOKENS, 2 * merged.height)

    def all(self) -> tuple[Words, IntArray]:
        """Return the tokens, of which some may stand more than once, and their uses."""
        return np.concatenate(self._tokens), np.concatenate(self._uses)


class _Sampled:
    """Every n-th of the numbers of one feature met so far."""

    def __init__(self, stride: int) -> None:
        self._stride, self._seen = stride, 0
        self._kept: list[_Numbers] = []

    def add(self, numbers: _Numbers, uses: IntArray) -> None:
        """Take up numbers, each as often as it was used."""
        if self._stride == 1:
            self._kept.append(np.repeat(numbers, uses))
            return
        ends = np.cumsum(uses)
        total = int(ends[-1]) if ends.size else 0
        picked = np.arange(-self._seen % self._stride, total, self._stride)
        self._kept.append(numbers[np.searchsorted(ends, picked, side="right")])
        self._seen += total

    def all(self) -> _Numbers:
        """Return those kept."""
        return np.concatenate(self._kept)


class Learner:
    """Learn from the rows of all features, in any number of pieces.

    Parameters
    ----------
    schema
        What the columns mean.
    num_rows
        Training interactions in all.
    known
        What was learned before: its tables grow, its scales and kinds of ids stay.
    """

    def __init__(self, schema: Schema, num_rows: int, known: Learned | None = None) -> None:
        self._schema = schema
        self._stride = max(1, num_rows // SAMPLED_NUMBERS)
        self._known = known or Learned({}, {}, {})
        self._values: dict[str, _Values] = {}
        self._numbers: dict[str, _Sampled] = {}
        self._families: dict[str, tuple[IdFeature, IdType]] = {}

    def add(self, features: Sequence[Feature], piece: Sample) -> None:
        """Take up a piece of the rows that these features are read from.

        Raises
        ------
        EncodingError
            If a column holds what its feature does not allow.
        """
        for feature in features:
            if isinstance(feature, IdFeature):
                self._check_family(feature, piece.frame[feature.source])
                values = self._values.setdefault(feature.table_name, _Values())
                values.add(*read_uses(self._schema, feature, piece))
            elif isinstance(feature, Numeric) and feature.name not in self._known.scales:
                numbers = read_numbers(piece.frame[feature.source], feature.name)
                sampled = self._numbers.setdefault(feature.name, _Sampled(self._stride))
                sampled.add(numbers, piece.uses)

    def finish(self) -> Learned:
        """Return what was learned."""
        maps: dict[str, RowMap] = {}
        scales: dict[str, NumericScale] = {}
        families = {name: kind for name, (_, kind) in self._families.items()}
        for feature in self._schema.features:
            if isinstance(feature, IdFeature):
                name = feature.table_name
                if name not in maps:
                    maps[name] = self._map(feature, *self._values.pop(name).all())
            elif isinstance(feature, Numeric):
                name = feature.name
                scales[name] = self._known.scales.get(name) or NumericScale.fit(
                    feature, self._numbers.pop(name).all()
                )
        known = {name: kind for name, kind in self._known.families.items() if name in maps}
        return Learned(maps, scales, families | known)

    def _check_family(self, feature: IdFeature, column: pl.Series) -> None:
        """Refuse a column whose ids are of another kind than those of the table met so far."""
        self._known.check_family(feature, column)
        found = id_type(feature, column)
        if found is None:
            return
        first, kind = self._families.setdefault(feature.table_name, (feature, found))
        if kind.family != found.family:
            raise EncodingError(
                f"Features of table {feature.table_name!r} must hold one kind of ids. Found {kind} in"
                f" {first.name!r} and {found} in {feature.name!r}: cast one of the columns."
            )

    def _map(self, feature: IdFeature, tokens: Words, uses: IntArray) -> RowMap:
        """Learn one table's map, or let a known one grow."""
        known, least = self._known.maps.get(feature.table_name), feature.min_count
        if feature.vocabulary is not None and isinstance(known, VocabularyMap):
            return known.grown(tokens, uses, size=feature.vocabulary, min_count=least)
        if isinstance(known, BucketMap):
            return known.grown(tokens, uses, num_hashes=feature.num_lookups, min_count=least)
        if feature.vocabulary is not None:
            return VocabularyMap.learn(
                tokens,
                uses,
                size=feature.vocabulary,
                num_buckets=feature.num_buckets,
                min_count=least,
            )
        return BucketMap.learn(
            tokens,
            uses,
            num_buckets=feature.num_buckets,
            num_hashes=feature.num_lookups,
            min_count=least,
        )
