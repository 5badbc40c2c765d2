"""Store: scores on disk, part by part, so that a run can end at any moment and go on later.

Parts are written to a folder beside the output, each aside and renamed, then recorded with its hash. The
output itself appears when all parts are there and their rows have been counted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.serving.source import Part

FORMAT_VERSION = 1
GROUP_ROWS = 1 << 17
"""Rows of a row group of the output."""
_FORMAT = "recsys_mtl scores"
_MANIFEST = "manifest.json"
_LAST = "complete.json"
_OUTPUT = "output"
_HASHED_AT_ONCE = 1 << 24
Record = dict[str, Any]


@dataclass(frozen=True)
class Store:
    """Where one run's scores go.

    Parameters
    ----------
    target
        A ``.parquet`` file, or a folder for all parts.
    identity
        What the scores follow from, as JSON values: input, model, settings.
    """

    target: Path
    identity: dict[str, Any]

    @property
    def work(self) -> Path:
        """The folder of parts while the run is not complete."""
        return self.target.parent / f".{self.target.name}.scoring"

    @property
    def manifest(self) -> Path:
        """The manifest of the complete output, beside it."""
        return self.target.parent / f"{self.target.name}.{_MANIFEST}"

    def complete(self) -> dict[str, Any] | None:
        """Return the manifest if this very output is there and whole, byte for byte."""
        found, told = _read(self.manifest), True
        if found is None:  # a run that ended between the two last renames
            found, told = _read(self.work / _LAST), False
        if found is None or not found.get("complete") or found.get("run") != self._digest():
            return None
        files = [self.target / one["name"] for one in found["parts"]]
        hashes = [one["sha256"] for one in found["parts"]]
        if found["file"] is not None:
            files, hashes = [self.target], [found["file"]["sha256"]]
        same = all(
            file.is_file() and sha256(file) == digest
            for file, digest in zip(files, hashes, strict=True)
        )
        if same and not told:
            _write(self.manifest, found)
            self.discard()
        return found if same else None

    def check(self, *, overwrite: bool) -> None:
        """Refuse to touch what is there; discard the start of another run if it may be overwritten.

        Raises
        ------
        FileExistsError
            If the output, or the unfinished run, is of another input, model or setting.
        """
        if self.target.exists():
            ours = _read(self.manifest)
            if not overwrite or (
                self.target.is_dir() and ours is None and any(self.target.iterdir())
            ):
                raise FileExistsError(
                    f"{self.target} is there already, {'of other scores' if ours else 'not by us'}."
                    " Choose another output"
                    f"{', or overwrite it (--overwrite)' if ours or self.target.is_file() else ''}."
                )
        started = _read(self.work / _MANIFEST)
        if started is not None and started.get("run") != self._digest():
            if not overwrite:
                raise FileExistsError(
                    f"{self.work} holds an unfinished run of another input, model or setting. Finish"
                    " that, or discard it (--overwrite)."
                )
            self.discard()

    def open(self, chunk_rows: int) -> tuple[dict[int, Record], int]:
        """Make the folder of parts, or find it.

        Returns
        -------
        finished
            Records of the parts that are finished, by number.
        chunk_rows
            Rows read at once: as given, or as the run began with, so that no bit of a score differs
            between its parts.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        begun = _read(self.work / _MANIFEST) or {}
        if begun.get("run") == self._digest():
            chunk_rows = int(begun.get("chunk_rows", chunk_rows))
        self._sweep()
        (self.work / _LAST).unlink(missing_ok=True)
        for moved in self.work.glob(f"{_OUTPUT}/part-*.parquet"):
            moved.rename(self.work / moved.name)
        header = {"format": _FORMAT, "format_version": FORMAT_VERSION, "complete": False}
        own = {"run": self._digest(), "chunk_rows": chunk_rows}
        _write(self.work / _MANIFEST, header | own | self.identity)
        return self._finished(), chunk_rows

    def _finished(self) -> dict[int, Record]:
        found: dict[int, Record] = {}
        for file in sorted(self.work.glob("part-*.json")):
            record, part = _read(file), self.work / f"{file.stem}.parquet"
            if record and part.is_file() and sha256(part) == record["sha256"]:
                found[int(record["number"])] = record
            else:
                file.unlink()
        return found

    def records(self) -> list[Record]:
        """Return the records of the parts that are there, in order."""
        found = (_read(file) for file in sorted(self.work.glob("part-*.json")))
        return [record for record in found if record is not None]

    @contextmanager
    def part(self, part: Part, schema: pa.Schema) -> Iterator[tuple[PartWriter, Record]]:
        """Write one part: it is there, with its record, once the block has ended without an error."""
        name = f"part-{part.number:05d}"
        aside = self.work / f"{name}.{os.getpid()}.tmp"
        record: Record = {
            "number": part.number,
            "name": f"{name}.parquet",
            "file": part.file,
            "start": part.start,
            "stop": part.stop,
        }
        try:
            with PartWriter(aside, schema) as writer:
                yield writer, record
            _sync(aside)
            record |= {"rows": writer.rows, "size": aside.stat().st_size, "sha256": sha256(aside)}
            aside.replace(self.work / f"{name}.parquet")
            _write(self.work / f"{name}.json", record)
        finally:
            aside.unlink(missing_ok=True)

    def finish(self, records: Sequence[Record], about: Mapping[str, Any]) -> dict[str, Any]:
        """Put the output in its place; return the manifest.

        Parameters
        ----------
        records
            Of all parts that belong to the output, in order.
        about
            What else the manifest is to tell.
        """
        kept = {record["name"] for record in records}
        for file in self.work.glob("part-*.parquet"):
            if file.name not in kept:
                file.unlink()
        single = None
        if self.target.suffix == ".parquet":
            whole = self._joined([self.work / record["name"] for record in records])
            single = {"sha256": sha256(whole), "size": whole.stat().st_size}
        manifest = {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "complete": True,
            "run": self._digest(),
            **self.identity,
            **about,
            "file": single,
            "parts": [
                {k: v for k, v in one.items() if k not in ("counts", "absent")} for one in records
            ],
        }
        _write(self.work / _LAST, manifest)
        for one in (self.manifest, self.target):
            _remove(one)
        if single is not None:
            whole.replace(self.target)
        else:
            self._publish(kept)
        _sync(self.target.parent)
        _write(self.manifest, manifest)
        self.discard()
        return manifest

    def _publish(self, names: set[str]) -> None:
        """Rename a folder of all parts to the output: it was not there, and then it is whole."""
        fresh = self.work / _OUTPUT
        fresh.mkdir(exist_ok=True)
        for name in names:
            if (self.work / name).exists():
                (self.work / name).rename(fresh / name)
        (fresh / "_SUCCESS").touch()
        fresh.rename(self.target)

    def _joined(self, files: Sequence[Path]) -> Path:
        """Return one file with the rows of all; a single one is taken as it is."""
        if len(files) == 1:
            return files[0]
        aside = self.work / "whole.tmp"
        with PartWriter(aside, parquet.read_schema(files[0])) as writer:
            for file in files:
                with parquet.ParquetFile(file) as opened:
                    for group in range(opened.num_row_groups):
                        writer.add(opened.read_row_group(group))
        _sync(aside)
        return aside

    def leave(self, *, keep: bool) -> None:
        """End a run early: keep parts for a later call, if there are any and it can use them."""
        self._sweep()
        if not keep or not self.records():
            self.discard()

    def _sweep(self) -> None:
        for left in self.work.glob("*.tmp"):
            left.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder of parts."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Let no other run write to an output; the system ends the lock with the process.

    Raises
    ------
    FileExistsError
        If another run writes to it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target.parent / f".{target.name}.lock"
    with _explained(place):
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(handle), place.stat())
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:
            raise FileExistsError(
                f"{target} must be written by one run at a time. Found another that is at work on it:"
                " wait until it ends, or choose another output."
            )
        try:
            yield
        finally:
            place.unlink(missing_ok=True)
    finally:
        os.close(handle)


