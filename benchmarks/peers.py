"""The same MMoE as users write it by hand: one `nn.Embedding` per column, dense Adam.

Shape letters: B rows, F id columns, N dense numbers, E experts, H expert width, T tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_mtl.network import Inputs, Targets

NUM_TASKS = 3


class PlainMMoE(nn.Module):
    """Experts stacked, gates by einsum, one table per column."""

    def __init__(
        self,
        num_rows: Sequence[int],
        dense_dim: int,
        *,
        dim: int,
        num_experts: int,
        expert_dims: Sequence[int],
        tower_dim: int,
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, dim) for rows in num_rows)
        width = len(num_rows) * dim + dense_dim
        self.experts = nn.ModuleList(_layers([width, *expert_dims]) for _ in range(num_experts))
        self.gates = nn.ModuleList(nn.Linear(width, num_experts) for _ in range(NUM_TASKS))
        self.towers = nn.ModuleList(
            nn.Sequential(_layers([expert_dims[-1], tower_dim]), nn.Linear(tower_dim, 1))
            for _ in range(NUM_TASKS)
        )

    def forward(self, ids_BF: Tensor, dense_BN: Tensor) -> Tensor:
        """Return logits (B, T)."""
        found = [table(ids_BF[:, place]) for place, table in enumerate(self.tables)]
        x_BI = torch.cat([*found, dense_BN], dim=1)
        experts_BEH = torch.stack([expert(x_BI) for expert in self.experts], dim=1)
        logits = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            gate_BE = torch.softmax(gate(x_BI), dim=1)
            logits.append(tower(torch.einsum("be,beh->bh", gate_BE, experts_BEH)))
        return torch.cat(logits, dim=1)


class PlainLoop:
    """One training step with Adam on all parameters, tables included."""

    def __init__(self, model: PlainMMoE) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters())

    def step(self, inputs: Inputs, targets: Targets) -> None:
        """Take one step on two binary tasks and a masked rating."""
        logits_BT = self.model(inputs.ids_BF, inputs.dense_BN)
        labels_BT, weights_BT = targets.labels_BT, targets.weights_BT
        loss = F.binary_cross_entropy_with_logits(logits_BT[:, :2], labels_BT[:, :2])
        errors_B = (logits_BT[:, 2] - labels_BT[:, 2]).square() * weights_BT[:, 2]
        self.optimizer.zero_grad()
        torch.autograd.backward(loss + errors_B.sum() / weights_BT[:, 2].sum().clamp(min=1))
        self.optimizer.step()


class RechubLoop:
    """The step of torch-rechub's multi-task trainer, without its data loader."""

    def __init__(
        self, multi_task: Any, features: Any, num_rows: Sequence[int], **sizes: Any
    ) -> None:
        dim, dense_dim = sizes["dim"], sizes["dense_dim"]
        columns = [
            features.SparseFeature(f"id_{place}", vocab_size=rows, embed_dim=dim)
            for place, rows in enumerate(num_rows)
        ]
        columns += [features.DenseFeature(f"number_{place}") for place in range(dense_dim)]
        tower = {"dims": [sizes["tower_dim"]], "dropout": 0.0}
        self.num_ids = len(num_rows)
        self.model = multi_task.MMOE(
            columns,
            ["classification", "classification", "regression"],
            sizes["num_experts"],
            expert_params={"dims": list(sizes["expert_dims"]), "dropout": 0.0},
            tower_params_list=[tower] * NUM_TASKS,
        )
        self.optimizer = torch.optim.Adam(self.model.parameters())

    def step(self, inputs: Inputs, targets: Targets) -> None:
        """Take one step; it has no masks, so missing ratings count as 0."""
        columns = {f"id_{place}": inputs.ids_BF[:, place] for place in range(self.num_ids)}
        columns |= {f"number_{place}": column for place, column in enumerate(inputs.dense_BN.T)}
        scores_BT = self.model(columns)
        labels_BT = targets.labels_BT
        loss = F.binary_cross_entropy(scores_BT[:, :2], labels_BT[:, :2])
        loss = loss + F.mse_loss(scores_BT[:, 2], labels_BT[:, 2])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()


def _layers(dims: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(dims):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)
