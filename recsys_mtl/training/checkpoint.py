"""Checkpoints: a run that was cut off goes on where it was, bit for bit.

One safetensors file with a JSON header holds all. It is written aside, synced and renamed: whenever
the process dies, the file is the last whole one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_mtl.encoding import Batch
from recsys_mtl.encoding.entry import sync_path
from recsys_mtl.encoding.mapped import release
from recsys_mtl.errors import ModelDirError
from recsys_mtl.spec import Spec, differences, spec

_log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 2
_HEADER = "recsys_mtl checkpoint"
_SUFFIX = ".checkpoint"
_ASIDE = ".writing"
_MOST_TOLD = 8
_AFRESH = "Give the run another folder to begin afresh."


@spec
class Checkpoints(Spec):
    """Where a training run keeps its state, and how often.

    The state of a run that has ended stays, too: the same call then gives the same model at once. Call
    `clear` when the model is saved; of several processes the first, which saves it, and where each
    machine has a folder of its own then the others.

    Parameters
    ----------
    folder
        A folder of its own for the run; it is made.
    every_minutes
        Minutes between two checkpoints, above 0.
    every_steps
        Steps between two checkpoints, if that is shorter; by default minutes alone count.
    """

    folder: str
    _: KW_ONLY
    every_minutes: Annotated[float, Field(gt=0)] = 10.0
    every_steps: Annotated[int, Field(ge=1)] | None = None

    def clear(self) -> None:
        """Delete the checkpoints and, if nothing else is in it, the folder; others may do so at once."""
        folder = Path(self.folder)
        for aside in folder.glob(f"*{_SUFFIX}{_ASIDE}"):
            shutil.rmtree(aside, ignore_errors=True)
        for file in folder.glob(f"*{_SUFFIX}"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if not any(folder.iterdir()):
                folder.rmdir()


@dataclass(frozen=True)
class Snapshot:
    """The state of a run: JSON values and tensors."""

    values: dict[str, Any]
    tensors: dict[str, Tensor]


class CheckpointFile:
    """The checkpoint of one run.

    Parameters
    ----------
    settings
        Where and how often.
    name
        Of the file in the folder.
    identity
        What the run consists of, as JSON values. A checkpoint of another run is refused, with the
        values that differ.
    """

    def __init__(self, settings: Checkpoints, name: str, identity: Mapping[str, Any]) -> None:
        self.path = Path(settings.folder) / f"{name}{_SUFFIX}"
        self.settings = settings
        self.identity = dict(identity)
        self._steps, self._saved_at = 0, time.monotonic()

    def load(self, device: torch.device) -> Snapshot | None:
        """Return the last state, its tensors on the device; None if there is none.

        Raises
        ------
        ModelDirError
            If the file is damaged, or belongs to another run.
        """
        check_parts(self.path, world=1)
        return self._read(self.path, device) if self.path.exists() else None

    def _read(self, path: Path, device: torch.device) -> Snapshot:
        """Return the state in a file, if it is one of this run."""
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                header = json.loads((file.metadata() or {}).get(_HEADER, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelDirError(
                f"{path} must be a checkpoint. Found: {error}. {_AFRESH}"
            ) from error
        if header.get("version") != CHECKPOINT_VERSION:
            raise ModelDirError(
                f"{path} must be a checkpoint of version {CHECKPOINT_VERSION}. Found"
                f" {header.get('version')}. {_AFRESH}"
            )
        changed = differences(header["identity"], self.identity)
        if changed:
            told = [f"{where} was {was!r}, and is {now!r}" for where, was, now in changed]
            more = f"; and {len(told) - _MOST_TOLD} more" if len(told) > _MOST_TOLD else ""
            raise ModelDirError(
                f"{path} is the checkpoint of another run: {'; '.join(told[:_MOST_TOLD])}{more}."
                " Give the run its own tables and settings again, or another folder."
            )
        _log.info("going on from %s", path)
        return Snapshot(header["values"], tensors)

    def is_due(self) -> bool:
        """Tell whether the step just taken, which is counted, is to be followed by a checkpoint."""
        self._steps += 1
        if self.settings.every_steps is not None and self._steps >= self.settings.every_steps:
            return True
        return time.monotonic() - self._saved_at >= 60 * self.settings.every_minutes

    def save(self, snapshot: Snapshot) -> None:
        """Write a state in place of the last one."""
        self._write(self.path, snapshot)

    def _write(self, path: Path, snapshot: Snapshot) -> None:
        """Write a state, as a whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "version": CHECKPOINT_VERSION,
            "identity": self.identity,
            "values": snapshot.values,
        }
        # a folder of its own, as safetensors has a temporary file, too, which a crash would leave
        aside = path.with_name(path.name + _ASIDE)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        try:
            written = aside / "state"
            tensors = {name: value.contiguous() for name, value in snapshot.tensors.items()}
            save_file(tensors, written, metadata={_HEADER: json.dumps(header)})
            with written.open("rb") as file:
                os.fsync(file.fileno())
            written.replace(path)
            sync_path(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._steps, self._saved_at = 0, time.monotonic()


def check_parts(whole: Path, *, world: int) -> None:
    """Refuse to go on from what another number of processes has kept.

    Parameters
    ----------
    whole
        File of a process that is alone; each of several keeps a part beside it (`part_name`).
    world
        How many processes there are.

    Raises
    ------
    ModelDirError
        If there are files of a run of the same name by more or fewer processes.
    """
    found = {int(file.stem.rpartition("-of-")[2]) for file in whole.parent.glob(_parts(whole))}
    if whole.exists():
        found.add(1)
    if found - {world}:
        raise ModelDirError(
            f"{whole.parent} must hold the checkpoint of {world} processes. Found that of"
            f" {max(found - {world})}: start as many again, or give the run another folder."
        )


def part_name(whole: Path, number: int, rank: int, world: int) -> Path:
    """Return the file of one of several processes, of a checkpoint of this number."""
    return whole.with_name(f"{whole.stem}.{number}.{rank}-of-{world}{_SUFFIX}")


def _parts(whole: Path) -> str:
    return f"{whole.stem}.*-of-*{_SUFFIX}"


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with the prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def rows_identity(batch: Batch | None) -> dict[str, Any] | None:
    """Return what tells encoded rows from others, as JSON values."""
    if batch is None:
        return None
    return {"count": batch.num_rows, "checksum": f"{checksum(batch):08x}"}


def checksum(batch: Batch) -> int:
    """Return a number that tells two sets of encoded rows apart."""
    total = batch.num_rows
    for array in batch.arrays():
        for start in range(0, len(array), 1 << 20):
            rows = array[start : start + (1 << 20)]
            total = zlib.crc32(np.ascontiguousarray(rows).data, total)
            release(rows)  # of an array that is mapped from disk, a piece at a time is held
    return total
