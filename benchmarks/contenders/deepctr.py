"""deepctr-torch as it is documented: MMOE, compile, fit."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks.contenders.frames import Frames, aucs
from benchmarks.contenders.worker import (
    BATCH,
    DIM,
    EXPERT_DIMS,
    LABELS,
    NUM_EXPERTS,
    TOWER_DIM,
    Job,
    serve,
)


class DeepCTR:
    """Its fit with Adam; gates of one layer, and no L2 on the tables, as the others have them."""

    def __init__(self, work: Job) -> None:
        self.work = work
        # it imports requests, which it does not ask to be installed, to look up its newest version
        sys.modules.setdefault("requests", ModuleType("requests"))
        self.inputs = import_module("deepctr_torch.inputs")
        self.models = import_module("deepctr_torch.models.multitask.mmoe")

    def prepare(self) -> None:
        """Encode the rows and make the model."""
        self._prepare(0)

    def epoch(self) -> None:
        """Train for an epoch."""
        self.model.fit(self.frames.x, self.frames.y, batch_size=BATCH, epochs=1, verbose=0)

    def raw(self, seed: int) -> None:
        """Prepare with that seed and train."""
        self._prepare(seed)
        self.epoch()

    def judge(self) -> dict[str, float]:
        """Return the model's AUC."""
        rows = pd.read_parquet(self.work.test)
        return aucs(rows, np.asarray(self.model.predict(self.frames.encode(rows), BATCH)))

    def _prepare(self, seed: int) -> None:
        self.frames = frames = Frames(self.work.train)
        columns: list[Any] = [
            self.inputs.SparseFeat(name, vocabulary_size=size, embedding_dim=DIM)
            for name, size in frames.num_values(self.work.largest).items()
        ]
        columns += [self.inputs.DenseFeat(name, 1) for name in frames.numbers]
        self.model = self.models.MMOE(
            columns,
            num_experts=NUM_EXPERTS,
            expert_dnn_hidden_units=EXPERT_DIMS,
            gate_dnn_hidden_units=(),
            tower_dnn_hidden_units=(TOWER_DIM,),
            l2_reg_embedding=0,
            task_types=["binary", "binary", "regression"],
            task_names=LABELS,
            seed=seed,
        )
        losses = ["binary_crossentropy", "binary_crossentropy", "mse"]
        self.model.compile("adam", loss=losses)


if __name__ == "__main__":
    serve(DeepCTR)
