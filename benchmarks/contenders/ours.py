"""recsys_mtl as a contender, through its public names."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks import table
from benchmarks.contenders.worker import (
    BATCH,
    BINARY_LABELS,
    DIM,
    EXPERT_DIMS,
    NUM_EXPERTS,
    TOWER_DIM,
    Job,
    serve,
)
from recsys_mtl import MMoE, MultiTaskRanker, Towers
from recsys_mtl.encoding import Batch, Encoder, warm
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.reading import scan
from recsys_mtl.training import TrainConfig, Trainer

TASK_OF = {"interest": "interest", "click": "ctr"}


class Ours:
    """A trainer on encoded rows, and the ranker on a parquet file."""

    def __init__(self, work: Job) -> None:
        self.work = work
        self.schema = table.schema()
        self.sharing = MMoE(NUM_EXPERTS, expert_dims=EXPERT_DIMS)
        self.heads = Towers((TOWER_DIM,))
        warm()

    def prepare(self) -> None:
        """Encode the rows; the largest table may be declared larger than they need."""
        encoder = Encoder(self.schema)
        self.batch: Batch = encoder.fit_encode(scan(self.work.train))
        layout = encoder.layout
        if self.work.largest is not None:
            tables = [
                replace(one, num_rows=self.work.largest) if one.name == "id_19" else one
                for one in layout.tables
            ]
            layout = replace(layout, tables=tuple(tables))
        torch.manual_seed(0)
        model = MultiTaskModel(
            layout, self.schema.tasks, sharing=self.sharing, heads=self.heads, embedding_dim=DIM
        )
        model.learn_outputs(self.batch)
        config = TrainConfig(batch_size=BATCH, max_epochs=1, **self.work.options)
        self.trainer = Trainer(model, self.schema, config, seed=0, progress=False)

    def epoch(self) -> None:
        """Train for an epoch."""
        self.trainer.fit(self.batch)

    def raw(self, seed: int) -> None:
        """Fit a ranker."""
        self.ranker = MultiTaskRanker(
            self.schema,
            sharing=self.sharing,
            heads=self.heads,
            embedding_dim=DIM,
            batch_size=BATCH,
            max_epochs=1,
            device="cpu",
            progress=False,
            random_state=seed,
            **self.work.options,
        ).fit(self.work.train)

    def judge(self) -> dict[str, float]:
        """Return the ranker's AUC."""
        report = self.ranker.evaluate(self.work.test)
        return {label: report.value(TASK_OF[label], "auc") for label in BINARY_LABELS}


if __name__ == "__main__":
    serve(Ours)
