"""DBMTL: a task's last layers read those of the tasks it depends on.

Shape letters: B rows, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import cast

import torch
from torch import Tensor

from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule
from recsys_mtl.network.heads.lineage import parent_numbers, parents_first
from recsys_mtl.network.heads.towers import Tower, TowersModule
from recsys_mtl.network.layers import MLP
from recsys_mtl.network.sharing.base import Dims, Dropout, ExpertDims
from recsys_mtl.schema import Task
from recsys_mtl.spec import spec


@spec
class DBMTL(Heads, kind="dbmtl"):
    """Along a graph of tasks, ``r_t = MLP([tower_t; r_parent; ...])``; a linear layer reads r_t.

    Tasks may have any number of parents, and come in any order. One without parents is a plain MLP.

    Parameters
    ----------
    dims
        Widths of the layers of tower_t; none takes the representation itself.
    relation_dims
        Widths of the layers of r_t, at least one.
    dropout
        Share of activations dropped after each hidden layer in training.

    References
    ----------
    Q. Wang et al., "Deep Bayesian Multi-Target Learning for Recommender Systems", arXiv:1902.09154,
    2019.
    """

    links = "parents"

    dims: Dims = (64,)
    _: KW_ONLY
    relation_dims: ExpertDims = (32,)
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If a task leads back to itself.
        """
        return _DBMTL(self, input_dim, tasks)


class _RelationTower(Tower):
    """A tower whose hidden layers are those of r_t, behind layers that read no other task."""

    def __init__(self, spec: DBMTL, input_dim: int, task: Task) -> None:
        first = MLP(input_dim, spec.dims, dropout=spec.dropout)
        width = first.output_dim + len(task.built_on) * spec.relation_dims[-1]
        super().__init__(width, spec.relation_dims, task.num_logits, dropout=spec.dropout)
        self.first = first


class _DBMTL(TowersModule):
    def __init__(self, spec: DBMTL, input_dim: int, tasks: Sequence[Task]) -> None:
        super().__init__(_RelationTower(spec, input_dim, task) for task in tasks)
        self.parents = parent_numbers(tasks)
        self.order = parents_first(tasks)

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        relations: dict[int, Tensor] = {}
        logits: dict[int, Tensor] = {}
        for number in self.order:
            tower = cast("_RelationTower", self.towers[number])
            x_BH = tower.first(tasks[number])
            if self.parents[number]:
                handed_down = (relations[parent] for parent in self.parents[number])
                x_BH = torch.cat((x_BH, *handed_down), dim=1)
            relations[number] = tower.hidden(x_BH)
            logits[number] = tower.output(relations[number])
        return Headed(torch.cat([logits[number] for number in range(len(tasks))], dim=1))
