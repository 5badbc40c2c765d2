"""Run: score parts into a store, whatever stops on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import AfterValidator, Field

from recsys_mtl.encoding.profile import Counts
from recsys_mtl.encoding.sides import EncodedSide
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.network.model import SCORE_ROWS
from recsys_mtl.reading import Rows, require
from recsys_mtl.serving.forward import Forward
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.pipeline import CHUNKS_HELD, PartError, Plan, Scored, score_pieces
from recsys_mtl.serving.scorer import Scorer
from recsys_mtl.serving.source import Part, Source, Stream, partitions_hint, row_bytes
from recsys_mtl.serving.store import Store
from recsys_mtl.serving.writing import GROUP_ROWS
from recsys_mtl.spec import Spec, spec

_COPIES = 3
"""A chunk's rows lie in memory as read, as columns to hash, and as numbers."""
Told = Callable[[int], object]


@spec
class ScoreOptions(Spec):
    """What is written besides ids and scores, and within which bounds.

    Parameters
    ----------
    keep
        Columns of the interactions to carry along.
    dtype
        Of the scores.
    fuse
        How scores become one more, by which to rank.
    precision
        ``"bfloat16"`` computes features and sharing in half precision.
    memory_mib
        What rows may take beside the model and the libraries.
    part_rows
        Rows of a part, at least, where its file has so many; a part is whole row groups.
    on_error
        ``"skip-file"`` leaves out a file that cannot be read or encoded, and says so.
    """

    keep: Annotated[Sequence[str], AfterValidator(tuple)] = ()
    dtype: Literal["float32", "float16"] = "float32"
    fuse: Fusion | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    memory_mib: Annotated[int, Field(ge=64)] = 1024
    part_rows: Annotated[int, Field(ge=1)] = 1 << 20
    on_error: Literal["stop", "skip-file"] = "stop"

    def identity(self) -> dict[str, object]:
        """Return what the bytes of the output depend on."""
        values = self.to_dict()
        return {name: values[name] for name in ("keep", "dtype", "fuse", "precision", "part_rows")}


@dataclass(frozen=True)
class Work:
    """All that scoring a part needs.

    Parameters
    ----------
    scorer
        The model.
    source
        The rows.
    store
        Where scores go.
    options
        How.
    columns
        Columns to read.
    names
        Names of the scores.
    sides
        Side tables, encoded.
    """

    scorer: Scorer
    source: Source
    store: Store
    options: ScoreOptions
    columns: tuple[str, ...]
    names: tuple[str, ...]
    sides: dict[str, EncodedSide]

    @classmethod
    def prepare(cls, scorer: Scorer, source: Source, store: Store, options: ScoreOptions) -> Work:
        """Check what can be checked before a row is read.

        Raises
        ------
        EncodingError, SchemaError
            If the table lacks a column, or names are taken twice.
        """
        names = score_names(scorer, options)
        require(source.rows.columns, list(options.keep), "interactions", partitions_hint(source))
        sides: dict[str, EncodedSide] = {}
        columns = (*_columns_read(scorer, source.rows, sides), *options.keep)
        return cls(scorer, source, store, options, tuple(dict.fromkeys(columns)), names, sides)

    def chunk_rows(self, parts: Sequence[Part], processes: int = 1) -> int:
        """Return how many rows to read at once within the budget: a power of 2 times a block.

        Raises
        ------
        EncodingError
            If a row group of the output does not fit.
        """
        each = _COPIES * row_bytes(self.source, parts, self.columns) + 8 * len(self.names)
        # What has been scored waits for a whole row group.
        written = row_bytes(self.source, parts, self.kept) + 8 * len(self.names)
        group = min(GROUP_ROWS, max((part.stop - part.start for part in parts), default=0))
        held = 2 * group * written
        left = self.options.memory_mib * 2**20 / processes - held
        if left < 0:
            raise EncodingError(
                f"memory_mib must be at least {math.ceil(held * processes / 2**20):,} for these rows:"
                f" written, one takes about {written:,.0f} bytes, and each process ({processes}) holds"
                f" {group:,} of them, twice. Found {self.options.memory_mib}: raise it, or carry along"
                " fewer columns."
            )
        rows = SCORE_ROWS
        while rows < GROUP_ROWS and 2 * rows * each * CHUNKS_HELD <= left:
            rows *= 2
        return rows

    @property
    def kept(self) -> list[str]:
        """Columns that are written as they were read: ids, and those carried along."""
        return list(dict.fromkeys((*self.scorer.schema.keys, *self.options.keep)))

    def table(self, scored: Scored) -> pa.Table:
        """Return ids, carried columns and scores of a chunk."""
        frame = scored.piece.frame.select(self.kept)
        found = [one.numpy() for one in scored.pending.scores()]
        return score_table(frame, found, self.names, self.options)


