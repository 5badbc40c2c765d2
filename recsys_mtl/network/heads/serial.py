"""Serial: a task's tower reads what its parents put out.

Shape letters: B rows, H representation width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import cast

import torch
from torch import Tensor, nn

from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule
from recsys_mtl.network.heads.lineage import parent_numbers, parents_first
from recsys_mtl.network.heads.towers import Tower, TowersModule
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Task
from recsys_mtl.spec import spec


@spec
class Serial(Heads, kind="serial"):
    """A task's tower reads its representation and the logits of its parents.

    The weights on the parents' logits start at 0: the heads start as plain towers, at the base rates.

    Parameters
    ----------
    dims
        Widths of each tower's hidden layers; none leaves the linear layer alone.
    dropout
        Share of activations dropped after each hidden layer in training.
    stop_gradient
        Whether a task's loss leaves its parents' towers alone.
    """

    links = "parents"

    dims: Dims = (64,)
    _: KW_ONLY
    dropout: Dropout = 0.0
    stop_gradient: bool = False

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If a task leads back to itself.
        """
        return _Serial(self, input_dim, tasks)


class _Serial(TowersModule):
    def __init__(self, spec: Serial, input_dim: int, tasks: Sequence[Task]) -> None:
        parents_of = parent_numbers(tasks)
        widths = [
            input_dim + sum(tasks[parent].num_logits for parent in parents)
            for parents in parents_of
        ]
        towers = [
            Tower(width, spec.dims, task.num_logits, dropout=spec.dropout)
            for width, task in zip(widths, tasks, strict=True)
        ]
        super().__init__(towers)
        self.parents = parents_of
        self.order = parents_first(tasks)
        self.stop_gradient = spec.stop_gradient
        for tower in towers:
            first = cast("nn.Linear", tower.hidden[0] if spec.dims else tower.output)
            nn.init.zeros_(first.weight[:, input_dim:])

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        logits: dict[int, Tensor] = {}
        for number in self.order:
            x_BH = tasks[number]
            if self.parents[number]:
                outputs = [logits[parent] for parent in self.parents[number]]
                if self.stop_gradient:
                    outputs = [output.detach() for output in outputs]
                x_BH = torch.cat((x_BH, *outputs), dim=1)
            logits[number] = self.towers[number](x_BH)
        return Headed(torch.cat([logits[number] for number in range(len(tasks))], dim=1))
