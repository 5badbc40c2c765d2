"""The one training loop.

Shape letters: B rows, T tasks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from recsys_mtl.encoding import Batch
from recsys_mtl.errors import EncodingError
from recsys_mtl.metrics import Report
from recsys_mtl.network import Inputs, MultiTaskModel, RowTensors, Targets, predict_logits
from recsys_mtl.schema import Schema
from recsys_mtl.training.config import TrainConfig, badness, monitor_parts
from recsys_mtl.training.evaluate import evaluate_logits, validation_losses
from recsys_mtl.training.losses import task_losses

_log = logging.getLogger(__name__)


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
    """

    def __init__(
        self,
        model: MultiTaskModel,
        schema: Schema,
        config: TrainConfig,
        *,
        seed: int,
        progress: bool | None = None,
    ) -> None:
        self.model = model
        self.schema = schema
        self.config = config
        self.seed = seed
        self.progress = sys.stderr.isatty() if progress is None else progress
        self.device = next(model.parameters()).device
        self.task_weights_T = torch.tensor(
            [task.weight for task in schema.tasks], device=self.device
        )
        dense = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = config.optimizer.build(dense)
        self.table_optimizer = config.table_optimizer.build(model.embeddings.each())

    def fit(self, train: Batch, valid: Batch | None = None) -> Trained:
        """Train for up to `max_epochs`; with validation rows, keep the best epoch's weights.

        Without validation rows the last epoch's weights stay. The model is left in evaluation mode.

        Raises
        ------
        FloatingPointError
            If a loss or a weight is no longer finite.
        """
        rows = RowTensors(train, self.device)
        valid_rows = None if valid is None else RowTensors(valid, self.device)
        monitored = monitor_parts(self.config.monitor, self.schema)
        history: list[dict[str, Any]] = []
        best = _Best()
        for epoch in range(1, self.config.max_epochs + 1):
            started = time.perf_counter()
            if epoch > 1 and self.config.reset_tables:
                self.table_optimizer.reset()
            record: dict[str, Any] = {"epoch": epoch}
            record |= self._train_epoch(rows, epoch)
            record["train_seconds"] = time.perf_counter() - started
            self._finish_tables()
            report = None
            if valid is not None and valid_rows is not None:
                measured, report = self._validate(epoch, valid, valid_rows)
                record |= measured
            record["seconds"] = time.perf_counter() - started
            history.append(record)
            _log.info("epoch %d: %s", epoch, record)
            if report is None:
                best.epoch = epoch
                continue
            task, metric = monitored
            value = record["valid_loss"] if metric == "loss" else report.value(task, metric)
            if math.isnan(value):
                raise EncodingError(
                    f"monitor {self.config.monitor!r} must be defined on valid: nothing can be chosen"
                    " by it. Its rows have no observed label, or labels of one class."
                )
            if best.accept(epoch, badness(metric, value), report, self.model):
                continue
            if epoch - best.epoch >= self.config.patience:
                break
        best.restore(self.model)
        self.model.eval()
        return Trained(pl.DataFrame(history), best.epoch, best.report)

    def _train_epoch(self, rows: RowTensors, epoch: int) -> dict[str, float]:
        self.model.train()
        sums_T = self.task_weights_T.new_zeros(len(self.schema.tasks), dtype=torch.float64)
        totals_T = torch.zeros_like(sums_T)
        for rows_B in self._batches(rows, epoch):
            targets = rows.targets(rows_B)
            weights_T = targets.weights_BT.sum(dim=0)
            sums_T += self._step(rows.take(rows_B), targets) * weights_T
            totals_T += weights_T
        losses = (sums_T / totals_T.where(totals_T > 0, 1)).tolist()
        named = {
            f"train_loss.{task.name}": loss
            for task, loss in zip(self.schema.tasks, losses, strict=True)
        }
        weights = self.model.named_parameters()
        sums = {name: float(value.detach().sum()) for name, value in weights}
        _check_finite(epoch, named | sums)
        weighted = sum(
            task.weight * loss for task, loss in zip(self.schema.tasks, losses, strict=True)
        )
        return {"train_loss": weighted} | named

    def _batches(self, rows: RowTensors, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(rows.num_rows, generator=generator).to(self.device)
        batches = torch.split(order, self.config.batch_size)
        named = f"epoch {epoch}/{self.config.max_epochs}"
        with tqdm(total=rows.num_rows, desc=named, unit="rows", disable=not self.progress) as bar:
            for rows_B in batches:
                yield rows_B
                bar.update(rows_B.numel())

    def _step(self, inputs: Inputs, targets: Targets) -> Tensor:
        """Take one step; return the losses (T,) before it, still on the device."""
        embedded = self.model.embeddings(inputs)
        for pooled in embedded.pooled:
            pooled.requires_grad_()
        predicted = self.model.from_embedded(embedded, inputs)
        outputs = self.model.outputs
        losses_T = task_losses(
            predicted.logits_BZ, targets, self.schema.tasks, outputs.mean_T, outputs.std_T
        )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((losses_T * self.task_weights_T).sum())
        self.optimizer.step()
        gradients = [
            torch.zeros_like(pooled) if pooled.grad is None else pooled.grad
            for pooled in embedded.pooled
        ]
        self.table_optimizer.step(embedded.touched, gradients)
        return losses_T.detach()

    def _finish_tables(self) -> None:
        accumulators = self.table_optimizer.accumulators
        for table, accumulator_R in zip(self.model.embeddings.each(), accumulators, strict=True):
            table.fill_untrained(accumulator_R > 0)

    def _validate(
        self, epoch: int, valid: Batch, rows: RowTensors
    ) -> tuple[dict[str, float], Report]:
        logits_BZ = predict_logits(self.model, rows)
        losses_T = validation_losses(self.model, self.schema, rows, logits_BZ)
        record = {"valid_loss": float((losses_T * self.task_weights_T.cpu()).sum())}
        _check_finite(epoch, record)
        report = evaluate_logits(self.model, self.schema, valid, logits_BZ)
        record |= {
            f"valid.{found.task}.{found.metric}": found.value for found in report.measurements
        }
        return record, report


class _Best:
    """The best epoch so far and a copy of its weights."""

    def __init__(self) -> None:
        self.epoch = 0
        self.report: Report | None = None
        self._badness = math.inf
        self._weights: dict[str, Tensor] | None = None

    def accept(self, epoch: int, badness: float, report: Report, model: MultiTaskModel) -> bool:
        """Keep the epoch if it is the first, or better than the best so far."""
        if self.epoch and not badness < self._badness:
            return False
        self.epoch, self.report = epoch, report
        self._badness = badness
        self._weights = {name: value.clone() for name, value in model.state_dict().items()}
        return True

    def restore(self, model: MultiTaskModel) -> None:
        """Give the model the best epoch's weights."""
        if self._weights is not None:
            model.load_state_dict(self._weights)


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
