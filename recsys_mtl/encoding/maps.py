"""From hashes to the rows of one embedding table, learned from training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding import kernels
from recsys_mtl.encoding.kernels import NUM_RESERVED
from recsys_mtl.encoding.sources import Algorithm, Placement, Words, place_tokens

Buckets = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Origins = npt.NDArray[np.int64]

_MIN_BUCKETS: Final = 2**16
_MAX_BUCKETS: Final = 2**26
_BUCKETS_PER_VALUE: Final = 32
_MIN_REST_BUCKETS: Final = 1024
_WORDS_PER_REST_BUCKET: Final = 8
_NUM_MARKS: Final = 2  # tokens of null and of the empty string


def default_buckets(num_distinct: int) -> int:
    """Choose a hash range: 32 buckets per distinct value, a power of two in 2**16 .. 2**26."""
    wanted = _BUCKETS_PER_VALUE * max(num_distinct, 1)
    return min(_power_of_two(wanted, _MIN_BUCKETS), _MAX_BUCKETS)


class BucketMap:
    """Give every bucket that training rows hit a row of its table.

    Rows 0, 1, 2 are null, unknown and the empty string; row 3 + i belongs to the i-th bucket kept.
    All other buckets lead to the unknown row. A bucket costs 2 bits: a set bit where it is kept, and
    a count of the bits before every 64 of them, so that a row is found by counting bits.

    Parameters
    ----------
    num_buckets
        Hash range.
    buckets
        The buckets kept, ascending.
    """

    kind: ClassVar = "buckets"

    def __init__(self, num_buckets: int, buckets: Buckets) -> None:
        self.num_buckets = num_buckets
        self.buckets = buckets
        kept = np.zeros((num_buckets // 64 + 1, 2), np.uint64)
        bits = np.uint64(1) << (buckets & 63).astype(np.uint64)
        np.bitwise_or.at(kept[:, 0], buckets >> 6, bits)
        kept[1:, 1] = np.cumsum(np.bitwise_count(kept[:-1, 0]), dtype=np.uint64)
        self._kept = kept

    @classmethod
    def learn(
        cls,
        tokens: Words,
        uses: Counts,
        *,
        num_buckets: int | None,
        num_hashes: int = 1,
        min_count: int = 1,
    ) -> BucketMap:
        """Keep the buckets that tokens fall into, `min_count` uses or more of them.

        Parameters
        ----------
        tokens
            Of all training values.
        uses
            How many training rows each stands for, shape as tokens.
        num_buckets
            Hash range; by default `default_buckets` of the distinct values.
        num_hashes
            Buckets of each value, 1 or 2.
        min_count
            Uses below which a bucket is dropped.
        """
        if num_buckets is None:
            num_buckets = default_buckets(count_distinct(tokens))
        dtype = np.int64 if min_count > 1 else np.bool_
        counts: npt.NDArray[Any] = np.zeros(NUM_RESERVED + num_buckets, dtype)
        for number in range(num_hashes):
            placement = Placement(0, num_buckets=num_buckets, hash_number=number)
            rows = place_tokens(tokens, placement)
            if min_count > 1:
                np.add.at(counts, rows, uses)
            else:
                counts[rows] = True
        return cls(num_buckets, np.flatnonzero(counts[NUM_RESERVED:] >= min_count))

    def grown(
        self, tokens: Words, uses: Counts, *, num_hashes: int = 1, min_count: int = 1
    ) -> BucketMap:
        """Return a map of the same hash range with the buckets of this one and of more tokens.

        Parameters
        ----------
        tokens, uses, num_hashes, min_count
            As for `learn`; only uses among these tokens count.
        """
        more = self.learn(
            tokens,
            uses,
            num_buckets=self.num_buckets,
            num_hashes=num_hashes,
            min_count=min_count,
        )
        return BucketMap(self.num_buckets, np.union1d(self.buckets, more.buckets))

    def origins(self, known: RowMap) -> Origins:
        """Return for every row the row of the map that this one grew from, -1 where it is new."""
        if not isinstance(known, BucketMap):
            raise TypeError(f"known must be a BucketMap. Found {known!r}.")
        rows = np.full(self.num_rows, -1, np.int64)
        rows[:NUM_RESERVED] = np.arange(NUM_RESERVED)
        places = NUM_RESERVED + np.searchsorted(self.buckets, known.buckets)
        rows[places] = np.arange(NUM_RESERVED, known.num_rows)
        return rows

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return NUM_RESERVED + int(self.buckets.size)

    @property
    def num_bytes(self) -> int:
        """Memory of the map itself."""
        return self._kept.nbytes

    def placement(self, seed: int, algorithm: Algorithm, hash_number: int = 0) -> Placement:
        """Return how this map's table places values."""
        return Placement(
            seed,
            algorithm,
            self.num_buckets,
            hash_number=hash_number,
            kept=self._kept,
        )

    def state(self) -> tuple[dict[str, Any], npt.NDArray[Any]]:
        """Return JSON values and the array to rebuild the map from."""
        return {"kind": self.kind, "num_buckets": self.num_buckets}, self.buckets


