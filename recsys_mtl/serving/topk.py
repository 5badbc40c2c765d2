"""Top-k: the best items of every user, or the best users of every item.

Equal scores are ranked by id, so the result depends on the scores alone. Rows without a user (or item) are
ranked as those of one user.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import Rows, require, scan
from recsys_mtl.serving.all_pairs import AllPairs
from recsys_mtl.serving.scorer import CHUNK_ROWS, Scorer
from recsys_mtl.serving.whole_file import write_frames
from recsys_mtl.serving.writing import check_not_read
from recsys_mtl.tables import lazy_frame, paths_of

Score = str | pl.Expr | Callable[[pl.DataFrame], Any]
"""What ranks: a score's name or an SQL expression of several, a polars expression, or a function from the
table of scores to a column."""

_TEXTS = (pl.String, pl.Categorical, pl.Enum)


@dataclass(frozen=True)
class TopK:
    """What is to be ranked.

    Parameters
    ----------
    k
        Most rows for each user (or item), from 1. There are fewer where there are fewer candidates.
    by
        The key that gets k rows: the user's or the item's column.
    score
        What ranks, the highest first; rows without a number come last.
    """

    k: int
    by: str
    score: Score

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be at least 1. Found {self.k}.")

    @property
    def column(self) -> str:
        """Name of the score's column in the result."""
        return self.score if isinstance(self.score, str) and self.score.isidentifier() else "score"

    def other(self, scorer: Scorer) -> str:
        """Return the key that is ranked.

        Raises
        ------
        SchemaError
            If `by` is not the key of the users or of the items, or the schema lacks one of them.
        """
        schema = scorer.schema
        keys = [side.key for side in (schema.user, schema.item) if side is not None]
        if len(keys) < 2 or self.by not in keys:
            raise SchemaError(
                f"by must be the key of users or of items in a schema that has both. Found"
                f" {self.by!r}; keys: {keys}."
            )
        return keys[1 - keys.index(self.by)]

    def rank_by(self, scores: pl.DataFrame) -> pl.Series:
        """Return what ranks, from the columns of scores, as float32."""
        if callable(self.score):
            found = pl.Series(self.column, self.score(scores))
        else:
            wanted = self.score
            if isinstance(wanted, str):
                wanted = pl.col(wanted) if wanted in scores.columns else _parsed(wanted)
            missing = set(wanted.meta.root_names()) - set(scores.columns)
            if missing:
                raise SchemaError(
                    f"score must be made of the model's scores. Found {sorted(missing)[0]!r}; scores:"
                    f" {scores.columns}."
                )
            found = scores.select(wanted).to_series()
        if not found.dtype.is_numeric():
            raise SchemaError(
                f"score must be one number for each row. Found {found.dtype}: choose a class, or"
                " another score."
            )
        return found.cast(pl.Float32).fill_nan(None).alias(self.column)


