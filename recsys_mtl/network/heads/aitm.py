"""AITM: along a chain of tasks, attention decides how much of the one before to take over.

Shape letters: B rows, H width, U = 2 tokens: information from the parent, and the task's own query.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule, logit_slices
from recsys_mtl.network.heads.lineage import parent_numbers, parents_first
from recsys_mtl.network.heads.towers import Tower, TowersModule
from recsys_mtl.network.inputs import Targets
from recsys_mtl.network.layers import MLP
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Binary, Task
from recsys_mtl.spec import spec


@spec
class AITM(Heads, kind="aitm"):
    """Each task attends to its own query q and to what its parent hands down.

    ``z = sum_u w_u h3(u)`` over u in {MLP(z_parent), q}, with ``w = softmax(<h1(u), h2(u)> / sqrt(k))``.
    A task without a parent has z = q. The chain is that of the tasks' `parents`, in any order.

    Parameters
    ----------
    dims
        Widths of the layers that make a task's query; none takes the representation itself.
    output_dims
        Widths of the hidden layers between z and the logits.
    dropout
        Share of activations dropped after each hidden layer in training.
    calibrator
        Weight of ``mean max(0, p_child - p_parent)``, at least 0: for nested labels, where whoever
        buys has clicked, a step is never likelier than the one before. Binary tasks only, and only
        where both are in the same space: the score of a task `within` its parent is conditional, and
        may well be larger.

    References
    ----------
    D. Xi et al., "Modeling the Sequential Dependence among Audience Multi-step Conversions with
    Multi-task Learning in Targeted Display Advertising", KDD 2021, section 3.
    """

    links = "parents"

    dims: Dims = (64,)
    _: KW_ONLY
    output_dims: Dims = ()
    dropout: Dropout = 0.0
    calibrator: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.6

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If a task has more than one parent, or leads back to itself.
        """
        crowded = next((task for task in tasks if len(task.built_on) > 1), None)
        if crowded is not None:
            raise SchemaError(
                f"Heads 'aitm' take one parent per task. Task {crowded.name!r} has"
                f" {list(crowded.built_on)}: keep one, or choose heads 'dbmtl'."
            )
        return _AITM(self, input_dim, tasks)


class _Transfer(nn.Module):
    """What a task takes over from its parent; two times (B, H) -> (B, H)."""

    def __init__(self, width: int, *, dropout: float) -> None:
        super().__init__()
        self.info = MLP(width, (width,), dropout=dropout)
        self.h1, self.h2, self.h3 = (_projection(width) for _ in range(3))
        self.scale = 1 / math.sqrt(width)

    def forward(self, query_BH: Tensor, parent_BH: Tensor) -> Tensor:
        tokens_UBH = torch.stack((self.info(parent_BH), query_BH))
        products_UBH = self.h1(tokens_UBH) * self.h2(tokens_UBH)
        wide = torch.promote_types(products_UBH.dtype, torch.float32)
        scores_UB = products_UBH.sum(dim=-1, dtype=wide) * self.scale
        shares_UB = torch.softmax(scores_UB, dim=0).to(products_UBH.dtype)
        return torch.sum(shares_UB[..., None] * self.h3(tokens_UBH), dim=0)


def _projection(width: int) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class _TransferTower(Tower):
    def __init__(self, spec: AITM, input_dim: int, task: Task) -> None:
        query = MLP(input_dim, spec.dims, dropout=spec.dropout)
        width = query.output_dim
        super().__init__(width, spec.output_dims, task.num_logits, dropout=spec.dropout)
        self.query = query
        self.transfer = _Transfer(width, dropout=spec.dropout) if task.built_on else None


class _AITM(TowersModule):
    def __init__(self, spec: AITM, input_dim: int, tasks: Sequence[Task]) -> None:
        super().__init__(_TransferTower(spec, input_dim, task) for task in tasks)
        self.calibrator = spec.calibrator
        self.parents = parent_numbers(tasks)
        self.order = parents_first(tasks)
        starts = [part.start for part in logit_slices(tasks)]
        self.nested_pairs = [
            (starts[child], starts[parent])
            for child, parents in enumerate(self.parents)
            for parent in parents
            if _nested(tasks[child], tasks[parent])
        ]

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        found: dict[int, Tensor] = {}
        for number in self.order:
            tower = cast("_TransferTower", self.towers[number])
            z_BH = tower.query(tasks[number])
            if tower.transfer is not None:
                z_BH = tower.transfer(z_BH, found[self.parents[number][0]])
            found[number] = z_BH
        logits = [tower(found[number]) for number, tower in enumerate(self.towers)]
        return Headed(torch.cat(logits, dim=1))

    def penalty(self, headed: Headed, targets: Targets) -> Tensor | None:
        del targets  # the order of probabilities must hold on every row, whatever its labels
        if not self.nested_pairs or self.calibrator == 0:
            return None
        logits_BZ = headed.logits_BZ
        scores_BZ = logits_BZ.to(torch.promote_types(logits_BZ.dtype, torch.float32)).sigmoid()
        excess = [
            (scores_BZ[:, child] - scores_BZ[:, parent]).relu().sum()
            for child, parent in self.nested_pairs
        ]
        return torch.stack(excess).sum() * (self.calibrator / max(logits_BZ.shape[0], 1))


def _nested(child: Task, parent: Task) -> bool:
    return (
        isinstance(child, Binary) and isinstance(parent, Binary) and child.within == parent.within
    )
