"""An entry of the cache: one folder with a batch's arrays as plain files, and a manifest."""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_mtl.encoding.batch import Batch, Block, Part, Ragged
from recsys_mtl.encoding.chunk import Chunk
from recsys_mtl.encoding.hashing import HASH_VERSION
from recsys_mtl.encoding.learning import Array
from recsys_mtl.encoding.mapped import FileMap
from recsys_mtl.errors import EncodingError

ENTRY_VERSION = 2
"""Raised when the files change, and when the same rows encode to other numbers."""

_FORMAT = "recsys_mtl encoded rows"
_MANIFEST = "manifest.json"
_KEYS = "keys.arrow"
_TARGETS = ("labels", "states", "weights", "groups")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)

# Without it Linux refuses private maps larger than the memory; Python names it from 3.13 on.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class _Arrays:
    """Arrays that grow on disk: one file each, little-endian, nothing but the values."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self.shapes: dict[str, tuple[str, list[int]]] = {}
        self._folder = folder
        self._closing = closing
        self._streams: dict[str, IO[bytes]] = {}

    def append(self, name: str, array: Array) -> None:
        """Add rows to the array of that name."""
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        if name not in self.shapes:
            self.shapes[name] = little.dtype.str, [0, *little.shape[1:]]
            stream = (self._folder / f"{name}.bin").open("xb")
            self._streams[name] = self._closing.enter_context(stream)
        self._streams[name].write(little.data)
        self.shapes[name][1][0] += len(little)

    def append_block(self, name: str, block: Block) -> None:
        """Add rows to the arrays of a block."""
        self.append(f"{name}.ids", block.ids)
        self.append(f"{name}.dense", block.dense)
        for number, part in enumerate(block.lists):
            listed = f"{name}.list{number}"
            start = self.num_rows(f"{listed}.values")
            first = f"{listed}.offsets" not in self.shapes
            self.append(f"{listed}.offsets", part.offsets if first else part.offsets[1:] + start)
            self.append(f"{listed}.values", part.values)
            self.append(f"{listed}.weights", part.weights)

    def num_rows(self, name: str) -> int:
        """Return how many rows the array of that name has by now."""
        return self.shapes[name][1][0] if name in self.shapes else 0

    def sync(self) -> None:
        """Make sure that all of it is on the disk."""
        for stream in self._streams.values():
            _flush(stream)


def write_entry(folder: Path, key: str, chunks: Iterable[Chunk]) -> None:
    """Write an entry into an empty folder, which is to get the name `key`, and sync it to disk.

    Named before it is synced, an entry could come out of a power cut with files of the right size
    and nothing in them.
    """
    num_rows, absent, parts = 0, dict[str, int](), list[dict[str, Any]]()
    with ExitStack() as closing:
        arrays = _Arrays(folder, closing)
        stream = closing.enter_context((folder / _KEYS).open("xb"))
        writer: pa.RecordBatchStreamWriter | None = None
        for chunk in chunks:
            num_rows += chunk.rest.num_rows
            for side, count in chunk.rest.absent.items():
                absent[side] = absent.get(side, 0) + count
            parts = _append(arrays, chunk)
            # Views of strings are taken from the map as they are; other layouts would be rebuilt.
            keys = chunk.rest.keys.to_arrow(compat_level=pl.CompatLevel.newest())
            writer = writer or closing.enter_context(pa.ipc.new_stream(stream, keys.schema))
            writer.write_table(keys)
        if writer is not None:
            writer.close()
        arrays.sync()
        _flush(stream)
    manifest = {
        "format": _FORMAT,
        "versions": [ENTRY_VERSION, HASH_VERSION],
        "key": key,
        "num_rows": num_rows,
        "absent": absent,
        "parts": parts,
        "arrays": arrays.shapes,
        "keys_bytes": (folder / _KEYS).stat().st_size,
    }
    with (folder / _MANIFEST).open("xb") as file:
        file.write(_dump(manifest | {"sha256": hashlib.sha256(_dump(manifest)).hexdigest()}))
        _flush(file)
    sync_path(folder)


def _append(arrays: _Arrays, chunk: Chunk) -> list[dict[str, Any]]:
    """Write the arrays of a chunk, a side table with the first only; return what parts there are."""
    for number, part in enumerate(chunk.parts):
        name, size = f"part{number}", len(part.block)
        if part.rows is None:
            arrays.append_block(name, part.block)
            continue
        if f"{name}.ids" not in arrays.shapes:
            arrays.append_block(name, part.block)
        before = arrays.num_rows(f"{name}.ids") - size
        arrays.append(f"{name}.rows", np.where(part.rows < size, part.rows, part.rows + before))
        if part.extra is not None:
            arrays.append_block(name, part.extra)
    for name in _TARGETS:
        found = getattr(chunk.rest, name)
        if found is not None:
            arrays.append(name, found)
    return [
        {"lists": len(part.block.lists), "placed": part.rows is not None} for part in chunk.parts
    ]


def read_entry(entry: Path) -> Batch:
    """Open an entry; its arrays are mapped.

    Raises
    ------
    EncodingError
        If a file is missing or has another size, or the manifest is not what was written.
    """
    try:
        return _read(entry)
    except _UNREADABLE as error:
        raise EncodingError(f"The encoded rows in {entry} are damaged: {error!r}.") from error


def _read(entry: Path) -> Batch:
    manifest = json.loads((entry / _MANIFEST).read_bytes())
    digest = manifest.pop("sha256")
    known = (_FORMAT, [ENTRY_VERSION, HASH_VERSION], entry.name)
    found = (manifest["format"], manifest["versions"], manifest["key"])
    if found != known or digest != hashlib.sha256(_dump(manifest)).hexdigest():
        raise ValueError(f"{_MANIFEST} is of another version or was changed")
    arrays = {
        name: _map(entry / f"{name}.bin", np.dtype(dtype), tuple(shape))
        for name, (dtype, shape) in manifest["arrays"].items()
    }
    parts = [
        Part(_block(arrays, f"part{number}", part["lists"]), arrays.get(f"part{number}.rows"))
        for number, part in enumerate(manifest["parts"])
    ]
    keys = entry / _KEYS
    _check_size(keys, keys.stat().st_size, manifest["keys_bytes"])
    table = pa.ipc.open_stream(pa.memory_map(str(keys))).read_all()
    targets = {name: arrays.get(name) for name in _TARGETS}
    return Batch(
        manifest["num_rows"],
        tuple(parts),
        cast("pl.DataFrame", pl.from_arrow(table, rechunk=False)),
        absent=manifest["absent"],
        **targets,
    )


def _block(arrays: dict[str, Array], name: str, num_lists: int) -> Block:
    lists = [
        Ragged(
            *(arrays[f"{name}.list{number}.{kind}"] for kind in ("values", "offsets", "weights"))
        )
        for number in range(num_lists)
    ]
    return Block(arrays[f"{name}.ids"], tuple(lists), arrays[f"{name}.dense"])


def _map(file: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """Map a file privately: torch takes a writable array as it is, and the file stays unwritten."""
    size = math.prod(shape) * dtype.itemsize
    with file.open("rb") as stream:
        _check_size(file, os.fstat(stream.fileno()).st_size, size)
        if size == 0:
            return np.empty(shape, dtype)
        held = FileMap(
            stream.fileno(),
            size,
            flags=mmap.MAP_PRIVATE | _NO_RESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    return np.frombuffer(held, dtype).reshape(shape)


def _check_size(file: Path, found: int, expected: int) -> None:
    if found != expected:
        raise ValueError(f"{file.name} must have {expected:,} bytes. Found {found:,}")


def _dump(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False).encode()


def _flush(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def sync_path(path: Path) -> None:
    """Make sure that a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