class PartWriter:
    """A parquet file whose bytes follow from its rows alone, however they came in pieces."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._writer: parquet.ParquetWriter | None = None
        self._held: list[pa.Table] = []
        self.rows = 0

    def __enter__(self) -> PartWriter:
        with _explained(self._path):
            self._writer = parquet.ParquetWriter(
                self._path, self._schema, compression="zstd", compression_level=1, version="2.6"
            )
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            with suppress(OSError, pa.ArrowException):  # the first error is the one to tell
                self._close()
            return
        with _explained(self._path):
            self._flush(1)
            self._close()

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._held.append(table)
        self.rows += table.num_rows
        with _explained(self._path):
            self._flush(GROUP_ROWS)

    def _flush(self, least: int) -> None:
        while sum(table.num_rows for table in self._held) >= least:
            joined = pa.concat_tables(self._held)
            group = joined.slice(0, GROUP_ROWS).combine_chunks()
            self._held = [joined.slice(GROUP_ROWS)]
            if self._writer is not None:
                self._writer.write_table(group, row_group_size=GROUP_ROWS)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Say what to do about a disk that is full."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path.parent} could not be written to: {error}. Make room, or choose another output; the"
            " same command then goes on behind the parts that are finished."
        ) from error


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Any] | None:
    """Return JSON values, or None where there are none, or not of ours."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: Path, values: Mapping[str, Any]) -> None:
    """Write aside and rename."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _explained(path):
            aside.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
            _sync(aside)
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
