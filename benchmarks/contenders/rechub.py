"""torch-rechub as it is documented: MMOE, DataGenerator, MTLTrainer."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks.contenders.frames import Frames, aucs
from benchmarks.contenders.worker import (
    BATCH,
    DIM,
    EXPERT_DIMS,
    NUM_EXPERTS,
    TOWER_DIM,
    Job,
    serve,
)

TASK_TYPES = ["classification", "classification", "regression"]


class Rechub:
    """Its trainer with its default optimizer: Adam on all weights."""

    def __init__(self, work: Job) -> None:
        self.work = work
        self.features = import_module("torch_rechub.basic.features")
        self.models = import_module("torch_rechub.models.multi_task")
        self.trainers = import_module("torch_rechub.trainers")
        self.data = import_module("torch_rechub.utils.data")

    def prepare(self) -> None:
        """Encode the rows, make the loader and the model."""
        torch.manual_seed(0)
        self._prepare()

    def epoch(self) -> None:
        """Train for an epoch, without the validation that `fit` adds."""
        self.trainer.train_one_epoch(self.loader)

    def raw(self, seed: int) -> None:
        """Prepare with that seed and train."""
        torch.manual_seed(seed)
        self._prepare()
        self.epoch()

    def judge(self) -> dict[str, float]:
        """Return the model's AUC."""
        rows = pd.read_parquet(self.work.test)
        x = {name: torch.from_numpy(column) for name, column in self.frames.encode(rows).items()}
        model = self.trainer.model.eval()
        with torch.no_grad():
            scores = [
                model({name: column[places] for name, column in x.items()}).numpy()
                for places in torch.split(torch.arange(len(rows)), BATCH)
            ]
        return aucs(rows, np.concatenate(scores))

    def _prepare(self) -> None:
        self.frames = frames = Frames(self.work.train)
        columns: list[Any] = [
            self.features.SparseFeature(name, vocab_size=size, embed_dim=DIM)
            for name, size in frames.num_values(self.work.largest).items()
        ]
        columns += [self.features.DenseFeature(name) for name in frames.numbers]
        model = self.models.MMOE(
            columns,
            TASK_TYPES,
            NUM_EXPERTS,
            expert_params={"dims": list(EXPERT_DIMS)},
            tower_params_list=[{"dims": [TOWER_DIM]} for _ in TASK_TYPES],
        )
        self.trainer = self.trainers.MTLTrainer(model, TASK_TYPES, n_epoch=1)
        generator = self.data.DataGenerator(frames.x, frames.y)
        held = {"x_val": frames.x, "y_val": frames.y, "x_test": frames.x, "y_test": frames.y}
        self.loader = generator.generate_dataloader(**held, batch_size=BATCH)[0]


if __name__ == "__main__":
    serve(Rechub)
