"""All pairs of users and items, scored block by block; only the best of each key are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys_mtl.encoding import Batch, Part
from recsys_mtl.encoding.keys import ABSENT, KeyIndex
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import require, scan
from recsys_mtl.serving.scorer import Scorer, check_rows_alone
from recsys_mtl.tables import lazy_frame

PAIRS_AT_ONCE = 1 << 18
"""Pairs scored at once."""

Longs = npt.NDArray[np.int64]
_LOWEST = np.iinfo(np.int64).min
_LOW_BITS = 0xFFFFFFFF
_NOT_SIGN = 0x7FFFFFFF


class AllPairs:
    """Every user with every item.

    Parameters
    ----------
    scorer
        A fitted model's.
    users, items
        Tables, one row for each user and item.
    by
        The key that gets the best of the other side.
    context
        A value for every column that the schema's context reads.

    Raises
    ------
    EncodingError
        If a table or a context value is missing.
    SchemaError
        If the schema has features of earlier rows, or its context does not read a value.
    """

    def __init__(
        self, scorer: Scorer, users: Any, items: Any, *, by: str, context: Mapping[str, Any]
    ) -> None:
        schema = scorer.schema
        if users is None or items is None or schema.user is None or schema.item is None:
            raise EncodingError("All pairs need users= and items=, or give candidates.")
        check_rows_alone(scorer, "scoring all pairs, which have no time,")
        wanted = [column for feature in schema.context for column in feature.columns]
        require(list(context), wanted, "context of all pairs", "Give context={column: value}.")
        unknown = sorted(set(context) - set(wanted))
        if unknown:
            raise SchemaError(
                f"The context of all pairs must be columns that the schema's context reads: {wanted}."
                f" Found {unknown[0]!r}."
            )
        self._scorer = scorer
        sides = [_sorted(users, schema.user.key, "users"), _sorted(items, schema.item.key, "items")]
        self._by = 0 if by == schema.user.key else 1
        self._keys = [
            frame[side.key] for frame, side in zip(sides, (schema.user, schema.item), strict=True)
        ]
        self.empty = any(keys.is_empty() for keys in self._keys)
        if not self.empty:
            first = pl.DataFrame([keys.head(1) for keys in self._keys])
            one = first.with_columns(pl.lit(value).alias(name) for name, value in context.items())
            rows = scan(one, users=sides[0], items=sides[1])
            self._parts = scorer.encoder.encode(rows, labels="none").parts

    def best(
        self,
        k: int,
        rank_by: Callable[[pl.DataFrame], pl.Series],
        column: str,
        exclude: pl.LazyFrame | None,
    ) -> Iterator[pl.DataFrame]:
        """Yield the k best for some keys at a time: both keys, the rank from 1, and the score.

        Parameters
        ----------
        k
            Rows for each key, at most.
        rank_by
            Makes the ranking score of the table of scores.
        column
            Its name in the result.
        exclude
            Pairs to leave out.
        """
        ours, theirs = self._keys[self._by], self._keys[1 - self._by]
        if self.empty:
            yield self._frame(np.zeros(0, np.int64), np.zeros((0, k), np.int64), column)
            return
        seen = _Seen(ours, theirs, exclude)
        forward = self._scorer.forward(num_pairs=len(ours) * len(theirs))
        step = max(1, PAIRS_AT_ONCE // len(theirs))
        for start in range(0, len(ours), step):
            rows = np.arange(start, min(start + step, len(ours)))
            best = np.empty((rows.size, 0), np.int64)
            for first in range(0, len(theirs), PAIRS_AT_ONCE):
                others = np.arange(first, min(first + PAIRS_AT_ONCE, len(theirs)))
                batch = self._batch(rows, others)
                scores = pl.DataFrame(self._scorer.scores(batch, forward))
                ranked = rank_by(scores).cast(pl.Float32).fill_null(float("nan")).to_numpy()
                found = order_keys(ranked.reshape(rows.size, others.size), first)
                seen.strike(found, start, first)
                best = largest(np.concatenate([best, found], axis=1), k)
            yield self._frame(rows, best, column)

    def _batch(self, rows: Longs, others: Longs) -> Batch:
        places = [np.repeat(rows, others.size), np.tile(others, rows.size)]
        if self._by == 1:
            places.reverse()
        num_rows = places[0].size
        places.append(np.zeros(num_rows, np.int64))  # the context, if there is one
        parts = [Part(part.block, own) for part, own in zip(self._parts, places, strict=False)]
        return Batch(num_rows, tuple(parts), pl.DataFrame())

    def _frame(self, rows: Longs, best: Longs, column: str) -> pl.DataFrame:
        ours, theirs = self._keys[self._by], self._keys[1 - self._by]
        kept = best != _LOWEST
        scores, places = from_order_keys(best[kept])
        ranks = np.broadcast_to(np.arange(1, best.shape[1] + 1, dtype=np.int32), best.shape)
        return pl.DataFrame(
            [
                ours.gather(np.repeat(rows, kept.sum(axis=1))),
                theirs.gather(places),
                pl.Series("rank", ranks[kept]),
                pl.Series(column, scores).fill_nan(None),
            ]
        )


class _Seen:
    """Pairs to leave out, by place."""

    def __init__(self, ours: pl.Series, theirs: pl.Series, pairs: pl.LazyFrame | None) -> None:
        self._ours = self._theirs = np.zeros(0, np.int64)
        if pairs is not None:
            frame = pairs.collect()
            mine = KeyIndex(ours).locate(frame[ours.name])
            its = KeyIndex(theirs).locate(frame[theirs.name])
            known = (mine != ABSENT) & (its != ABSENT)
            order = np.argsort(mine[known], kind="stable")
            self._ours, self._theirs = mine[known][order], its[known][order]

    def strike(self, found: Longs, start: int, first: int) -> None:
        """Set what is to be left out to the lowest key."""
        low, high = np.searchsorted(self._ours, [start, start + found.shape[0]])
        columns = self._theirs[low:high] - first
        inside = (columns >= 0) & (columns < found.shape[1])
        found[self._ours[low:high][inside] - start, columns[inside]] = _LOWEST


def order_keys(scores: npt.NDArray[np.float32], first: int) -> Longs:
    """Turn scores into whole numbers that rise with the score and, among equals, fall with the place.

    All differ, so the largest are the same however they are found. No number is below all.

    Parameters
    ----------
    scores
        Shape (b, n); those of one row are compared.
    first
        Place of the first column; the last must be below 2**32 - 1.
    """
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)  # -0 is 0
    rising = np.where(bits < 0, bits ^ _NOT_SIGN, bits)
    rising[np.isnan(scores)] = -_NOT_SIGN - 1
    places = np.arange(first, first + scores.shape[-1], dtype=np.int64)
    keys: Longs = (rising << 32) | (_LOW_BITS - places)
    return keys


def from_order_keys(keys: Longs) -> tuple[npt.NDArray[np.float32], Longs]:
    """Return the scores and places that `order_keys` put together."""
    rising = keys >> 32
    bits = np.where(rising < 0, rising ^ _NOT_SIGN, rising).astype(np.int32)
    return bits.view(np.float32), _LOW_BITS - (keys & _LOW_BITS)


def largest(keys: Longs, k: int) -> Longs:
    """Return the k largest of each row, falling; all of them, where there are fewer."""
    values, _ = torch.topk(torch.from_numpy(keys), min(k, keys.shape[1]), dim=1)
    found: Longs = values.numpy()
    return found


def _sorted(table: Any, key: str, name: str) -> pl.DataFrame:
    frame = lazy_frame(table, what=f"{name} table")
    if key not in frame.collect_schema().names():
        raise SchemaError(f"The {name} table must have the key {key!r}.")
    return frame.collect().sort(key)
