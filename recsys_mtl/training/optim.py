"""Optimizers of the dense parameters, as specs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.schema.features import Name
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training.tables import Penalty, Rate


class Optimizer(Spec, ABC):
    """A choice of optimizer for the dense parameters."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""


@spec
class Adam(Optimizer, kind="adam"):
    """Adam (Kingma & Ba, ICLR 2015).

    Parameters
    ----------
    learning_rate
        Step size.
    weight_decay
        L2 penalty, added to the gradient.
    """

    learning_rate: Rate = 2e-3
    _: KW_ONLY
    weight_decay: Penalty = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.Adam(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


@spec
class AdamW(Optimizer, kind="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Parameters
    ----------
    learning_rate
        Step size.
    weight_decay
        Share of each weight, times the step size, taken off per step.
    """

    learning_rate: Rate = 1e-3
    _: KW_ONLY
    weight_decay: Penalty = 0.01

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


@spec
class SGD(Optimizer, kind="sgd"):
    """Stochastic gradient descent.

    Parameters
    ----------
    learning_rate
        Step size.
    momentum
        Share of the last step kept.
    weight_decay
        L2 penalty, added to the gradient.
    """

    learning_rate: Rate = 0.01
    _: KW_ONLY
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Penalty = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )


@spec
class TowerOptimizer(Spec):
    """An optimizer for what is one task's own: its layers in the heads.

    Parameters
    ----------
    task
        Name of the task.
    optimizer
        Its optimizer, with its own learning rate.
    """

    task: Name
    optimizer: Optimizer


def build_optimizers(
    model: MultiTaskModel, optimizer: Optimizer, towers: Sequence[TowerOptimizer]
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of the dense parameters: those of single tasks, then that of all else.

    Raises
    ------
    SchemaError
        If a tower optimizer names no task of the model, or two name the same.
    """
    names = [task.name for task in model.outputs.tasks]
    check_towers(names, towers)
    built: list[torch.optim.Optimizer] = []
    taken: set[int] = set()
    for chosen in towers:
        own = list(model.heads.towers[names.index(chosen.task)].parameters())
        taken.update(map(id, own))
        if own:
            built.append(chosen.optimizer.build(own))
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    return [*built, optimizer.build(dense)] if dense else built


def check_towers(names: Sequence[str], towers: Sequence[TowerOptimizer]) -> None:
    """Check that tower optimizers name tasks of these names, each once.

    Raises
    ------
    SchemaError
        If one does not.
    """
    for number, chosen in enumerate(towers):
        if chosen.task not in names or chosen.task in [one.task for one in towers[:number]]:
            raise SchemaError(
                f"tower_optimizers must name tasks of the schema, each once. Found {chosen.task!r};"
                f" tasks: {list(names)}."
            )
