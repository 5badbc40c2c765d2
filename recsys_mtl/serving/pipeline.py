"""Pipeline: reading, encoding and the network at work at the same time, results in order.

One thread reads, one encodes, some compute; the caller takes what is done and writes it. Queues between
them are short, so memory is a few chunks, and an error anywhere ends all of them and is raised here.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import polars as pl

from recsys_mtl.encoding import Encoder
from recsys_mtl.encoding.profile import Counts, Profile
from recsys_mtl.encoding.sides import EncodedSide
from recsys_mtl.errors import EncodingError
from recsys_mtl.serving.forward import Forward, Pending
from recsys_mtl.serving.source import Part, Source, Stream

CHUNKS_HELD = 6
"""Chunks in memory at once: being read, waiting, being encoded, scored (two) and written."""
_WAIT = 0.1

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """A chunk of a part, read.

    Parameters
    ----------
    part
        What it belongs to.
    frame
        Its rows.
    start
        Rows of the part before it.
    last
        Whether it ends the part.
    """

    part: Part
    frame: pl.DataFrame
    start: int
    last: bool


@dataclass(frozen=True)
class Scored:
    """A chunk whose scores are being computed.

    Parameters
    ----------
    piece
        The chunk.
    pending
        Its scores.
    counts
        Its features, by name.
    absent
        Rows whose user or item its side table lacks, by side.
    """

    piece: Piece
    pending: Pending
    counts: dict[str, Counts]
    absent: dict[str, int]


class PartError(EncodingError):
    """A part cannot be read or encoded.

    Parameters
    ----------
    part
        Which.
    reason
        Why.
    """

    def __init__(self, part: Part, reason: str) -> None:
        super().__init__(reason)
        self.part = part


@dataclass(frozen=True)
class Plan:
    """What a pipeline reads, and how.

    Parameters
    ----------
    source
        The rows.
    columns
        Columns to read: what the encoder needs and what is carried along.
    chunk_rows
        Rows read and encoded at once.
    sides
        Side tables, encoded.
    """

    source: Source
    columns: Sequence[str]
    chunk_rows: int
    sides: dict[str, EncodedSide]


def score_pieces(
    encoder: Encoder, forward: Forward, plan: Plan, parts: Iterable[Part]
) -> Generator[Scored, None, None]:
    """Score parts chunk by chunk, in order; close the iterator to end its threads early.

    Raises
    ------
    PartError
        If a part cannot be read or encoded; those before it have come out whole.
    """
    ending = threading.Event()
    read = _Channel[Piece](ending)
    encoded = _Channel[Scored](ending)
    threads = [
        threading.Thread(target=read.fill, args=(_pieces(plan, parts),), name="scoring-read"),
        threading.Thread(
            target=encoded.fill,
            args=(_encoded(encoder, forward, plan, read),),
            name="scoring-encode",
        ),
    ]
    try:
        for thread in threads:
            thread.start()
        yield from encoded
    finally:
        ending.set()
        for thread in threads:
            if thread.ident is not None:  # it was started
                thread.join()
        for left in encoded.drain():
            left.pending.cancel()


def _pieces(plan: Plan, parts: Iterable[Part]) -> Iterator[Piece]:
    for part in parts:
        held: pl.DataFrame | None = None
        start = 0
        try:
            for frame in plan.source.frames(part, plan.columns, plan.chunk_rows):
                if held is not None:
                    yield Piece(part, held, start, last=False)
                    start += held.height
                held = frame
        except EncodingError as error:
            raise PartError(part, str(error)) from error
        if held is not None:
            yield Piece(part, held, start, last=True)


def _encoded(
    encoder: Encoder, forward: Forward, plan: Plan, read: Iterable[Piece]
) -> Iterator[Scored]:
    taken: deque[Piece] = deque()

    def frames() -> Iterator[pl.DataFrame]:
        for piece in read:
            taken.append(piece)
            yield piece.frame

    profile = encoder.profile or Profile({}, {})
    layout = encoder.layout
    batches = encoder.batches(
        Stream.of(plan.source.rows, frames()), chunk_rows=plan.chunk_rows, sides=plan.sides
    )
    try:
        for batch in batches:
            piece = taken.popleft()
            pending = forward.start(batch)
            counts = profile.count(encoder.schema, layout, batch)
            yield Scored(piece, pending, counts, batch.absent)
    except EncodingError as error:
        if isinstance(error, PartError) or not taken:
            raise
        part = taken[0].part
        place = f"file {plan.source.files[part.file]}" if plan.source.files else "the table"
        row = part.start + taken[0].start
        raise PartError(part, f"In {place}, in the rows from {row}: {error.__cause__}") from error


@dataclass
class _Failed:
    error: BaseException


class _Done:
    """The end of a channel."""


@dataclass
class _Channel(Generic[T]):
    """A short queue that ends, fails, or is given up by either side."""

    ending: threading.Event
    _queue: queue.Queue[T | _Failed | _Done] = field(default_factory=lambda: queue.Queue(1))

    def fill(self, things: Iterator[T]) -> None:
        """Put in things until they end; an error of theirs goes in as the last."""
        last: _Failed | _Done = _Done()
        try:
            for thing in things:
                if not self._put(thing):
                    break
        except BaseException as error:  # raised again by whoever takes it out
            last = _Failed(error)
        self._put(last)

    def __iter__(self) -> Iterator[T]:
        while not self.ending.is_set():
            try:
                thing = self._queue.get(timeout=_WAIT)
            except queue.Empty:
                continue
            if isinstance(thing, _Failed):
                raise thing.error
            if isinstance(thing, _Done):
                return
            yield thing

    def drain(self) -> Iterator[T]:
        """Take out what is left."""
        while not self._queue.empty():
            thing = self._queue.get()
            if not isinstance(thing, _Failed | _Done):
                yield thing

    def _put(self, thing: T | _Failed | _Done) -> bool:
        while not self.ending.is_set():
            try:
                self._queue.put(thing, timeout=_WAIT)
            except queue.Full:
                continue
            return True
        if isinstance(thing, Scored):
            thing.pending.cancel()
        return False
