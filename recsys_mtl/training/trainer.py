"""The one training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from recsys_mtl.encoding import Batch
from recsys_mtl.errors import EncodingError
from recsys_mtl.metrics import Report
from recsys_mtl.network import Inputs, MultiTaskModel, RowTensors, Shard, Targets, predict_heads
from recsys_mtl.schema import Schema
from recsys_mtl.training.checkpoint import CheckpointFile, Snapshot, under
from recsys_mtl.training.config import TrainConfig, badness, monitor_parts
from recsys_mtl.training.distributed import Processes, sum_
from recsys_mtl.training.evaluate import evaluate_logits, validation_losses
from recsys_mtl.training.loader import Loader
from recsys_mtl.training.observe import Observer
from recsys_mtl.training.run import Run
from recsys_mtl.training.step import Stepper

_log = logging.getLogger(__name__)
_LEAST_BATCHES = 32
"""In an epoch whose tables are learned from it alone."""


@dataclass(frozen=True)
class Trained:
    """What a training run gives beside the weights.

    Parameters
    ----------
    history
        One row per epoch: losses, validation metrics (``task.metric``), seconds.
    best_epoch
        The epoch whose weights were kept, from 1.
    report
        Validation report of that epoch, if there were validation rows.
    """

    history: pl.DataFrame
    best_epoch: int
    report: Report | None


class Trainer:
    """Train a model on encoded rows.

    Parameters
    ----------
    model
        On the device it is to be trained on.
    schema
        Its tasks and their weights.
    config
        Settings.
    seed
        Of the row order; the same seed gives the same order on every device.
    progress
        Whether to show a progress bar; None: only on a terminal.
    processes
        Those that train the model together, each on rows of its own, with validation rows that are the
        same in all; None: this one alone.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        schema: Schema,
        config: TrainConfig,
        *,
        seed: int,
        progress: bool | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.model, self.schema, self.config, self.seed = model, schema, config, seed
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.device = next(model.parameters()).device
        self._observer = Observer([task.name for task in schema.tasks], config.observe_every)
        self.processes = processes
        self.stepper = Stepper(
            model, schema, config, seed=seed, observer=self._observer, processes=processes
        )
        self._run = Run(len(schema.tasks), self.device)
        self._checkpoint: CheckpointFile | None = None
        self._num_batches: list[int] = []

    def fit(
        self,
        train: Batch,
        valid: Batch | None = None,
        *,
        checkpoint: CheckpointFile | None = None,
        memory_bytes: int | None = None,
    ) -> Trained:
        """Train for up to `max_epochs`; with validation rows, keep the best epoch's weights.

        Without validation rows the last epoch's weights stay. The model is left in evaluation mode.

        Parameters
        ----------
        train, valid
            Encoded rows.
        checkpoint
            Where the state is kept now and then. If it holds one, the run goes on from there and ends
            as if it had never stopped, bit for bit on the same machine.
        memory_bytes
            What training rows may take in memory at a time, for rows that are mapped from a cache on
            disk; None: they lie in memory, or on the device, as a whole.

        Raises
        ------
        FloatingPointError
            If a loss or a weight is no longer finite.
        ModelDirError
            If the checkpoint is damaged or that of another run.
        """
        batch_size = self.config.batch_size
        loader = Loader(
            train, self.device, batch_size=batch_size, seed=self.seed, memory_bytes=memory_bytes
        )
        self._num_batches = self._count_batches(loader)
        valid_rows = None if valid is None else RowTensors(valid, self.device)
        self._checkpoint = checkpoint
        self._run = run = Run(len(self.schema.tasks), self.device)
        resets = self._resets_tables()
        saved = None if checkpoint is None else checkpoint.load(self.device)
        if saved is not None:
            self._load(saved)
        with contextlib.closing(loader):
            while not run.finished:
                if run.batches == 0 and run.epoch > 1 and resets:
                    self.stepper.reset_tables()
                record = self._train_epoch(loader)
                self._finish_tables()
                with self.stepper.averaged():
                    run.finished = self._end_epoch(record, valid, valid_rows)
                run.next_epoch()
                if checkpoint is not None and (run.finished or checkpoint.is_due()):
                    checkpoint.save(self._snapshot())
        if run.best.report is None:
            self.stepper.swap_average()
        run.best.restore(self.model)
        self.model.eval()
        return Trained(pl.DataFrame(run.history), run.best.epoch, run.best.report)

    def _end_epoch(
        self, record: dict[str, Any], valid: Batch | None, valid_rows: RowTensors | None
    ) -> bool:
        """Validate, complete the epoch's record, keep the weights if they are the best; tell the end."""
        run, epoch = self._run, self._run.epoch
        report = None
        if valid is not None and valid_rows is not None:
            measured, report = self._validate(epoch, valid, valid_rows)
            record |= measured
        record["seconds"] = run.seconds_since_start()
        run.history.append(record)
        _log.info("epoch %d: %s", epoch, record)
        last = epoch == self.config.max_epochs
        if report is None:
            run.best.epoch = epoch
            return last
        task, metric = monitor_parts(self.config.monitor, self.schema)
        value = record["valid_loss"] if metric == "loss" else report.value(task, metric)
        if math.isnan(value):
            raise EncodingError(
                f"monitor {self.config.monitor!r} must be defined on valid: nothing can be chosen"
                " by it. Its rows have no observed label, or labels of one class."
            )
        if run.best.accept(epoch, badness(metric, value), report, self.model):
            return last
        return last or epoch - run.best.epoch >= self.config.patience

    def _resets_tables(self) -> bool:
        if self.config.reset_tables is not None:
            return self.config.reset_tables
        return not self.stepper.goes_on and min(self._num_batches) >= _LEAST_BATCHES

    def _train_epoch(self, loader: Loader) -> dict[str, Any]:
        self.model.train()
        run, accumulate = self._run, self.config.accumulate
        num_steps = sum(math.ceil(count / accumulate) for count in self._num_batches)
        self._observer.start_epoch(self._num_batches[run.epoch - 1], taken=run.batches)
        batches = self._batches(loader)
        run.clock.start()
        while taken := list(islice(batches, accumulate)):
            run.clock.lap("read")
            factor = self.config.schedule.factor(run.steps, num_steps)
            losses = self.stepper.take(taken, factor=factor, clock=run.clock)
            run.sums_T += losses.means_T * losses.totals_T
            run.totals_T += losses.totals_T
            run.steps += 1
            run.batches += len(taken)
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._checkpoint.save(self._snapshot())
                run.clock.start()
        return {"epoch": run.epoch} | self._losses() | self._observer.record() | self._times()

    def _count_batches(self, loader: Loader) -> list[int]:
        """Return the batches of each epoch, of the process with most of them."""
        epochs = range(1, self.config.max_epochs + 1)
        steps = {loader.batch_size(epoch): loader.steps(epoch) for epoch in epochs}
        shard = self.model.embeddings.shard
        most = {size: shard.most(count, self.device) for size, count in steps.items()}
        return [most[loader.batch_size(epoch)] for epoch in epochs]

    def _losses(self) -> dict[str, float]:
        """Return the epoch's losses; refuse what is not finite, among weights, too."""
        run = self._run
        sum_(run.sums_T, self.processes)
        sum_(run.totals_T, self.processes)
        means = (run.sums_T / run.totals_T.where(run.totals_T > 0, 1)).tolist()
        named = {
            f"train_loss.{task.name}": loss
            for task, loss in zip(self.schema.tasks, means, strict=True)
        }
        weights = self.model.named_parameters()
        sums = {name: float(value.detach().sum()) for name, value in weights}
        _check_finite(run.epoch, named | sums)
        weighted = sum(
            task.weight * loss for task, loss in zip(self.schema.tasks, means, strict=True)
        )
        return {"train_loss": weighted} | named

    def _times(self) -> dict[str, float]:
        seconds = {f"{phase}_seconds": spent for phase, spent in self._run.clock.seconds.items()}
        return seconds | {"train_seconds": self._run.seconds_since_start()}

    def _batches(self, loader: Loader) -> Iterator[tuple[Inputs, Targets]]:
        epoch = self._run.epoch
        named = f"epoch {epoch}/{self.config.max_epochs}"
        found = loader.batches(epoch, skip=self._run.batches)
        if self.processes is not None:
            found = _in_step(found, loader, self.model.embeddings.shard, self.device)
        with tqdm(total=loader.num_rows, desc=named, unit="rows", disable=not self.progress) as bar:
            for inputs, targets in found:
                yield inputs, targets
                bar.update(len(inputs))

    def _snapshot(self) -> Snapshot:
        """Return all that changes during a run."""
        run, (looks, seen) = self._run, self._observer.state()
        kept, weights = run.best.state()
        tensors = self.stepper.state()
        tensors |= {f"observer.{name}": value for name, value in seen.items()}
        tensors |= {f"best.{name}": value for name, value in weights.items()}
        tensors |= {"sums": run.sums_T, "totals": run.totals_T}
        return Snapshot(run.values() | {"looks": looks, "best": kept}, tensors)

    def _load(self, saved: Snapshot) -> None:
        """Take what `_snapshot` returned."""
        values, tensors = saved.values, saved.tensors
        self._run.load(values, tensors["sums"], tensors["totals"])
        self._run.best.load_state(values["best"], under("best.", tensors))
        self.stepper.load_state(tensors)
        self._observer.load_state(values["looks"], under("observer.", tensors))

    def _finish_tables(self) -> None:
        count = len(self.model.embeddings.each())
        trained = [self.stepper.trained(number) for number in range(count)]
        self.model.embeddings.fill_untrained(trained)

    def _validate(
        self, epoch: int, valid: Batch, rows: RowTensors
    ) -> tuple[dict[str, float], Report]:
        headed = predict_heads(self.model, rows)
        losses_T = validation_losses(self.model, self.schema, rows, headed)
        record = {"valid_loss": float((losses_T * self.stepper.task_weights_T.cpu()).sum())}
        _check_finite(epoch, record)
        report = evaluate_logits(self.model, self.schema, valid, headed.logits_BZ)
        record |= {
            f"valid.{found.task}.{found.metric}": found.value for found in report.measurements
        }
        return record, report


def _in_step(
    batches: Iterator[tuple[Inputs, Targets]], loader: Loader, shard: Shard, device: torch.device
) -> Iterator[tuple[Inputs, Targets]]:
    """Yield empty batches where other processes still have rows: every step is taken by all."""
    while True:
        found = next(batches, None)
        if not shard.most(int(found is not None), device):
            return
        yield loader.nothing() if found is None else found


def _check_finite(epoch: int, numbers: Mapping[str, float]) -> None:
    wrong = {name: number for name, number in numbers.items() if not math.isfinite(number)}
    if wrong:
        raise FloatingPointError(
            f"Training diverged in epoch {epoch}: {wrong}. Lower the learning rates."
        )


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch inside the block and leave the caller's random state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
