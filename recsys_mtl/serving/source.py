"""Source: the rows to score, cut into parts that can be read on their own, in order."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import Rows, paths_of, require, scan
from recsys_mtl.tables import is_path

_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_READ_AHEAD = 1 << 20
_SAMPLED = 2048


@dataclass(frozen=True)
class Part:
    """Rows of one file, or of the table, that make one output part.

    Parameters
    ----------
    number
        Its place among all parts.
    file
        The file, by number.
    start, stop
        Its rows within the file: the first, and the one after the last.
    groups
        Its row groups: the first, and the one after the last.
    """

    number: int
    file: int
    start: int
    stop: int
    groups: tuple[int, int] = (0, 0)


class Source(Protocol):
    """What can be scored part by part."""

    rows: Rows
    files: Sequence[str]
    broken: dict[int, str]
    repeatable: bool

    def identity(self) -> dict[str, Any]:
        """Return JSON values that change when the input does."""

    def parts(self, part_rows: int) -> list[Part]:
        """Cut into parts of about so many rows."""

    def frames(self, part: Part, columns: Sequence[str], chunk_rows: int) -> Iterator[pl.DataFrame]:
        """Read a part in order, at most so many rows at a time."""


def open_source(
    rows: Any, *, users: Any = None, items: Any = None, where: str | None = None, skip: bool = False
) -> Source:
    """Open rows to score; `skip` lists files that cannot be opened instead of raising."""
    if is_path(rows):
        return _Files.open(rows, users, items, where, skip=skip)
    opened = scan(rows) if users is None and items is None else scan(rows, users=users, items=items)
    return _Table(opened if where is None else opened.filter(where))


@dataclass
class _Table:
    """Rows in memory, or of a query: they are read once, from the first to the last."""

    rows: Rows
    files: Sequence[str] = ()
    broken: dict[int, str] = field(default_factory=dict)
    repeatable: bool = False
    _left: _Rest | None = None

    def identity(self) -> dict[str, Any]:
        return {"table": uuid.uuid4().hex}  # nobody can tell whether it is the same one

    def parts(self, part_rows: int) -> list[Part]:
        count = self.rows.count()
        starts = range(0, max(count, 1), part_rows)
        return [
            Part(number, 0, start, min(start + part_rows, count))
            for number, start in enumerate(starts)
        ]

    def frames(self, part: Part, columns: Sequence[str], chunk_rows: int) -> Iterator[pl.DataFrame]:
        if self._left is None:
            self._left = _Rest(self.rows.frames(columns, chunk_rows=chunk_rows))
        for start in range(part.start, max(part.stop, part.start + 1), chunk_rows):
            yield self._left.take(min(chunk_rows, part.stop - start))


@dataclass
class _Files:
    """Parquet files: each part is some row groups of one of them."""

    rows: Rows
    files: Sequence[str]
    schema: pl.Schema
    groups: list[list[int]]
    where: str | None
    broken: dict[int, str]
    repeatable: bool = True
    _sides: tuple[str, ...] = ()

    @classmethod
    def open(cls, given: Any, users: Any, items: Any, where: str | None, *, skip: bool) -> _Files:
        found = scan(given).paths if not skip else paths_of(given)
        groups: list[list[int]] = []
        broken: dict[int, str] = {}
        for number, path in enumerate(found):
            try:
                meta = parquet.read_metadata(path)
                groups.append([meta.row_group(n).num_rows for n in range(meta.num_row_groups)])
            except (pa.ArrowInvalid, OSError) as error:
                groups.append([])
                broken[number] = f"file {path}: {error}"
                if not skip:
                    raise EncodingError(
                        f"The interactions could not be read: {broken[number]}"
                    ) from error
        whole = [path for number, path in enumerate(found) if number not in broken]
        if not whole:
            raise EncodingError(
                "The interactions must be readable parquet. Found none that is:"
                f" {next(iter(broken.values()), given)}"
            )
        rows = scan(given if not broken else whole, users=users, items=items)
        if where is not None:
            rows.filter(where)  # says what is wrong with it before anything is read
        schema = rows.interactions.collect_schema()
        sides = tuple(
            p for side in (rows.users, rows.items) if side is not None for p in side.paths
        )
        return cls(rows, tuple(found), schema, groups, where, broken, _sides=sides)

    def identity(self) -> dict[str, Any]:
        return {
            "files": [_stamp(path) for path in self.files],
            "side_files": [_stamp(path) for path in self._sides],
            "where": self.where,
        }

    def parts(self, part_rows: int) -> list[Part]:
        made: list[Part] = []
        for number, sizes in enumerate(self.groups):
            if number in self.broken:
                continue
            first = start = stop = 0
            for place, rows in enumerate(sizes):
                stop += rows
                if stop - start >= part_rows or place == len(sizes) - 1:
                    made.append(Part(len(made), number, start, stop, (first, place + 1)))
                    first, start = place + 1, stop
            if not sizes:
                made.append(Part(len(made), number, 0, 0))
        return made

    def frames(self, part: Part, columns: Sequence[str], chunk_rows: int) -> Iterator[pl.DataFrame]:
        path = self.files[part.file]
        predicate = None if self.where is None else pl.sql_expr(self.where)
        used = [] if predicate is None else predicate.meta.root_names()
        wanted = list(dict.fromkeys((*columns, *used)))
        require(list(self.schema), wanted, "interactions")
        read = _Reader(path, {name: self.schema[name] for name in wanted})
        frames: Iterable[pl.DataFrame] = read.frames(range(*part.groups), chunk_rows)
        if predicate is not None:
            frames = (frame.filter(predicate) for frame in frames)
        left = _Rest(frame.select(columns) for frame in frames)
        frame = left.take(chunk_rows)
        if frame.width == 0:
            yield pl.DataFrame(schema={name: self.schema[name] for name in columns})
        while frame.height:
            yield frame
            frame = left.take(chunk_rows)


@dataclass
class _Rest:
    """Frames of any size, to be taken as frames of the size that is asked for."""

    frames: Iterable[pl.DataFrame]
    _held: list[pl.DataFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.frames = iter(self.frames)

    def take(self, rows: int) -> pl.DataFrame:
        """Return the next rows, fewer only at the end; without columns if there never was a frame."""
        have = sum(frame.height for frame in self._held)
        while have < rows or not self._held:
            frame = next(iter(self.frames), None)
            if frame is None:
                break
            self._held.append(frame)
            have += frame.height
        if not self._held:
            return pl.DataFrame()
        joined = pl.concat(self._held) if len(self._held) > 1 else self._held[0]
        self._held = [joined.slice(rows)]
        return joined.head(rows)


@dataclass
class _Reader:
    """One parquet file, as frames of the columns and types that all files have."""

    path: str
    schema: dict[str, pl.DataType]

    def frames(self, groups: Iterable[int], chunk_rows: int) -> Iterator[pl.DataFrame]:
        """Read row groups, streaming: at most so many rows are decoded at once."""
        try:
            file = parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=_READ_AHEAD)
        except (pa.ArrowInvalid, OSError) as error:
            raise self._unreadable("", error) from error
        with file:
            own = set(file.schema_arrow.names)
            named = [name for name in self.schema if name in own]
            partition = self._partition(own)
            for group in groups:
                try:
                    for batch in file.iter_batches(
                        chunk_rows, row_groups=[group], columns=named, use_threads=False
                    ):
                        yield self._frame(batch, partition)
                except (pa.ArrowException, OSError) as error:
                    raise self._unreadable(f", row group {group}", error) from error

    def _unreadable(self, place: str, error: Exception) -> EncodingError:
        return EncodingError(
            f"The interactions could not be read: file {self.path}{place}: {error}"
        )

    def _partition(self, own: set[str]) -> list[pl.Expr]:
        """Return the columns that the file lacks and its path names, as in day=2026-01-31."""
        pairs = (piece.partition("=") for piece in Path(self.path).parts if "=" in piece)
        named = {name: value for name, _, value in pairs}
        missing = [name for name in self.schema if name not in own]
        require([*own, *named], missing, f"file {self.path}")
        found = []
        for name in missing:
            value = None if named[name] == _NO_VALUE else unquote(named[name])
            literal = pl.Series([value], dtype=pl.String)
            dtype = self.schema[name]
            cast = literal.str.to_date() if dtype == pl.Date else literal.cast(dtype)
            found.append(pl.lit(cast[0], dtype=dtype).alias(name))
        return found

    def _frame(self, batch: pa.RecordBatch, partition: list[pl.Expr]) -> pl.DataFrame:
        frame = pl.DataFrame(pa.Table.from_batches([batch]))
        for name, dtype in self.schema.items():
            found = frame.schema.get(name)
            if found is not None and found != dtype and (found in _TEXTS) != (dtype in _TEXTS):
                raise EncodingError(
                    f"Column {name!r} must have one type in all files. Found {dtype}, and {found} in"
                    f" file {self.path}: cast one of them."
                )
        frame = frame.with_columns(partition).select(list(self.schema))
        return frame if frame.schema == self.schema else frame.cast(self.schema)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Stream(Rows):
    """Rows whose frames come from elsewhere, for an encoder that reads several parts in one go."""

    given: Iterator[pl.DataFrame] = field(default_factory=lambda: iter(()), compare=False)

    @classmethod
    def of(cls, rows: Rows, given: Iterator[pl.DataFrame]) -> Stream:
        """Take side tables and columns of `rows`, and frames from `given`."""
        return cls(rows.interactions, rows.users, rows.items, given=given)

    def frames(self, columns: Iterable[str], *, chunk_rows: int) -> Iterator[pl.DataFrame]:
        """Yield the frames given, whatever their size."""
        del columns, chunk_rows
        return self.given


def row_bytes(source: Source, parts: Sequence[Part], columns: Sequence[str]) -> float:
    """Return the bytes a row takes in memory once it is read, from the first rows there are."""
    if not source.repeatable:
        source = _Table(replace(source.rows))
        parts = [Part(0, 0, 0, _SAMPLED)]
    for part in parts:
        with suppress(EncodingError):  # a broken part is told when its turn comes
            for frame in source.frames(part, columns, _SAMPLED):
                return frame.estimated_size() / max(frame.height, 1)
    return 0.0


def _stamp(path: str) -> dict[str, Any]:
    found = Path(path).stat()
    return {"path": str(Path(path).resolve()), "size": found.st_size, "mtime_ns": found.st_mtime_ns}
