"""Provenance: a fingerprint of the files that rows are read from and of how they are read."""

from __future__ import annotations

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from glob import escape, glob
from typing import Any

import polars as pl

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading.scan import Rows, SideTable

_TAIL_BYTES = 1 << 16
_REMEDY = "Write the rows to parquet first and open the files with scan."
# Steps of a query that give the same rows each time, and where their inputs stand. Older releases of
# polars mark a query whose columns were asked for with a step of its own.
_INPUTS = {"Union": "inputs", "Filter": "input", "Select": "input", "Slice": "input", "IR": "dsl"}
# Kinds of expressions whose result can change though plan and files do not.
_UNSTABLE = ("Anonymous", "Python", "Plugin", "Ffi", "Random", "SubPlan")


def fingerprint_rows(rows: Rows) -> str:
    """Return hex digits that change when the files change or the way rows are read from them.

    A file is known by its absolute path, its size, its times of change and its last 64 KiB, which
    hold the footer of a parquet file. The time of status change is among them, so that a file
    written over in place and given its old time back is seen as another; so is a mere copy.

    Parameters
    ----------
    rows
        Interactions and side tables from parquet files on this machine, filtered, cut and joined
        end to end only: by `Rows.filter` without Python functions or randomness, `slice` and `concat`.

    Raises
    ------
    EncodingError
        If the rows come from anywhere else.
    """
    digest = hashlib.sha256(pl.__version__.encode())
    for name, source, paths in _tables(rows):
        if not paths:
            raise EncodingError(
                f"The {name} must come from parquet files, by which encoded rows are found again."
                f" Found a table in memory or a query. {_REMEDY}"
            )
        query = _saved(source, name)
        files = sorted({path for found in _sources(_plan(query), name) for path in found})
        for part in (name.encode(), query, *map(_facts, files)):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def reopen(rows: Rows) -> Rows:
    """Return the rows with their files looked up anew: polars remembers those of its first read."""
    return replace(
        rows,
        interactions=_reopened(rows.interactions, "interactions"),
        users=_reopened_side(rows.users),
        items=_reopened_side(rows.items),
    )


def _tables(rows: Rows) -> Iterator[tuple[str, pl.LazyFrame, tuple[str, ...]]]:
    yield "interactions", rows.interactions, rows.paths
    for side in (rows.users, rows.items):
        if side is not None:
            yield f"{side.name} table", side.source, side.paths


def _reopened(source: pl.LazyFrame, name: str) -> pl.LazyFrame:
    return pl.LazyFrame.deserialize(io.BytesIO(_saved(source, name)))


def _reopened_side(side: SideTable | None) -> SideTable | None:
    return None if side is None else replace(side, source=_reopened(side.source, side.name))


def _saved(source: pl.LazyFrame, name: str) -> bytes:
    """Return the query as bytes, the same in all processes."""
    try:
        return source.serialize()
    except pl.exceptions.PolarsError as error:
        raise EncodingError(
            f"The query of the {name} cannot be saved: {error}. {_REMEDY}"
        ) from error


def _plan(query: bytes) -> Any:
    """Return a saved query as nested JSON values, ``{kind: {...}}`` for every step."""
    fresh = pl.LazyFrame.deserialize(io.BytesIO(query))  # without what a first read has added
    with warnings.catch_warnings():
        # Deprecated, but polars has no other form of a query that can be looked into.
        warnings.simplefilter("ignore")
        return json.loads(fresh.serialize(format="json"))


def _sources(plan: Any, name: str) -> Iterator[list[str]]:
    """Find the files under every leaf of a plan; a step not known to be repeatable is refused."""
    ((kind, body),) = plan.items() if isinstance(plan, dict) and len(plan) == 1 else [("", {})]
    if kind == "Scan" and "Parquet" in body["scan_type"] and "Paths" in body["sources"]:
        for path in body["sources"]["Paths"]:
            yield _expanded(next(iter(path.values())), name)
        return
    own = dict(body) if isinstance(body, dict) else {}
    inputs = own.pop(_INPUTS.get(kind, ""), None)
    unstable = [found for found in _keys(own) if any(word in found for word in _UNSTABLE)]
    if inputs is None or unstable:
        raise EncodingError(
            f"The {name} must be parquet files, filtered and joined end to end without Python"
            f" functions or randomness. Found {(unstable or [kind])[0]!r} in the query. {_REMEDY}"
        )
    for one in inputs if isinstance(inputs, list) else [inputs]:
        yield from _sources(one, name)


def _keys(value: Any) -> Iterator[str]:
    """List the keys of nested values."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _keys(inner)


def _expanded(path: str, name: str) -> list[str]:
    """List all files that a path, a folder or a glob may mean; rather too many than too few."""
    places = [path, *glob(path, recursive=True, include_hidden=True)]
    folders = [f"{escape(place)}/**" for place in places if os.path.isdir(place)]
    for folder in folders:
        places += glob(folder, recursive=True, include_hidden=True)
    files = [os.path.abspath(place) for place in places if os.path.isfile(place)]
    if not files:
        raise EncodingError(f"The {name} must come from files on this machine. Found {path!r}.")
    return files


def _facts(path: str) -> bytes:
    with open(path, "rb") as stream:
        found = os.fstat(stream.fileno())
        stream.seek(max(0, found.st_size - _TAIL_BYTES))
        tail = hashlib.sha256(stream.read()).hexdigest()
    return json.dumps([path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, tail]).encode()
