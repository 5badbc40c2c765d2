"""The one training loop.

Shape letters: B rows, T tasks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import polars as pl
import torch
from torch import Tensor
from tqdm import tqdm

from recsys_mtl.encoding import Batch
from recsys_mtl.errors import EncodingError
from recsys_mtl.metrics import Report
from recsys_mtl.network import (
    Headed,
    Inputs,
    MultiTaskModel,
    Predicted,
    RowTensors,
    Targets,
    predict_heads,
)
from recsys_mtl.schema import Schema
from recsys_mtl.training.balancing import Boundary, check_signs, task_gramian
from recsys_mtl.training.checkpoint import CheckpointFile, Snapshot, under
from recsys_mtl.training.config import TrainConfig, badness, monitor_parts
from recsys_mtl.training.evaluate import evaluate_logits, validation_losses
from recsys_mtl.training.grouping import grouped_batches
from recsys_mtl.training.losses import TaskLosses, check_losses, task_losses
from recsys_mtl.training.observe import Observer
from recsys_mtl.training.optim import build_optimizers
from recsys_mtl.training.run import Run

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
        check_losses(schema.tasks, model.heads)
        check_signs(config.balance, model.heads)
        self.optimizers = build_optimizers(model, config.optimizer, config.tower_optimizers)
        self.table_optimizer = config.table_optimizer.build(model.embeddings.each())
        self.balancer = config.balance.build(schema.tasks, seed=seed, device=str(self.device))
        self._dense = tuple(p for p in model.parameters() if p.requires_grad)
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self._average = None
        if config.average is not None:
            self._average = [parameter.detach().clone() for parameter in self._dense]
        self._observer = Observer([task.name for task in schema.tasks], config.observe_every)
        self._run = Run(len(schema.tasks), self.device)
        self._checkpoint: CheckpointFile | None = None
        self._steps_per_epoch = 1

    def fit(
        self, train: Batch, valid: Batch | None = None, *, checkpoint: CheckpointFile | None = None
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

        Raises
        ------
        FloatingPointError
            If a loss or a weight is no longer finite.
        ModelDirError
            If the checkpoint is damaged or that of another run.
        """
        rows = RowTensors(train, self.device)
        valid_rows = None if valid is None else RowTensors(valid, self.device)
        self._checkpoint = checkpoint
        self._steps_per_epoch = math.ceil(rows.num_rows / self.config.batch_size)
        self._run = run = Run(len(self.schema.tasks), self.device)
        saved = None if checkpoint is None else checkpoint.load(self.device)
        if saved is not None:
            self._load(saved)
        while not run.finished:
            if run.batches == 0 and run.epoch > 1 and self.config.reset_tables:
                self.table_optimizer.reset()
            record: dict[str, Any] = {"epoch": run.epoch}
            record |= self._train_epoch(rows)
            record["train_seconds"] = run.seconds_since_start()
            self._finish_tables()
            with self._averaged():
                run.finished = self._end_epoch(record, valid, valid_rows)
            run.next_epoch()
            if checkpoint is not None and (run.finished or checkpoint.is_due()):
                checkpoint.save(self._snapshot())
        if self.config.average is not None and run.best.report is None:
            self._swap_average()
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

    def _train_epoch(self, rows: RowTensors) -> dict[str, Any]:
        self.model.train()
        run = self._run
        self._observer.start_epoch(self._steps_per_epoch, taken=run.batches)
        for rows_B in islice(self._batches(rows, run.epoch), run.batches, None):
            losses = self._step(rows.take(rows_B), rows.targets(rows_B))
            run.sums_T += losses.means_T * losses.totals_T
            run.totals_T += losses.totals_T
            run.steps += 1
            run.batches += 1
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._checkpoint.save(self._snapshot())
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
        return {"train_loss": weighted} | named | self._observer.record()

    def _batches(self, rows: RowTensors, epoch: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        batches: Iterable[Tensor]
        if rows.groups is not None:
            batches = grouped_batches(rows.groups, self.config.batch_size, generator)
        else:
            order = torch.randperm(rows.num_rows, generator=generator).to(self.device)
            batches = torch.split(order, self.config.batch_size)
        named = f"epoch {epoch}/{self.config.max_epochs}"
        with tqdm(total=rows.num_rows, desc=named, unit="rows", disable=not self.progress) as bar:
            for rows_B in batches:
                yield rows_B
                bar.update(rows_B.numel())

    def _step(self, inputs: Inputs, targets: Targets) -> TaskLosses:
        """Take one step; return the losses before it, still on the device."""
        embedded = self.model.embeddings(inputs)
        for vectors_SD in embedded.vectors:
            vectors_SD.requires_grad_()
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            predicted = self.model.from_embedded(embedded, inputs)
        losses = self._losses(predicted.headed, targets)
        weighted_T = losses.means_T * self.task_weights_T
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        boundary = Boundary(embedded.vectors, self._dense)
        look = self._observer.is_due()
        seen_TT = None
        if look and not self.balancer.gives_gramian:
            seen_TT = task_gramian(weighted_T, boundary)
        balanced = self.balancer.backward(
            weighted_T,
            weighted_T.detach() != 0,
            boundary,
            penalty=self._penalty(predicted, targets),
        )
        gramian_TT = balanced.gramian_TT if seen_TT is None else seen_TT
        if look and gramian_TT is not None:
            self._observer.see(predicted.shared, balanced.weights_T, gramian_TT)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._dense, self.config.clip_norm)
        factor = self._set_rates()
        for optimizer in self.optimizers:
            optimizer.step()
        if self._average is not None:
            self._update_average(self._average, self.config.average or 0)
        gradients = [
            torch.zeros_like(vectors_SD) if vectors_SD.grad is None else vectors_SD.grad
            for vectors_SD in embedded.vectors
        ]
        self.table_optimizer.step(embedded.touched, gradients, factor=factor)
        return TaskLosses(losses.means_T.detach(), losses.totals_T)

    def _set_rates(self) -> float:
        """Give the optimizers their rates for this step; return the schedule's factor."""
        num_steps = self._steps_per_epoch * self.config.max_epochs
        factor = self.config.schedule.factor(self._run.steps, num_steps)
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
        return factor

    def _losses(self, headed: Headed, targets: Targets) -> TaskLosses:
        outputs = self.model.outputs
        return task_losses(
            headed, targets, self.schema.tasks, outputs.mean_T, outputs.std_T, self.model.heads
        )

    def _penalty(self, predicted: Predicted, targets: Targets) -> Tensor | None:
        """Return what the sharing structure and the heads add to the loss."""
        found = [predicted.shared.penalty, self.model.heads.penalty(predicted.headed, targets)]
        terms = [term for term in found if term is not None]
        return sum(terms[1:], start=terms[0]) if terms else None

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the running mean of the weights in their place inside the block."""
        if self._average is None:
            yield
            return
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    @torch.no_grad()
    def _update_average(self, average: Sequence[Tensor], decay: float) -> None:
        for parameter, mean in zip(self._dense, average, strict=True):
            mean.lerp_(parameter, 1 - decay)

    @torch.no_grad()
    def _swap_average(self) -> None:
        for parameter, mean in zip(self._dense, self._average or (), strict=True):
            held = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(held)

    def _snapshot(self) -> Snapshot:
        """Return all that changes during a run."""
        run, (looks, seen) = self._run, self._observer.state()
        kept, weights = run.best.state()
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for place, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{place}.{key}": v for key, v in state.items()}
        tensors |= {f"table.{n}": v for n, v in enumerate(self.table_optimizer.accumulators)}
        tensors |= {f"average.{n}": v for n, v in enumerate(self._average or ())}
        tensors |= {f"balance.{name}": v for name, v in self.balancer.state_dict().items()}
        tensors |= {f"observer.{name}": value for name, value in seen.items()}
        tensors |= {f"best.{name}": value for name, value in weights.items()}
        tensors |= {"sums": run.sums_T, "totals": run.totals_T, "random": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return Snapshot(run.values() | {"looks": looks, "best": kept}, tensors)

    def _load(self, saved: Snapshot) -> None:
        """Take what `_snapshot` returned."""
        values, tensors = saved.values, saved.tensors
        self._run.load(values, tensors["sums"], tensors["totals"])
        self._run.best.load_state(values["best"], under("best.", tensors))
        self.model.load_state_dict(under("model.", tensors))
        for number, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for name, value in under(f"optimizer.{number}.", tensors).items():
                place, key = name.split(".", 1)
                # fused optimizers want the count of steps beside the weights, others on the CPU
                state.setdefault(int(place), {})[key] = value
            whole = optimizer.state_dict() | {"state": state}
            optimizer.load_state_dict(whole)
        for number, accumulator_R in enumerate(self.table_optimizer.accumulators):
            accumulator_R.copy_(tensors[f"table.{number}"])
        for number, mean in enumerate(self._average or ()):
            mean.copy_(tensors[f"average.{number}"])
        self.balancer.load_state_dict(under("balance.", tensors))
        self._observer.load_state(values["looks"], under("observer.", tensors))
        torch.set_rng_state(tensors["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"].cpu(), self.device)

    def _finish_tables(self) -> None:
        accumulators = self.table_optimizer.accumulators
        for table, accumulator_R in zip(self.model.embeddings.each(), accumulators, strict=True):
            table.fill_untrained(accumulator_R > 0)

    def _validate(
        self, epoch: int, valid: Batch, rows: RowTensors
    ) -> tuple[dict[str, float], Report]:
        headed = predict_heads(self.model, rows)
        losses_T = validation_losses(self.model, self.schema, rows, headed)
        record = {"valid_loss": float((losses_T * self.task_weights_T.cpu()).sum())}
        _check_finite(epoch, record)
        report = evaluate_logits(self.model, self.schema, valid, headed.logits_BZ)
        record |= {
            f"valid.{found.task}.{found.metric}": found.value for found in report.measurements
        }
        return record, report


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
