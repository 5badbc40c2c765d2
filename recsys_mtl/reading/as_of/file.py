"""The past as a flat table: a column per array, and what they mean in the table's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading.as_of.keys import KeyBook
from recsys_mtl.reading.as_of.plan import Ledger, Plan
from recsys_mtl.reading.as_of.run import Past
from recsys_mtl.reading.as_of.sums import Sums
from recsys_mtl.reading.as_of.trails import Steps

STATE_VERSION = 1
_HEADER = b"recsys_mtl.as_of"
_DAMAGED = (pa.ArrowException, pl.exceptions.PolarsError, ValueError, KeyError, TypeError)


def write_past(plan: Plan, past: Past) -> pa.Table:
    """Return the past as a table; columns shorter than the longest end in nulls."""
    columns = dict(_columns(plan, past))
    header = {
        "version": STATE_VERSION,
        "definition": definition_of(plan),
        "begin": past.begin,
        "end": past.end,
        "lengths": {name: len(column) for name, column in columns.items()},
    }
    height = max(map(len, columns.values()), default=0)
    padded = {
        name: pa.chunked_array([column, pa.nulls(height - len(column), column.type)])
        for name, column in columns.items()
    }
    table = pa.table(padded)
    return table.replace_schema_metadata({_HEADER: json.dumps(header).encode()})


def read_past(plan: Plan, table: pa.Table) -> Past:
    """Rebuild the past from what `write_past` returned.

    Raises
    ------
    EncodingError
        If the table is damaged, of an unknown format, or of other features than the plan's.
    """
    try:
        header = json.loads((table.schema.metadata or {})[_HEADER])
        version = header["version"]
    except _DAMAGED as error:
        raise EncodingError(
            "A state of features from earlier rows must be a table that AsOfState wrote. Found another"
            f" table, or a damaged one: {error!r}."
        ) from error
    if version != STATE_VERSION:
        raise EncodingError(
            f"The state's format must be of version {STATE_VERSION}. Found {version!r}: learn it again."
        )
    if header["definition"] != definition_of(plan):
        raise EncodingError(
            "The state must be of the features and the time that the schema has. Found other ones:"
            " learn it again, or take the schema it was learned with."
        )
    try:
        frames = {
            name: pl.Series(pl.from_arrow(table.column(name).slice(0, length)))
            for name, length in header["lengths"].items()
        }
        past = _past(plan, frames, header)
        _check(plan, past)
    except _DAMAGED as error:
        raise EncodingError(f"The state is damaged: {error!r}. Learn it again.") from error
    return past


def definition_of(plan: Plan) -> dict[str, Any]:
    """Return the time and the features as JSON values."""
    found = {
        "time": plan.clock.to_dict(),
        "features": [feature.to_dict() for feature in plan.features],
    }
    return dict(json.loads(json.dumps(found)))


def _columns(plan: Plan, past: Past) -> Iterator[tuple[str, pa.Array]]:
    for number, book in enumerate(past.books):
        if book.frame is not None and plan.keys[number]:
            for name in book.frame.columns:
                yield f"key.{number}.{name}", _plain(book.frame[name])
    for number, (ledger, sums) in enumerate(zip(plan.ledgers, past.sums, strict=True)):
        for name in ("code", "index", "rows"):
            yield f"sums.{number}.{name}", pa.array(getattr(sums, name))
        for place, slot in enumerate(ledger.slots):
            count, total = sums.values[slot]
            yield f"sums.{number}.{place}.count", pa.array(count)
            yield f"sums.{number}.{place}.sum", pa.array(total)
    for number, steps in enumerate(past.steps):
        if steps.frame is not None:
            for name in steps.frame.columns:
                yield f"steps.{number}.{name}", _plain(steps.frame[name])


def _plain(column: pl.Series) -> pa.Array:
    return column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())


def _past(plan: Plan, columns: dict[str, pl.Series], header: dict[str, Any]) -> Past:
    books = [
        KeyBook(_frame(columns, f"key.{number}.", [str(part) for part in range(len(parts))]))
        for number, parts in enumerate(plan.keys)
    ]
    steps = [
        Steps(_frame(columns, f"steps.{number}.", ["code", "time", "value"]))
        for number in range(len(plan.trails))
    ]
    sums = [_sums(columns, number, ledger) for number, ledger in enumerate(plan.ledgers)]
    begin, end = header["begin"], header["end"]
    return Past(tuple(books), tuple(sums), tuple(steps), begin, end)


def _frame(columns: dict[str, pl.Series], prefix: str, names: list[str]) -> pl.DataFrame | None:
    found = [columns[prefix + name].alias(name) for name in names if prefix + name in columns]
    return pl.DataFrame(found) if found else None


def _sums(columns: dict[str, pl.Series], number: int, ledger: Ledger) -> Sums:
    code, index, rows = (
        columns[f"sums.{number}.{name}"].to_numpy() for name in ("code", "index", "rows")
    )
    values = {
        slot: (
            columns[f"sums.{number}.{place}.count"].to_numpy(),
            columns[f"sums.{number}.{place}.sum"].to_numpy(),
        )
        for place, slot in enumerate(ledger.slots)
    }
    return Sums(code, index, rows, values)


def _check(plan: Plan, past: Past) -> None:
    """Refuse codes that are none: compiled loops trust them."""
    sizes = [len(book) if plan.keys[n] else 1 for n, book in enumerate(past.books)]
    for ledger, sums in zip(plan.ledgers, past.sums, strict=True):
        lengths = {sums.index.size, sums.rows.size}
        lengths |= {part.size for parts in sums.values.values() for part in parts}
        if sums.code.size and lengths != {sums.code.size}:
            raise ValueError("arrays of different lengths")
        _check_codes(sums.code, sums.index, sizes[ledger.key])
    for trail, steps in zip(plan.trails, past.steps, strict=True):
        if steps.frame is not None:
            code, time = steps.frame["code"].to_numpy(), steps.frame["time"].to_numpy()
            _check_codes(code, time, sizes[trail.key])


def _check_codes(code: np.ndarray[Any, Any], index: np.ndarray[Any, Any], size: int) -> None:
    if code.size == 0:
        return
    apart = np.diff(code)
    if code.min() < 0 or code.max() >= size or (apart < 0).any():
        raise ValueError("codes that are none")
    if (np.diff(index)[apart == 0] < 0).any():
        raise ValueError("times out of order")
