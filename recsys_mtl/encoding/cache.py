"""EncodedCache: encoded rows on disk, hashed once and memory-mapped in later epochs and runs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from recsys_mtl.encoding.batch import Batch
from recsys_mtl.encoding.chunk import Chunk
from recsys_mtl.encoding.encoder import Encoder, Labels
from recsys_mtl.encoding.entry import ENTRY_VERSION, read_entry, sync_path, write_entry
from recsys_mtl.encoding.hashing import HASH_VERSION
from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import Rows, scan
from recsys_mtl.reading.provenance import fingerprint_rows, reopen

_UNFINISHED = ".writing-"
_STALE_SECONDS = 24 * 3600

_log = logging.getLogger(__name__)


class EncodedCache:
    """Keep encoded rows in a folder, so that rows larger than memory are hashed once.

    An entry is found again by the encoder (schema and all it has learned), the labels mode, the
    filters and the parquet files the rows come from (`fingerprint_rows`). If any of them changes, or
    the version of the package, of polars, of the hash or of the cache, a new entry is written: what
    is found is never stale, and old entries stay until the folder is deleted. Rows from memory are
    refused.

    Several processes may share the folder. Entries are written beside their place, synced to
    disk and moved there whole; what a crash leaves is never read and goes with the first entry
    written a day later.

    Parameters
    ----------
    folder
        Where entries lie, one folder each; made when the first is written.

    Examples
    --------
    >>> import tempfile
    >>> import polars as pl
    >>> from recsys_mtl.schema import Binary, Categorical, Schema
    >>> schema = Schema(context=[Categorical("hour")], tasks=[Binary("ctr", label="click")])
    >>> folder = tempfile.mkdtemp()
    >>> pl.DataFrame({"hour": [7, 8], "click": [1, 0]}).write_parquet(f"{folder}/rows.parquet")
    >>> encoder = Encoder(schema).fit(f"{folder}/rows.parquet")
    >>> EncodedCache(f"{folder}/cache").batch(encoder, f"{folder}/rows.parquet").num_rows
    2
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def batch(
        self,
        encoder: Encoder,
        rows: Any,
        *,
        labels: Labels = "required",
        chunk_rows: int = 1 << 18,
        progress: bool = False,
    ) -> Batch:
        """Return what `Encoder.encode` gives, its arrays mapped from disk and read as they are used.

        The arrays may be written to; nothing of it reaches the disk. Where a side table lacks
        keys, their rows follow the whole table's.

        Parameters
        ----------
        encoder
            A fitted encoder.
        rows
            Parquet paths, or `Rows` scanned from them.
        labels
            As in `Encoder.encode`.
        chunk_rows
            Rows encoded at a time where there is no entry yet. Memory is needed for these and for
            the side tables.
        progress
            Whether to show a progress bar while rows are encoded.

        Raises
        ------
        EncodingError
            If the rows do not come from parquet files, cannot be encoded, or change meanwhile.
        """
        opened = scan(rows)
        key = _key(encoder, opened, labels)
        entry = self.folder / key
        found = _open(entry)
        if found is not None:
            return found
        self._remove_stale()
        with ExitStack() as undo:
            fresh = self._unfinished(undo)
            fresh.mkdir(parents=True)
            chunks = encoder.chunks(reopen(opened), chunk_rows=chunk_rows, labels=labels)
            with tqdm(desc="encoding", unit="rows", disable=not progress) as bar:
                write_entry(fresh, key, _counted(chunks, bar))
            if _key(encoder, opened, labels) != key:
                raise EncodingError(
                    "The files of the rows must not change while they are read. They did: encode"
                    " them again."
                )
            if entry.exists() and _open(entry) is None:
                with suppress(OSError):  # another process may have moved it
                    entry.rename(self._unfinished(undo))
            try:
                fresh.rename(entry)
            except OSError:
                if not entry.exists():
                    raise
                # Another process was first, and its entry is as good as this one.
            sync_path(self.folder)
            return read_entry(entry)

    def _unfinished(self, undo: ExitStack) -> Path:
        """Name a folder that is never read, and is removed by `undo`."""
        named = self.folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
        undo.callback(shutil.rmtree, named, ignore_errors=True)
        return named

    def _remove_stale(self) -> None:
        """Remove what crashes have left: unfinished entries that nobody has written to for a day."""
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            with suppress(OSError):
                changed = max(path.stat().st_mtime for path in (left, *left.iterdir()))
                if changed < time.time() - _STALE_SECONDS:
                    shutil.rmtree(left)


def _key(encoder: Encoder, rows: Rows, labels: Labels) -> str:
    values, arrays = encoder.state()
    known = {
        "entry": ENTRY_VERSION,
        "hash": HASH_VERSION,
        "package": metadata.version("recsys_mtl"),
        "schema": encoder.schema.to_dict(),
        "learned": values,
        "arrays": {name: (arrays[name].dtype.str, arrays[name].shape) for name in sorted(arrays)},
        "labels": labels,
        "rows": fingerprint_rows(rows),
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _counted(chunks: Iterator[Chunk], bar: tqdm[Any]) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        bar.update(chunk.rest.num_rows)


def _open(entry: Path) -> Batch | None:
    """Open an entry; None if there is none, or none that can be trusted."""
    if not entry.exists():
        return None
    try:
        return read_entry(entry)
    except EncodingError as error:
        _log.warning("%s They are encoded again.", error)
        return None
