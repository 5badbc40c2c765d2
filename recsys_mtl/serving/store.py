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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from recsys_mtl.encoding.entry import sync_path
from recsys_mtl.serving.source import Part
from recsys_mtl.serving.writing import (
    PartWriter,
    explained,
    read_json,
    remove,
    sha256,
    write_json,
)

FORMAT_VERSION = 1
_FORMAT = "recsys_mtl scores"
_MANIFEST = "manifest.json"
_LAST = "complete.json"
_OUTPUT = "output"
_OLD = "replaced"
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
        told = read_json(self.manifest)
        if told is None or told.get("run") != self._digest() or not self._holds(told):
            told = self._told_late()
        return told if told is not None and told["run"] == self._digest() else None

    def _told_late(self) -> dict[str, Any] | None:
        """Write the manifest of an output whose run ended before that, and return it."""
        last = read_json(self.work / _LAST)
        if last is None or not self._holds(last):
            return None
        write_json(self.manifest, last)
        return last

    def _holds(self, told: Mapping[str, Any]) -> bool:
        """Tell whether the output is what a manifest says."""
        if not told.get("complete"):
            return False
        files = {self.target / one["name"]: one["sha256"] for one in told["parts"]}
        if told["file"] is not None:
            files = {self.target: told["file"]["sha256"]}
        return all(file.is_file() and sha256(file) == digest for file, digest in files.items())

    def check(self, *, overwrite: bool) -> None:
        """Refuse to touch what is there; discard the start of another run if it may be overwritten.

        Raises
        ------
        FileExistsError
            If the output, or the unfinished run, is of another input, model or setting.
        """
        if self.target.exists():
            ours = self._told_late() or read_json(self.manifest)
            if not overwrite or (
                self.target.is_dir() and ours is None and any(self.target.iterdir())
            ):
                raise FileExistsError(
                    f"{self.target} is there already, {'of other scores' if ours else 'not by us'}."
                    " Choose another output"
                    f"{', or overwrite it (--overwrite)' if ours or self.target.is_file() else ''}."
                )
        if self._begun() not in (None, self._digest()):
            if not overwrite:
                raise FileExistsError(
                    f"{self.work} holds an unfinished run of another input, model or setting. Finish"
                    " that, or discard it (--overwrite)."
                )
            self.discard()

    def settle(self) -> None:
        """Remove what a run that ended in its last steps has left beside the complete output."""
        if self._begun() in (None, self._digest()):
            self.discard()

    def _begun(self) -> str | None:
        """Return the digest of the run whose parts are there, if there is one."""
        return (read_json(self.work / _MANIFEST) or {}).get("run")

    def open(self, parts: Sequence[Part], chunk_rows: int) -> tuple[dict[int, Record], int]:
        """Make the folder of parts, or find it.

        Parameters
        ----------
        parts
            All parts. What is there of others, as of a file that was left out before, is removed.
        chunk_rows
            Rows to read at once.

        Returns
        -------
        finished
            Records of the parts that are finished, by number.
        chunk_rows
            Rows read at once: as given, or as the run began with, so that no bit of a score differs
            between its parts.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        begun = read_json(self.work / _MANIFEST) or {}
        if begun.get("run") == self._digest():
            chunk_rows = int(begun.get("chunk_rows", chunk_rows))
        self._sweep()
        (self.work / _LAST).unlink(missing_ok=True)
        for moved in self.work.glob(f"{_OUTPUT}/part-*.parquet"):
            moved.rename(self.work / moved.name)
        header = {"format": _FORMAT, "format_version": FORMAT_VERSION, "complete": False}
        own = {"run": self._digest(), "chunk_rows": chunk_rows}
        write_json(self.work / _MANIFEST, header | own | self.identity)
        return self._finished(parts), chunk_rows

    def _finished(self, parts: Sequence[Part]) -> dict[int, Record]:
        found: dict[int, Record] = {}
        wanted = {part.number: place_of(part) for part in parts}
        for file in self.work.glob("part-*.json"):
            record, part = read_json(file), self.work / f"{file.stem}.parquet"
            place = wanted.get(int(record["number"])) if record else None
            known = record and place and record.items() >= {"run": self._digest(), **place}.items()
            if record and known and part.is_file() and sha256(part) == record["sha256"]:
                found[int(record["number"])] = record
            else:
                file.unlink()
        return found

    def records(self) -> list[Record]:
        """Return the records of the parts that are there, in order."""
        found = (read_json(file) for file in self.work.glob("part-*.json"))
        return sorted((one for one in found if one), key=lambda record: int(record["number"]))

    @contextmanager
    def part(self, part: Part, schema: pa.Schema) -> Iterator[tuple[PartWriter, Record]]:
        """Write one part: it is there, with its record, once the block has ended without an error."""
        name = f"part-{part.number:07d}"
        aside = self.work / f"{name}.{os.getpid()}.tmp"
        record: Record = {"run": self._digest(), "name": f"{name}.parquet", **place_of(part)}
        try:
            with PartWriter(aside, schema) as writer:
                yield writer, record
            sync_path(aside)
            record |= {"rows": writer.rows, "size": aside.stat().st_size, "sha256": sha256(aside)}
            aside.replace(self.work / f"{name}.parquet")
            write_json(self.work / f"{name}.json", record)
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
                {k: v for k, v in one.items() if k not in ("run", "counts", "absent")}
                for one in records
            ],
        }
        write_json(self.work / _LAST, manifest)
        if single is not None:
            whole.replace(self.target)
        else:
            self._publish(kept)
        sync_path(self.target.parent)
        write_json(self.manifest, manifest)
        self.discard()
        return manifest

    def _publish(self, names: set[str]) -> None:
        """Rename a folder of all parts to the output: it was not there, and then it is whole.

        An older output is first renamed as a whole, and there is a manifest all the time: a later call
        takes neither for an output of others.
        """
        fresh, old = self.work / _OUTPUT, self.work / _OLD
        fresh.mkdir(exist_ok=True)
        for name in names:
            if (self.work / name).exists():
                (self.work / name).rename(fresh / name)
        (fresh / "_SUCCESS").touch()
        if self.target.exists():
            remove(old)
            self.target.rename(old)
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
        sync_path(aside)
        return aside

    def leave(self, *, keep: bool) -> None:
        """End a run early: keep parts for a later call, if there are any and it can use them.

        An older output that was being replaced comes back; a new one that is in its place is told.
        """
        self._sweep()
        self._restore()
        self._told_late()
        if not keep or not self.records():
            self.discard()

    def _sweep(self) -> None:
        for left in self.work.glob("*.tmp"):
            left.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder of parts; an older output that was being replaced comes back."""
        self._restore()
        shutil.rmtree(self.work, ignore_errors=True)

    def _restore(self) -> None:
        old = self.work / _OLD
        if old.exists() and not self.target.exists():
            old.rename(self.target)

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
    with explained(place):
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


def place_of(part: Part) -> Record:
    """Return what a record tells of where its rows come from."""
    return {"number": part.number, "file": part.file, "start": part.start, "stop": part.stop}