def top_k(
    scorer: Scorer,
    candidates: Any = None,
    *,
    k: int,
    by: str,
    score: Score,
    users: Any = None,
    items: Any = None,
    exclude: Any = None,
    context: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Return the k best items of every user, or the k best users of every item.

    Parameters
    ----------
    scorer
        A fitted model's.
    candidates
        Pairs to choose from: `Rows`, or any table that `scan` takes; a pair that stands twice counts
        once, with its higher score. By default all pairs of `users` and `items`.
    k, by, score
        See `TopK`.
    users, items
        The users and items tables. For all pairs they also say who and what there is.
    exclude
        Table of pairs to leave out, such as those that were seen: any that holds both keys.
    context
        For all pairs: one value for each column that the schema's context reads.

    Returns
    -------
    polars.DataFrame
        The two keys, ``rank`` from 1, and the score; by rising key and rank.

    Examples
    --------
    ``top_k(ranker.scorer, users="users.parquet", items="items.parquet", k=100, by="user_id",
    score="ctr")``
    """
    ask = TopK(k, by, score)
    pieces = _frames(scorer, ask, candidates, users, items, exclude, context)
    return pl.concat(list(pieces))


def top_k_to_parquet(
    scorer: Scorer,
    path: str | Path,
    candidates: Any = None,
    *,
    k: int,
    by: str,
    score: Score,
    users: Any = None,
    items: Any = None,
    exclude: Any = None,
    context: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> int:
    """Do what `top_k` does, into a parquet file that appears when it is complete; return its rows.

    For all pairs, memory is needed for the users and items tables and some `PAIRS_AT_ONCE` scores; for
    candidates, for k rows of each key and a chunk; for both, for the pairs to leave out.

    Raises
    ------
    FileExistsError
        If the file is one of those that are read.
    """
    ask = TopK(k, by, score)
    given = {"candidates": candidates, "users": users, "items": items, "exclude": exclude}
    check_not_read(Path(path), [(name, _files_of(table, name)) for name, table in given.items()])
    pieces = _frames(scorer, ask, candidates, users, items, exclude, context)
    with closing(pieces), tqdm(unit="rows", disable=not progress, desc="top k") as bar:
        return write_frames(pieces, Path(path), bar.update)


def _frames(
    scorer: Scorer,
    ask: TopK,
    candidates: Any,
    users: Any,
    items: Any,
    exclude: Any,
    context: Mapping[str, Any] | None,
) -> Generator[pl.DataFrame, None, None]:
    other = ask.other(scorer)
    seen = None if exclude is None else _seen(exclude, [ask.by, other])
    if candidates is None:
        pairs = AllPairs(scorer, users, items, by=ask.by, context=context or {})
        yield from pairs.best(ask.k, ask.rank_by, ask.column, seen)
        return
    if context is not None:
        raise SchemaError("context must be left out where candidates are given: they hold it.")
    rows = scan(candidates, users=users, items=items)
    if seen is not None:
        rows = _without(rows, seen, [ask.by, other])
    yield _best_of(scorer, rows, ask, other)


def _best_of(scorer: Scorer, rows: Rows, ask: TopK, other: str) -> pl.DataFrame:
    """Return the best of candidates, of which k for each key and some chunks are held."""
    held: list[pl.DataFrame] = []
    kept = waiting = 0
    for frame in scorer.frames(rows):
        ranked = ask.rank_by(frame.select(list(scorer.score_types)))
        held.append(frame.select(ask.by, other).with_columns(ranked))
        waiting += frame.height
        if waiting > max(kept, CHUNK_ROWS):
            held = [_best(pl.concat(held), ask, other)]
            kept, waiting = held[0].height, 0
    best = _best(pl.concat(held), ask, other)
    rank = pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over(ask.by).alias("rank")
    return best.select(ask.by, other, rank, ask.column)


def _best(frame: pl.DataFrame, ask: TopK, other: str) -> pl.DataFrame:
    order = [ask.by, ask.column, other]
    nulls_last = [False, True, False]
    ranked = frame.sort(order, descending=[False, True, False], nulls_last=nulls_last)
    once = ranked.unique([ask.by, other], keep="first", maintain_order=True)
    return once.group_by(ask.by, maintain_order=True).head(ask.k)


def _seen(exclude: Any, keys: list[str]) -> pl.LazyFrame:
    frame = lazy_frame(exclude, what="pairs to exclude")
    require(frame.collect_schema().names(), keys, "table of pairs to exclude")
    return frame.select(keys)


def _without(rows: Rows, seen: pl.LazyFrame, keys: list[str]) -> Rows:
    """Leave out pairs; their keys must be of the candidates' type, or ids would never be found."""
    require(rows.columns, keys, "interactions")
    ours, theirs = rows.interactions.collect_schema(), seen.collect_schema()
    for key in keys:
        alike = ours[key] == theirs[key] or pl.Null in (ours[key], theirs[key])
        integers = ours[key].is_integer() and theirs[key].is_integer()
        texts = ours[key] in _TEXTS and theirs[key] in _TEXTS
        if not (alike or integers or texts):
            raise EncodingError(
                f"Key {key!r} must have one type in all tables. The candidates hold {ours[key]}, the"
                f" pairs to exclude {theirs[key]}: cast one of them."
            )
    casts = [pl.col(key).cast(ours[key], strict=False) for key in keys]
    left = rows.interactions.join(seen.select(casts).unique(), on=keys, how="anti")
    return replace(rows, interactions=left, index=None)


def _files_of(table: Any, name: str) -> list[str]:
    """List the files behind a table, or behind rows and their side tables."""
    if not isinstance(table, Rows):
        return list(paths_of(table, what=name))
    sides = [side.paths for side in (table.users, table.items) if side is not None]
    return [path for paths in (table.paths, *sides) for path in paths]


def _parsed(text: str) -> pl.Expr:
    try:
        return pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise SchemaError(
            f"score must be a score's name or an SQL expression of scores. Found {text!r}: {error}."
        ) from error
