"""Writing: parquet files whose bytes follow from their rows, JSON, both aside and then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.encoding.entry import sync_path

GROUP_ROWS = 1 << 17
"""Rows of a row group of the output."""
_HASHED_AT_ONCE = 1 << 24


class PartWriter:
    """A parquet file whose bytes follow from its rows alone, however they came in pieces."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: parquet.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self._waiting = 0
        self.rows = 0

    def __enter__(self) -> PartWriter:
        with explained(self._path):
            self._writer = parquet.ParquetWriter(
                self._path, self._schema, compression="zstd", compression_level=1, version="2.6"
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            with suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                self._close()
            return
        with explained(self._path):
            self._flush(1)
            self._close()

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._held.append(table)
        self._waiting += table.num_rows
        self.rows += table.num_rows
        with explained(self._path):
            self._flush(GROUP_ROWS)

    def _flush(self, least: int) -> None:
        while self._waiting >= least:
            joined = pa.concat_tables(self._held)
            group = joined.slice(0, GROUP_ROWS).combine_chunks()
            self._held = [joined.slice(GROUP_ROWS)]
            self._waiting -= group.num_rows
            if self._writer is not None:
                self._writer.write_table(group, row_group_size=GROUP_ROWS)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what to do about a disk that is full."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path.parent} could not be written to: {error}. Make room, or choose another output, and"
            " run the same command again."
        ) from error


def check_not_read(target: Path, read: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Refuse to write what is read.

    Parameters
    ----------
    target
        File or folder to write.
    read
        Names of tables, for the error, and their files.

    Raises
    ------
    FileExistsError
        If a file is the target, or in it.
    """
    place = target.resolve()
    for name, paths in read:
        for path in paths:
            file = Path(path).resolve()
            if place == file or place in file.parents:
                raise FileExistsError(
                    f"{target} is read as the {name} and must not be overwritten."
                    " Choose another output."
                )


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """Return JSON values, or None where there are none, or not of ours."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write aside and rename."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with explained(path):
            aside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
            sync_path(aside)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
