"""Features of earlier rows in a training run, in scoring, and in a model folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.errors import EncodingError, ModelDirError, SchemaError
from recsys_mtl.reading import AsOfState, Rows, read_ticks
from recsys_mtl.schema import Schema


@dataclass(frozen=True)
class Recalled:
    """Rows of a training run with the features of earlier rows, where the schema has any.

    Parameters
    ----------
    rows, valid
        To train on, and to validate with.
    state
        What is known at the end of `rows`; None where the schema has no such features.
    notes
        What a warm start found changed, in words.
    """

    rows: Rows
    valid: Rows | None
    state: AsOfState | None
    notes: list[str] = field(default_factory=list)


def recall(
    schema: Schema,
    rows: Rows,
    valid: Rows | None,
    *,
    known: AsOfState | None = None,
    resume: bool = False,
) -> Recalled:
    """Compute the features of earlier rows: of `rows` from themselves, of `valid` as when scoring.

    Parameters
    ----------
    schema
        What the columns mean.
    rows, valid
        Of the run; the latter must not lie before the end of the former.
    known
        What a model that the run goes on from knows; it is left as it was.
    resume
        Whether the run is one with that of the model: rows must then lie behind what is known. Else
        they may, and if they do not, the features are learned from these rows alone.

    Raises
    ------
    EncodingError
        If rows lie before what they must lie behind, or nothing is left after the warm-up.
    SchemaError
        If a run is resumed with other features of earlier rows.
    """
    if not schema.computed:
        return Recalled(rows, valid, None)
    notes: list[str] = []
    state = AsOfState(schema)
    if known is not None and known.definition == state.definition:
        if resume or _follow(rows, schema, known):
            state = copy(known)
        else:
            notes = [
                "features of earlier rows are learned from these rows alone: others came later"
            ]
    elif resume:
        raise SchemaError(
            "partial_fit needs the features of earlier rows and the time that the model has. Found other"
            " ones: keep them, or train afresh."
        )
    train: Rows = state.learn(narrowed(rows, schema), leave_out=True)
    if train.count() == 0 and rows.count() > 0:
        raise EncodingError(
            f"Rows must reach beyond the warm-up of {schema.clock}. Found none to train on: choose a"
            " shorter one."
        )
    scored: Rows | None = None if valid is None else state.apply(narrowed(valid, schema))
    return Recalled(train, scored, state, notes)


def narrowed(rows: Rows, schema: Schema, keep: Sequence[str] = ()) -> Rows:
    """Keep the columns of the interactions that a schema names, and some more."""
    named = {*schema.columns, *keep}
    kept = [name for name in rows.columns if name in named]
    return replace(rows, interactions=rows.interactions.select(kept))


def observed(state: AsOfState | None, rows: Any) -> AsOfState:
    """Return a state that knows rows, too; the one given stays as it was.

    Raises
    ------
    SchemaError
        If there is no state: the schema has no features of earlier rows.
    """
    if state is None:
        raise SchemaError(
            "observe needs features of earlier rows, such as AsOf, in the schema. Found none: what the"
            " model knows does not change from day to day."
        )
    grown = copy(state)
    grown.update(rows)
    return grown


def to_bytes(state: AsOfState | None) -> bytes | None:
    """Return a state as a parquet file's bytes, for a model folder."""
    if state is None:
        return None
    sink = io.BytesIO()
    parquet.write_table(state.to_arrow(), sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes | None, schema: Schema, path: object) -> AsOfState | None:
    """Rebuild the state that a model folder holds.

    Raises
    ------
    ModelDirError
        If it is damaged, or missing though the schema has features of earlier rows.
    """
    if not schema.computed:
        return None
    if data is None:
        raise ModelDirError(
            f"{path} must hold as_of.parquet: its schema has features of earlier rows. Save it again."
        )
    try:
        return AsOfState.from_parquet(pa.BufferReader(data), schema)
    except EncodingError as error:
        raise ModelDirError(f"{path} holds no usable as_of.parquet: {error}") from error


def _follow(rows: Rows, schema: Schema, known: AsOfState) -> bool:
    """Tell whether rows do not lie before the end of what is known."""
    clock = schema.clock
    if clock is None or known.end is None:
        return True
    ticks = read_ticks(rows.frame([clock.column]), clock)
    return ticks.size == 0 or int(ticks.min()) >= known.end - clock.ticks(clock.slack)
