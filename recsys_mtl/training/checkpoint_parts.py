"""Checkpoints of several processes: each writes its part, and all go on from the same moment.

A checkpoint counts once every process has written its part of it; only then do the parts of the one
before go. Whenever some or all processes die, the last one that counts is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from recsys_mtl.errors import ModelDirError
from recsys_mtl.training.checkpoint import (
    CheckpointFile,
    Checkpoints,
    Snapshot,
    check_parts,
    part_name,
)
from recsys_mtl.training.distributed import Processes


class CheckpointPart(CheckpointFile):
    """The part of a run's checkpoint that one of several processes keeps; methods are collective.

    The folder may be one that all processes see, or one of each machine.

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
            If this process's part is damaged or lost, or belongs to another run.
        """
        check_parts(self.path, world=self.processes.world)
        last = max(self._found(), default=0)
        self._number = -self._most(-last)
        self._keep_only(self._number)
        if self._number == 0:
            return None
        path = self._part(self._number)
        if not path.exists():
            raise ModelDirError(
                f"{path} must be there, as other processes have their parts of this checkpoint. Found"
                " none: put it back, or give the run another folder."
            )
        return self._read(path, device)

    def is_due(self) -> bool:
        """Tell whether a checkpoint is due in any of the processes."""
        return bool(self._most(int(super().is_due())))

    def save(self, snapshot: Snapshot) -> None:
        """Write this process's part of the next checkpoint; when all have, delete that of the last."""
        self._number += 1
        self._write(self._part(self._number), snapshot)
        self._most(0)
        self._keep_only(self._number)

    def _most(self, count: int) -> int:
        return self.processes.shard.most(count, self.processes.device)

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
