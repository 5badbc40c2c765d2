"""Checkpoints of several processes: each writes its part, and all go on from the same moment.

A checkpoint counts once every process has written its part of it; only then do the parts of the one
before go. Whenever some or all processes die, the last one that counts is whole. An error of one process
is the end of all, and nothing is deleted before all can go on.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from recsys_mtl.errors import ModelDirError
from recsys_mtl.training.checkpoint import (
    CheckpointFile,
    Checkpoints,
    Snapshot,
    check_parts,
    part_name,
)
from recsys_mtl.training.distributed import Processes

_log = logging.getLogger(__name__)

_MOMENT = "moment"
_MOMENT_BITS = 62


class CheckpointPart(CheckpointFile):
    """The part of a run's checkpoint that one of several processes keeps; methods are collective.

    The folder may be one that all processes see, or one of each machine. In each stay the parts of the
    ranks that wrote them: parts of different moments, as of machines that changed places, are refused.

    Parameters
    ----------
    settings, name, identity
        As of `CheckpointFile`; the identity names the rows of this process.
    processes
        Those that train together.
    """

    def __init__(
        self,
        settings: Checkpoints,
        name: str,
        identity: Mapping[str, Any],
        *,
        processes: Processes,
    ) -> None:
        super().__init__(settings, name, identity)
        self.processes = processes
        self._number = 0

    def load(self, device: torch.device) -> Snapshot | None:
        """Return this process's part of the last checkpoint that all have written; None if there is none.

        Raises
        ------
        ModelDirError
            In all processes, if a part is damaged, lost, of another moment or of another run.
        """
        error: Exception | None = None
        try:
            check_parts(self.path, world=self.processes.world)
        except ModelDirError as found:
            error = found
        self._agree(error)
        last = max(self._found(), default=0)
        number, newest = self._least(last), self._most(last)
        # whenever they die, their last parts are of two successive checkpoints at most
        if last < newest - 1:
            error = ModelDirError(self._lost(newest))
        elif number > 0 and not self._part(number).exists():
            error = ModelDirError(self._lost(number))
        snapshot = None
        if error is None and number > 0:
            try:
                snapshot = self._read(self._part(number), device)
            except ModelDirError as found:
                error = found
        self._agree(error)
        if snapshot is not None:
            moment = int(snapshot.values.pop(_MOMENT))
            if self._least(moment) != self._most(moment):
                raise ModelDirError(self._mixed(number))
        self._number = number
        self._keep_only(number)
        if snapshot is None:
            _log.info("no checkpoint in %s: beginning afresh", self.path.parent)
        return snapshot

    def is_due(self) -> bool:
        """Tell whether a checkpoint is due in any of the processes."""
        return bool(self._most(int(super().is_due())))

    def save(self, snapshot: Snapshot) -> None:
        """Write this process's part of the next checkpoint; when all have, delete that of the last."""
        moment = self._most(secrets.randbits(_MOMENT_BITS))
        error: Exception | None = None
        try:
            named = Snapshot(snapshot.values | {_MOMENT: moment}, snapshot.tensors)
            self._write(self._part(self._number + 1), named)
        except (OSError, SafetensorError) as found:
            error = found
        self._agree(error)
        self._number += 1
        self._keep_only(self._number)

    def _agree(self, error: Exception | None) -> None:
        """Raise in all processes where there is an error in one."""
        failed = bool(self._most(int(error is not None)))
        if error is not None:
            raise error
        if failed:
            raise ModelDirError(
                f"All processes must have their parts of the checkpoint in {self.path.parent}. Another"
                " process has not: its own error says why. Nothing was deleted."
            )

    def _lost(self, number: int) -> str:
        found = sorted(part.name for part in self._found().values())
        return (
            f"{self._part(number)} must be there, as other processes have their parts. Found"
            f" {', '.join(found) or 'none'}: put it back, or give the run another folder to begin afresh."
        )

    def _mixed(self, number: int) -> str:
        return (
            f"{self._part(number)} and the other processes' parts must be of one moment. Found others:"
            " give each rank the folder that it wrote, or the run another folder to begin afresh."
        )

    def _most(self, count: int) -> int:
        return self.processes.shard.most(count, self.processes.device)

    def _least(self, count: int) -> int:
        return -self._most(-count)

    def _part(self, number: int) -> Path:
        return part_name(self.path, number, self.processes.rank, self.processes.world)

    def _found(self) -> dict[int, Path]:
        """Return the parts that this process has written, by their numbers."""
        pattern = part_name(self.path, 0, self.processes.rank, self.processes.world)
        parts = self.path.parent.glob(pattern.name.replace(".0.", ".*.", 1))
        return {int(part.name.split(".")[-3]): part for part in parts}

    def _keep_only(self, number: int) -> None:
        for other, part in self._found().items():
            if other != number:
                part.unlink()