@dataclass
class Feed:
    """Parts to score; those that were handed out and not finished can be handed out again.

    Parameters
    ----------
    parts
        Parts in order.
    broken
        Files to leave out, and why.
    """

    parts: Iterator[Part]
    broken: dict[int, str] = field(default_factory=dict)
    _out: dict[int, Part] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Part]:
        again = [part for _, part in sorted(self._out.items())]
        for part in again:
            if part.file not in self.broken:
                yield part
        for part in self.parts:
            if part.file not in self.broken:
                self._out[part.number] = part
                yield part

    def done(self, part: Part) -> None:
        """Take note that a part is finished."""
        self._out.pop(part.number, None)


def score_parts(work: Work, feed: Feed, forward: Forward, chunk_rows: int, told: Told) -> None:
    """Score what `feed` hands out; `told` gets the number of rows of each chunk written.

    Raises
    ------
    EncodingError
        If a part cannot be read or encoded, and files may not be left out.
    """
    plan = Plan(work.source, work.columns, chunk_rows, work.sides)
    while True:
        pieces = score_pieces(work.scorer.encoder, forward, plan, feed)
        with closing(pieces):
            try:
                _write(work, feed, pieces, told)
            except PartError as error:
                if work.options.on_error == "stop" or not work.source.files:
                    raise
                feed.broken[error.part.file] = str(error)
            else:
                return


def _write(work: Work, feed: Feed, pieces: Iterable[Scored], told: Told) -> None:
    taken = iter(pieces)
    for first in taken:
        scored, part = first, first.piece.part
        table = work.table(scored)
        counts: dict[str, Counts] = {}
        absent: dict[str, int] = {}
        with work.store.part(part, table.schema) as (writer, record):
            while True:
                writer.add(table)
                told(table.num_rows)
                for name, found in scored.counts.items():
                    counts[name] = counts.get(name, Counts()) + found
                for side, rows in scored.absent.items():
                    absent[side] = absent.get(side, 0) + rows
                if scored.piece.last:
                    break
                scored = next(taken)
                table = work.table(scored)
            _check_rows(work.source, part, writer.rows)
            record["counts"] = {name: found.to_dict() for name, found in counts.items()}
            record["absent"] = absent
        feed.done(part)


def score_names(scorer: Scorer, options: ScoreOptions) -> tuple[str, ...]:
    """Return the names of the scores.

    Raises
    ------
    SchemaError
        If a name would stand twice in the output, or scores cannot be fused.
    """
    names = [*(task.name for task in scorer.schema.tasks), *scorer.model.outputs.joints]
    if options.fuse is not None:
        options.fuse.check(scorer.schema, names)
        names.append(options.fuse.name)
    twice = sorted({*names} & {*scorer.schema.keys, *options.keep})
    if twice:
        raise SchemaError(
            f"Columns of the output must have one name each. Found {twice[0]!r} for a score and for"
            " a column that is carried along: rename one."
        )
    return tuple(names)


def score_table(
    kept: pl.DataFrame, found: list[np.ndarray], names: Sequence[str], options: ScoreOptions
) -> pa.Table:
    """Return what is written: columns that are carried along, scores, and the fused one."""
    if options.fuse is not None:
        found = [*found, options.fuse(dict(zip(names, found, strict=False)))]
    carried = kept.to_arrow(compat_level=pl.CompatLevel.oldest())
    arrays = [_scores(one, options.dtype) for one in found]
    fields = [
        *carried.schema,
        *(pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)),
    ]
    return pa.table([*carried.columns, *arrays], schema=pa.schema(fields))


def _check_rows(source: Source, part: Part, rows: int) -> None:
    filtered = getattr(source, "where", None) is not None
    if rows > part.stop - part.start or (not filtered and rows != part.stop - part.start):
        raise EncodingError(
            f"Part {part.number} must hold {part.stop - part.start:,} rows. Found {rows:,}: was the"
            " input changed while it was read?"
        )


def _columns_read(scorer: Scorer, rows: Rows, sides: dict[str, EncodedSide]) -> list[str]:
    """Return what the encoder reads, having it encode no rows, which checks columns, and side tables."""
    asked: list[str] = []
    empty = pl.DataFrame(schema=rows.interactions.collect_schema())

    class _Asked(Stream):
        def frames(self, columns: Iterable[str], *, chunk_rows: int) -> Iterator[pl.DataFrame]:
            del chunk_rows
            asked.extend(columns)
            require(rows.columns, asked, "interactions")
            yield empty

    for _ in scorer.encoder.batches(_Asked.of(rows, iter(())), sides=sides):
        pass
    return asked


def _scores(values: np.ndarray, dtype: str) -> pa.Array:
    with np.errstate(over="ignore"):  # told below
        narrow = np.ascontiguousarray(values, dtype)
    lost = np.isinf(narrow) & np.isfinite(values) if dtype == "float16" else np.zeros(0, np.bool_)
    if lost.any():
        raise EncodingError(
            f"Scores must be within 65,504 for float16. Found {values[lost][0]:g}: write float32."
        )
    if narrow.ndim == 1:
        return pa.array(narrow)
    return pa.FixedSizeListArray.from_arrays(pa.array(narrow.reshape(-1)), narrow.shape[1])
