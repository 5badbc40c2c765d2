"""Source: the rows to score, cut into parts that can be read on their own, in order."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.reading import Rows, SideTable, require, scan
from recsys_mtl.serving.reader import Reader, is_untyped
from recsys_mtl.tables import entries_of, is_address, is_path, paths_of

_SAMPLED = 2048
_TOGETHER = frozenset({"Agg", "Correlation", "Explode", "Len", "Over", "Quantile", "Window"})
"""SQL in polars' terms: what makes a row's value depend on other rows."""


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
    schema: dict[str, pl.DataType]
    groups: list[list[int]]
    where: pl.Expr | None
    broken: dict[int, str]
    _identity: dict[str, Any]
    repeatable: bool = True

    @classmethod
    def open(cls, given: Any, users: Any, items: Any, where: str | None, *, skip: bool) -> _Files:
        distant = [entry for entry in entries_of(given) if is_address(entry)]
        if distant:
            raise EncodingError(
                f"The interactions must be parquet files of this machine. Found {distant[0]}: read it"
                " with polars.scan_parquet and give that."
            )
        found = paths_of(given, what="interactions")
        twice = [path for path, count in Counter(map(_real, found)).items() if count > 1]
        if twice:
            raise EncodingError(
                f"Every file of the interactions must be given once. Found {twice[0]} more than once."
            )
        groups: list[list[int]] = []
        broken: dict[int, str] = {}
        for number, path in enumerate(found):
            try:
                meta = parquet.read_metadata(path)
                groups.append([meta.row_group(n).num_rows for n in range(meta.num_row_groups)])
            except (pa.ArrowException, OSError) as error:
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
        rows = scan(_readable(given, whole) if broken else given, users=users, items=items)
        schema = _types(rows, whole)
        sides = [side for side in (rows.users, rows.items) if side is not None]
        identity = {"sides": [side.paths or _contents(side) for side in sides], "where": where}
        return cls(
            rows,
            found,
            schema,
            groups,
            None if where is None else _row_by_row(where, schema),
            broken,
            _identity=identity,
        )

    def identity(self) -> dict[str, Any]:
        sides = [
            side if isinstance(side, str) else [*map(_stamp, side)]
            for side in self._identity["sides"]
        ]
        return {"files": [*map(_stamp, self.files)], **self._identity, "sides": sides}

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
        used = [] if self.where is None else self.where.meta.root_names()
        wanted = list(dict.fromkeys((*columns, *used)))
        require(list(self.schema), wanted, "interactions")
        read = Reader(self.files[part.file], {name: self.schema[name] for name in wanted})
        left = _Rest(self._chosen(read, part, columns, chunk_rows))
        frame = left.take(chunk_rows)
        if frame.width == 0:
            frame = pl.DataFrame(schema={name: self.schema[name] for name in columns})
        yield frame
        while (frame := left.take(chunk_rows)).height:
            yield frame

    def _chosen(
        self, read: Reader, part: Part, columns: Sequence[str], chunk_rows: int
    ) -> Iterator[pl.DataFrame]:
        for frame in read.frames(range(*part.groups), chunk_rows):
            try:
                kept = frame if self.where is None else frame.filter(self.where)
            except pl.exceptions.PolarsError as error:
                raise EncodingError(
                    f"The condition could not be applied to file {read.path}: {error}"
                ) from error
            yield kept.select(columns)


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
    if isinstance(source, _Table):
        source = _Table(replace(source.rows))
        parts = [Part(0, 0, 0, _SAMPLED)]
    elif isinstance(source, _Files):
        source = replace(source, where=None)  # which rows they are does not matter
    for part in parts:
        with suppress(EncodingError):  # a broken part is told when its turn comes
            for frame in source.frames(part, columns, _SAMPLED):
                if frame.height:
                    return frame.estimated_size() / frame.height
                break
    return 0.0


def _readable(given: Any, whole: list[str]) -> Any:
    """Return the files that can be read, with the columns that a folder's partitions are."""
    folder, *others = entries_of(given)
    if others or not Path(folder).is_dir():
        return whole
    stored = set(parquet.read_schema(whole[0]).names)
    below = [piece.partition("=") for piece in Path(whole[0]).relative_to(folder).parts]
    keys = [name for name, equals, _ in below if equals and name not in stored]
    if not keys:
        return whole
    parted = pl.scan_parquet(whole, glob=False, hive_partitioning=True).select(keys)
    return pl.concat([pl.scan_parquet(whole, glob=False), parted], how="horizontal")


def partitions_hint(source: Source) -> str | None:
    """Say how to have the partitions as columns, if the files lie in some."""
    if any("=" in piece for path in source.files[:1] for piece in Path(path).parts):
        return "Partitions are columns where the folder above them is given, alone."
    return None


def _contents(side: SideTable) -> str:
    """Return a hash of a side table that is in memory, or at an address."""
    try:
        frame = side.source.collect()
    except pl.exceptions.PolarsError as error:
        raise EncodingError(f"The {side.name} table could not be read: {error}") from error
    digest = hashlib.sha256(str(frame.schema).encode())
    digest.update(frame.hash_rows(seed=0).to_numpy().tobytes())
    return digest.hexdigest()


def _types(rows: Rows, files: Sequence[str]) -> dict[str, pl.DataType]:
    """Return the columns' types: those of the first file in which they have one."""
    found = dict(rows.interactions.collect_schema())
    unknown = {name for name, dtype in found.items() if is_untyped(dtype)}
    for file in files if unknown else ():
        stored = parquet.read_schema(file)
        fields = [stored.field(name) for name in unknown & set(stored.names)]
        its = pl.DataFrame(pa.schema(fields).empty_table()).schema
        better = {name for name, dtype in its.items() if not is_untyped(dtype)}
        found |= {name: its[name] for name in its if name in better or found[name] == pl.Null}
        unknown = {name for name in unknown if is_untyped(found[name])}
        if not unknown:
            break
    return found


def _row_by_row(where: str, schema: dict[str, pl.DataType]) -> pl.Expr:
    """Return a condition that can be applied to some rows at a time.

    Raises
    ------
    SchemaError
        If it is no condition on these columns, or whether a row is kept depends on other rows.
    """
    try:
        found = pl.sql_expr(where)
        pl.DataFrame(schema=schema).filter(found)
    except (pl.exceptions.PolarsError, ValueError) as error:
        raise SchemaError(
            f"where must be an SQL condition on the interactions. Found {where!r}: {error}. (A date is"
            " written DATE '2026-01-31'.)"
        ) from error

    def kinds(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, list):
            for one in node:
                yield from kinds(one)
        elif isinstance(node, dict):
            for name, value in node.items():
                yield name
                if name == "function" and isinstance(value, dict):
                    yield from value  # not the kinds of string or list functions, such as a slice
                elif name not in ("Column", "Literal"):
                    yield from kinds(value)

    together = _TOGETHER & set(kinds(json.loads(found.meta.serialize(format="json"))))
    if together:
        raise SchemaError(
            f"A condition on files must look at one row at a time: they are read piece by piece. Found"
            f" {where!r}: compute its value first, and compare with that."
        )
    return found


def _real(path: str) -> str:
    return str(Path(path).resolve())


def _stamp(path: str) -> dict[str, Any]:
    """Return what tells a file from another, or from itself after a change."""
    if not Path(path).exists():
        return {"path": _real(path)}
    found = Path(path).stat()
    return {"path": _real(path), "size": found.st_size, "mtime_ns": found.st_mtime_ns}
