"""Towers: each task has layers of its own, side by side.

Shape letters: B rows, H representation width, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, cast

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule
from recsys_mtl.network.layers import MLP, linear
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Task
from recsys_mtl.spec import Spec, spec


class Tower(nn.Module):
    """One task's own layers: an MLP and a linear layer; (B, input_dim) -> (B, num_logits).

    Parameters
    ----------
    input_dim
        Width of the input.
    dims
        Widths of the hidden layers.
    num_logits
        Outputs.
    dropout
        Share of activations dropped after each hidden layer in training.
    """

    def __init__(
        self, input_dim: int, dims: Sequence[int], num_logits: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.hidden = MLP(input_dim, dims, dropout=dropout)
        self.output = linear(self.hidden.output_dim, num_logits)

    def forward(self, x_BH: Tensor) -> Tensor:
        """Return the logits."""
        return cast("Tensor", self.output(self.hidden(x_BH)))

    @torch.no_grad()
    def set_bias(self, bias_Z: Tensor) -> None:
        """Start the logits at these values."""
        self.output.bias.copy_(bias_Z)


@spec
class TowerDims(Spec):
    """Widths of the tower of one task, such as a rating that needs more layers than a click.

    Parameters
    ----------
    task
        Name of the task.
    dims
        Widths of its tower's hidden layers; none leaves the linear layer alone.
    """

    task: str
    dims: Dims


@spec
class Towers(Heads, kind="towers"):
    """One MLP and one linear layer per task.

    Parameters
    ----------
    dims
        Widths of each tower's hidden layers; none leaves the linear layer alone.
    dropout
        Share of activations dropped after each hidden layer in training.
    by_task
        Widths of the towers of single tasks, in the place of `dims`.
    """

    links = "none"

    dims: Dims = (64,)
    _: KW_ONLY
    dropout: Dropout = 0.0
    by_task: Annotated[Sequence[TowerDims], AfterValidator(tuple)] = ()

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If `by_task` names no task, or a task twice.
        """
        known = [task.name for task in tasks]
        own = {one.task: one.dims for one in self.by_task}
        given = [one.task for one in self.by_task]
        wrong = [name for name in given if name not in known or given.count(name) > 1]
        if wrong:
            raise SchemaError(
                f"Towers.by_task must name tasks, each once: {known}. Found {wrong[0]!r} in {given}."
            )
        return TowersModule(
            Tower(input_dim, own.get(task.name, self.dims), task.num_logits, dropout=self.dropout)
            for task in tasks
        )


class TowersModule(HeadsModule):
    """Towers side by side; what other heads add is a loss or links between the towers.

    Parameters
    ----------
    towers
        One per task; their logits lie side by side.
    """

    def __init__(self, towers: Iterable[Tower]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        """Map T representations (B, H) to logits (B, Z)."""
        logits = [tower(task_BH) for tower, task_BH in zip(self.towers, tasks, strict=True)]
        return Headed(torch.cat(logits, dim=1))

    def set_bias(self, bias_Z: Tensor) -> None:
        """Start the logits at these values."""
        start = 0
        for tower in cast("Iterable[Tower]", self.towers):
            stop = start + tower.output.out_features
            tower.set_bias(bias_Z[start:stop])
            start = stop