class VocabularyMap:
    """Give each of the most frequent values a row of its own, and hash the rest into buckets.

    Rows 0, 1, 2 are null, unknown and the empty string; then come the vocabulary's rows, most frequent
    first, then the buckets'. Values are told apart by all 64 bits of their hash.

    Parameters
    ----------
    num_buckets
        Buckets of the values that the vocabulary lacks.
    tokens
        The vocabulary's hashes as tokens, most frequent first.
    """

    kind: ClassVar = "vocabulary"

    def __init__(self, num_buckets: int, tokens: Words) -> None:
        self.num_buckets = num_buckets
        self.tokens = tokens
        self._slots = hash_slots(tokens)

    @classmethod
    def learn(
        cls,
        tokens: Words,
        uses: Counts,
        *,
        size: int,
        num_buckets: int | None,
        min_count: int = 1,
    ) -> VocabularyMap:
        """Take the `size` tokens with most uses, each with `min_count` or more.

        Parameters
        ----------
        tokens, uses
            As for `BucketMap.learn`.
        size
            Most values the vocabulary may hold.
        num_buckets
            Buckets of the rest; by default a power of two, at least an eighth of the vocabulary and
            1,024.
        min_count
            Uses below which a value is left to the buckets.
        """
        kept = _by_uses(tokens, uses, min_count)[:size]
        wanted = -(-kept.size // _WORDS_PER_REST_BUCKET)
        return cls(num_buckets or _power_of_two(wanted, _MIN_REST_BUCKETS), kept)

    def grown(self, tokens: Words, uses: Counts, *, size: int, min_count: int = 1) -> VocabularyMap:
        """Return a map with more tokens behind those of this one, which keep their places.

        Parameters
        ----------
        tokens, uses, min_count
            As for `learn`; only uses among these tokens count.
        size
            Most values the vocabulary may hold; those it has stay, if they are more.
        """
        found = _by_uses(tokens, uses, min_count)
        fresh = found[~np.isin(found, self.tokens)][: max(size - self.tokens.size, 0)]
        return VocabularyMap(self.num_buckets, np.concatenate([self.tokens, fresh]))

    def origins(self, known: RowMap) -> Origins:
        """Return for every row the row of the map that this one grew from; none is new.

        A value that left its bucket for a row of its own had the bucket's row before.
        """
        if not isinstance(known, VocabularyMap):
            raise TypeError(f"known must be a VocabularyMap. Found {known!r}.")
        return np.concatenate(
            [
                np.arange(NUM_RESERVED),
                place_tokens(self.tokens, known.placement(0, "xxh64")),
                np.arange(NUM_RESERVED + known.tokens.size, known.num_rows),
            ]
        ).astype(np.int64)

    @property
    def num_rows(self) -> int:
        """Rows of the table."""
        return NUM_RESERVED + self.tokens.size + self.num_buckets

    @property
    def num_bytes(self) -> int:
        """Memory of the map itself."""
        return self._slots.nbytes

    def placement(self, seed: int, algorithm: Algorithm, hash_number: int = 0) -> Placement:
        """Return how this map's table places values."""
        return Placement(
            seed,
            algorithm,
            self.num_buckets,
            first_bucket=NUM_RESERVED + self.tokens.size,
            hash_number=hash_number,
            slots=self._slots,
        )

    def state(self) -> tuple[dict[str, Any], npt.NDArray[Any]]:
        """Return JSON values and the array to rebuild the map from."""
        return {"kind": self.kind, "num_buckets": self.num_buckets}, self.tokens


RowMap = BucketMap | VocabularyMap


def map_from_state(values: Mapping[str, Any], array: npt.NDArray[Any]) -> RowMap:
    """Rebuild a map from what its `state` returned."""
    made = {kind.kind: kind for kind in (BucketMap, VocabularyMap)}[values["kind"]]
    return made(int(values["num_buckets"]), array)


def hash_slots(tokens: Words) -> Words:
    """Return an open-addressing table, half empty: tokens, all different, and row 3 + their place."""
    slots = np.zeros((_power_of_two(2 * tokens.size, 2), 2), np.uint64)
    kernels.fill_slots(tokens, NUM_RESERVED, slots)
    return slots


def _by_uses(tokens: Words, uses: Counts, min_count: int) -> Words:
    """Return the different tokens of values with `min_count` uses or more, most used first."""
    counted = (
        pl.DataFrame({"token": tokens, "uses": uses})
        .filter(pl.col("token") >= _NUM_MARKS)
        .group_by("token")
        .agg(pl.col("uses").sum())
        .filter(pl.col("uses") >= min_count)
        .sort(["uses", "token"], descending=[True, False])
    )
    return counted["token"].to_numpy().copy()


def count_distinct(tokens: Words) -> int:
    """Count the distinct values; null is none."""
    return pl.Series(tokens).n_unique() - int((tokens == 0).any())


def _power_of_two(at_least: int, floor: int) -> int:
    return max(1 << max(at_least - 1, 0).bit_length(), floor)
