"""Training by several processes: each encodes and trains on its share of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from recsys_mtl.encoding import Batch, EncodedCache, Encoder
from recsys_mtl.encoding.labels import read_labels
from recsys_mtl.model_dir import TrainingTensors
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.reading import Rows
from recsys_mtl.schema import Schema
from recsys_mtl.settings import Settings, build_network, check_rows
from recsys_mtl.training import CheckpointFile, Processes, Trained, Trainer, seeded
from recsys_mtl.training.distributed import (
    broadcast_,
    broadcast_state,
    share,
    whole_rows,
    whole_state,
)
from recsys_mtl.warm import WarmStart, keep_training


@dataclass(frozen=True)
class Joined:
    """What processes have trained together.

    Parameters
    ----------
    model, training
        The whole model, on the CPU, and the state of its optimizers, in process 0; None in others.
    trained
        How the run went, as this process saw it.
    notes
        What a warm start found changed, in words.
    """

    model: MultiTaskModel | None
    training: TrainingTensors | None
    trained: Trained
    notes: list[str]


@dataclass(frozen=True)
class Together:
    """A training run of several processes, seen from one of them.

    Process 0 learns the encoder and the label scales from all rows; each process then encodes and
    trains on a run of rows of its own, and all validate on the same rows. Dense weights are alike in
    all, rows of embedding tables are dealt out.

    Parameters
    ----------
    processes
        Those that take part.
    schema, settings
        What is trained, and how; `batch_size` is that of each process.
    seed
        Of weights and row order.
    cache_folder
        Where encoded rows are kept; None: in memory.
    start
        The model that the run goes on from, the same in all; None: it begins afresh.
    progress
        Whether process 0 shows progress bars.
    """

    processes: Processes
    schema: Schema
    settings: Settings
    seed: int
    cache_folder: Path | None = None
    start: WarmStart | None = None
    progress: bool | None = None

    def encode(self, rows: Rows, valid: Rows | None) -> tuple[Encoder, Batch, Batch | None]:
        """Learn the encoder in process 0; encode this process's share of the rows."""
        processes = self.processes
        first = processes.rank == 0
        known = None if self.start is None else self.start.encoder
        state = Encoder(self.schema).fit(rows, known=known).state() if first else None
        encoder = Encoder.from_state(self.schema, *broadcast_state(state, processes))
        start, stop = share(rows.count(), processes.rank, processes.world)
        own = rows.slice(start, stop)
        if self.cache_folder is None:
            return (
                encoder,
                encoder.encode(own, labels="taught"),
                None if valid is None else encoder.encode(valid),
            )
        cache = EncodedCache(self.cache_folder)
        return (
            encoder,
            cache.batch(encoder, own, labels="taught"),
            None if valid is None else cache.batch(encoder, valid),
        )

    def train(
        self,
        encoder: Encoder,
        rows: Rows,
        batch: Batch,
        valid: Batch | None,
        *,
        checkpoint: CheckpointFile | None = None,
        memory_bytes: int | None = None,
    ) -> Joined:
        """Train on encoded rows.

        Parameters
        ----------
        encoder, rows
            What `encode` returned, and the rows that it was given.
        batch, valid
            This process's share of the rows, and the validation rows.
        checkpoint
            Where this process keeps its part of the state now and then.
        memory_bytes
            What training rows may take in memory at a time; None: all are there.
        """
        processes = self.processes
        with seeded(self.seed, processes.device):
            model = build_network(encoder, self.settings, shard=processes.shard)
            if processes.rank == 0:
                labels = self._labels(rows)
                check_rows(self.schema, labels, valid)
                model.learn_outputs(labels)
            warm = None if self.start is None else self.start.plant(encoder, model, self.settings)
            model.to(processes.device)
            broadcast_(_alike(model), processes)
            torch.manual_seed(self.seed + processes.rank)  # other dropout on other rows
            trainer = Trainer(
                model,
                self.schema,
                self.settings,
                seed=self.seed,
                progress=self.progress if processes.rank == 0 else False,
                processes=processes,
            )
            if warm is not None:
                warm.hand_over(trainer.stepper)
            notes, warm = [] if warm is None else warm.notes, None
            batch.release()
            trained = trainer.fit(batch, valid, checkpoint=checkpoint, memory_bytes=memory_bytes)
            state = whole_state(model)
            training = whole_rows(keep_training(trainer.stepper, trained), model)
            if state is None or training is None:
                return Joined(None, None, trained, notes)
            whole = build_network(encoder, self.settings)
            whole.load_state_dict(state)
            return Joined(whole.eval(), TrainingTensors(training), trained, notes)

    def _labels(self, rows: Rows) -> Batch:
        """Read the labels of all rows, and nothing else."""
        frame = rows.frame([*self.schema.label_columns, *self.schema.teacher_columns])
        labels, states, weights = read_labels(frame, self.schema.tasks, taught=True)
        return Batch(frame.height, (), frame.select([]), labels, states, weights)


def _alike(model: MultiTaskModel) -> list[Tensor]:
    """Return the tensors that are to be the same in all processes: all but the tables."""
    tables = {id(table.weight_RD) for table in model.embeddings.each()}
    return [value for value in (*model.parameters(), *model.buffers()) if id(value) not in tables]
