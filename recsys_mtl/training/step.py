"""Stepper: from encoded rows to changed weights, one step at a time.

Shape letters: B rows, T tasks, S looked-up vectors of a batch, D embedding dim.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import (
    Embedded,
    Headed,
    Inputs,
    MultiTaskModel,
    Predicted,
    Shared,
    Targets,
    Touched,
)
from recsys_mtl.schema import Schema
from recsys_mtl.training.balancing import Balanced, Boundary, Fixed, check_signs, task_gramian
from recsys_mtl.training.checkpoint import under
from recsys_mtl.training.compiling import compiled
from recsys_mtl.training.config import TrainConfig
from recsys_mtl.training.distributed import Processes, sum_, sum_gradients
from recsys_mtl.training.losses import TaskLosses, check_losses, loss_weights, task_losses
from recsys_mtl.training.observe import Observer
from recsys_mtl.training.optim import build_optimizers
from recsys_mtl.training.run import Clock


@dataclass(frozen=True)
class _Pass:
    """What one batch gave on its way forward and back."""

    losses: TaskLosses
    touched: tuple[Touched, ...]
    gradients: tuple[Tensor, ...]


@dataclass(frozen=True)
class _Share:
    """A batch's share of a step: of each task's observed rows, and of the batches."""

    losses_T: Tensor
    penalty: float


class Stepper:
    """A model, its optimizers, its balance, and the running mean of its weights.

    Parameters
    ----------
    model
        On the device it is to be trained on.
    schema, config
        Tasks and settings.
    seed
        Of what a balance draws at random.
    observer
        What looks at steps.
    processes
        Those that take every step together, each on rows of its own; None: this one alone.

    Raises
    ------
    SchemaError
        If the settings do not go together.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        schema: Schema,
        config: TrainConfig,
        *,
        seed: int,
        observer: Observer,
        processes: Processes | None = None,
    ) -> None:
        check_losses(schema.tasks, model.heads)
        check_signs(config.balance, model.heads)
        check_accumulation(config)
        check_processes(config, processes)
        self.processes = processes
        self.model, self.schema, self.config = model, schema, config
        self.observer = observer
        self.device = next(model.parameters()).device
        self.task_weights_T = torch.tensor(
            [task.weight for task in schema.tasks], device=self.device
        )
        self.optimizers = build_optimizers(model, config.optimizer, config.tower_optimizers)
        self.table_optimizer = config.table_optimizer.build(model.embeddings.each())
        self.balancer = config.balance.build(schema.tasks, seed=seed, device=str(self.device))
        self.dense = tuple(p for p in model.parameters() if p.requires_grad)
        self._rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self._average: list[Tensor] = []
        self._averaged = 0
        if config.average is not None:
            self._average = [parameter.detach().clone() for parameter in self.dense]
        self.goes_on = False
        self._first: list[tuple[Tensor, Tensor]] | None = None
        self._known: list[Tensor] = []
        self._predict: Callable[[Embedded, Inputs], Predicted] = model.from_embedded
        if config.compile:
            self._predict = compiled(model)

    def take(
        self,
        batches: Sequence[tuple[Inputs, Targets]],
        *,
        factor: float = 1.0,
        clock: Clock | None = None,
    ) -> TaskLosses:
        """Take one step on the rows of all batches together.

        Parameters
        ----------
        batches
            Inputs and labels; more than one where gradients are accumulated.
        factor
            What learning rates are multiplied with.
        clock
            Gets the time of each phase.

        Returns
        -------
        TaskLosses
            Before the step, still on the device.
        """
        clock = clock or Clock()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        shares = self._shares([targets for _, targets in batches])
        passes = [
            self._pass(inputs, targets, share, clock)
            for (inputs, targets), share in zip(batches, shares, strict=True)
        ]
        sum_gradients(self.dense, self.processes)
        if self.config.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.dense, self.config.clip_norm)
        self._set_rates(factor)
        for optimizer in self.optimizers:
            optimizer.step()
        self._update_average()
        touched, gradients = _joined(passes)
        self.table_optimizer.step(touched, gradients, factor=factor)
        clock.lap("optimizer")
        if len(passes) == 1:
            return passes[0].losses
        totals_PT = torch.stack([one.losses.totals_T for one in passes])
        sums_PT = torch.stack([one.losses.means_T for one in passes]) * totals_PT
        totals_T = totals_PT.sum(dim=0)
        return TaskLosses(sums_PT.sum(dim=0) / totals_T.where(totals_T > 0, 1), totals_T)

    def _shares(self, targets: Sequence[Targets]) -> list[_Share | None]:
        """Return what each batch's losses count in the step: all, where there is one batch."""
        if len(targets) == 1 and self.processes is None:
            return [None]
        world = 1 if self.processes is None else self.processes.world
        weights = [loss_weights(one, self.schema.tasks, self.model.heads) for one in targets]
        counts_PT = torch.stack([weights_BT.sum(dim=0) for weights_BT in weights])
        total_T = sum_(counts_PT.sum(dim=0), self.processes)
        shares_PT = counts_PT / torch.where(total_T > 0, total_T, 1)
        return [_Share(share_T, 1 / (len(targets) * world)) for share_T in shares_PT]

    def _pass(self, inputs: Inputs, targets: Targets, share: _Share | None, clock: Clock) -> _Pass:
        """Add the gradients of one batch."""
        embedded = self.model.embeddings(inputs)
        for vectors_SD in embedded.vectors:
            vectors_SD.requires_grad_()
        with self._precision():
            predicted = self._predict(embedded, inputs)
        losses = self._losses(predicted.headed, targets)
        weighted_T = losses.means_T * self.task_weights_T
        penalty = self._penalty(predicted, targets)
        if share is not None:
            weighted_T = weighted_T * share.losses_T
            penalty = None if penalty is None else penalty * share.penalty
        clock.lap("forward")
        self._backward(weighted_T, penalty, embedded, predicted.shared, len(inputs))
        clock.lap("backward")
        gradients: Sequence[Tensor] = [
            torch.zeros_like(vectors_SD) if vectors_SD.grad is None else vectors_SD.grad
            for vectors_SD in embedded.vectors
        ]
        touched, gradients = self.model.embeddings.exchange(embedded.touched, gradients)
        return _Pass(TaskLosses(losses.means_T.detach(), losses.totals_T), touched, gradients)

    def _precision(self) -> AbstractContextManager[object]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _backward(
        self,
        weighted_T: Tensor,
        penalty: Tensor | None,
        embedded: Embedded,
        shared: Shared,
        num_rows: int,
    ) -> Balanced:
        boundary = Boundary(embedded.vectors, self.dense)
        look = self.observer.is_due() and num_rows > 0
        seen_TT = None
        if look and not self.balancer.gives_gramian:
            seen_TT = task_gramian(weighted_T, boundary)
        present_T = weighted_T.detach() != 0
        balanced = self.balancer.backward(weighted_T, present_T, boundary, penalty=penalty)
        gramian_TT = balanced.gramian_TT if seen_TT is None else seen_TT
        if look and gramian_TT is not None:
            self.observer.see(shared, balanced.weights_T, gramian_TT)
        return balanced

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

    def _set_rates(self, factor: float) -> None:
        for optimizer, rates in zip(self.optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the running mean of the weights in their place inside the block."""
        self.swap_average()
        try:
            yield
        finally:
            self.swap_average()

    @torch.no_grad()
    def swap_average(self) -> None:
        """Exchange the weights and their running mean, if one is kept."""
        for parameter, mean in zip(self.dense, self._average, strict=bool(self._average)):
            held = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(held)

    @torch.no_grad()
    def _update_average(self) -> None:
        if not self._average:
            return
        # the first weights must not weigh as if there had been steps before them
        share = max(1 - (self.config.average or 0), 9 / (10 + self._averaged))
        self._averaged += 1
        for parameter, mean in zip(self.dense, self._average, strict=True):
            mean.lerp_(parameter, share)

    def count_as_trained(self, rows: Sequence[Tensor]) -> None:
        """Take rows for trained whose state is not known.

        Parameters
        ----------
        rows
            Per table, bool (R,).
        """
        self._known = [rows_R.to(self.device) for rows_R in rows]

    def trained(self, number: int) -> Tensor:
        """Tell which rows of a table were trained, in this run or one that it goes on from, (R,)."""
        trained_R = self.table_optimizer.trained(number)
        return trained_R | self._known[number] if self._known else trained_R

    def keep_tables(self) -> None:
        """Let `reset_tables` go back to the tables as they are now: a warm start must not be lost."""
        self.goes_on = True
        if self.config.reset_tables and self.config.max_epochs > 1:
            changing: list[Tensor] = [table.weight_RD for table in self.table_optimizer.tables]
            changing += self.table_optimizer.state().values()
            self._first = [(tensor, tensor.detach().clone()) for tensor in changing]

    @torch.no_grad()
    def reset_tables(self) -> None:
        """Draw the tables afresh, or set them to what was kept, and their optimizer's state with them."""
        if self._first is None:
            self.table_optimizer.reset()
            return
        for tensor, kept in self._first:
            tensor.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that steps change."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for number, optimizer in enumerate(self.optimizers):
            for place, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{place}.{key}": v for key, v in state.items()}
        tensors |= {f"table.{name}": v for name, v in self.table_optimizer.state().items()}
        tensors |= {f"known.{n}": v for n, v in enumerate(self._known)}
        tensors |= {f"average.{n}": v for n, v in enumerate(self._average)}
        tensors["averaged"] = torch.tensor(self._averaged)
        tensors |= {f"balance.{name}": v for name, v in self.balancer.state_dict().items()}
        tensors["random"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state` returned."""
        self.model.load_state_dict(under("model.", tensors))
        for number, optimizer in enumerate(self.optimizers):
            load_optimizer(optimizer, under(f"optimizer.{number}.", tensors))
        self.table_optimizer.load_state(under("table.", tensors))
        known = under("known.", tensors)
        self.count_as_trained([known[str(number)] for number in range(len(known))])
        for number, mean in enumerate(self._average):
            mean.copy_(tensors[f"average.{number}"])
        self._averaged = int(tensors["averaged"])
        self.balancer.load_state_dict(under("balance.", tensors))
        torch.set_rng_state(tensors["random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"].cpu(), self.device)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give a torch optimizer its state, named ``place.key``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        place, key = name.split(".", 1)
        state.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def check_accumulation(config: TrainConfig) -> None:
    """Refuse to accumulate under a balance that reads the whole batch.

    Raises
    ------
    SchemaError
        If the two do not go together.
    """
    if config.accumulate > 1 and not isinstance(config.balance, Fixed):
        raise SchemaError(
            f"accumulate={config.accumulate} needs balance 'fixed': {config.balance.kind!r} reads the"
            " losses or gradients of all rows of a step at once. Choose one or the other."
        )


def check_processes(config: TrainConfig, processes: Processes | None) -> None:
    """Refuse to train in several processes under a balance that reads the whole batch.

    Raises
    ------
    SchemaError
        If the two do not go together.
    """
    if processes is not None and not isinstance(config.balance, Fixed):
        raise SchemaError(
            f"Training in {processes.world} processes needs balance 'fixed': {config.balance.kind!r}"
            " reads the losses or gradients of all their rows at once. Use one process, or 'fixed'."
        )


def _joined(passes: Sequence[_Pass]) -> tuple[tuple[Touched, ...], tuple[Tensor, ...]]:
    """Put what the batches of a step touched one after another, per table."""
    if len(passes) == 1:
        return passes[0].touched, passes[0].gradients
    touched, gradients = [], []
    for number in range(len(passes[0].touched)):
        found = [one.touched[number] for one in passes]
        own = [one.gradients[number] for one in passes]
        starts = torch.tensor([0, *(len(one) for one in own)]).cumsum(0).tolist()
        weights_K = None
        if any(one.weights_K is not None for one in found):
            weights_K = torch.cat([_weights(one, own[0]) for one in found])
        slots = [one.slots_K + start for one, start in zip(found, starts, strict=False)]
        touched.append(
            Touched(torch.cat([one.rows_K for one in found]), torch.cat(slots), weights_K)
        )
        gradients.append(torch.cat(own))
    return tuple(touched), tuple(gradients)


def _weights(touched: Touched, like: Tensor) -> Tensor:
    if touched.weights_K is not None:
        return touched.weights_K
    return like.new_ones(touched.rows_K.numel())
