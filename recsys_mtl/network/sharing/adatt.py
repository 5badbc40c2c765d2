"""AdaTT: tasks read the experts of all tasks, and their own once more by a residual.

Shape letters: B rows, V views, I input width, T tasks, E experts of all tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from recsys_mtl.network.layers import cast_once, make_experts, mix_all
from recsys_mtl.network.sharing.base import (
    Columns,
    Count,
    Dropout,
    ExpertDims,
    Shared,
    Sharing,
    SharingModule,
    expert_names,
    whole_roster,
)
from recsys_mtl.network.sharing.gating import Gating
from recsys_mtl.spec import spec


@spec
class AdaTT(Sharing, kind="adatt"):
    """AdaTT-sp: ``f_k = sum_i g_k(x_k)_i e_i + sum_(i of k) v_ki e_i``, level by level.

    The first sum goes over the experts of all tasks; the second, linear and without a gate, over
    the task's own. With one expert per task v is 1. Experts of task k read ``f_k`` of the level
    below.

    Parameters
    ----------
    num_levels
        Fusion levels.
    num_task_experts
        Experts that each task has per level.
    expert_dims
        Widths of each expert's layers, at least one; the same in all levels.
    dropout
        Share of activations dropped after each expert layer in training.
    normalize_experts
        End experts in layer normalisation and Swish instead of ReLU.
    gating
        How the gates behave.

    References
    ----------
    D. Li et al., "AdaTT: Adaptive Task-to-Task Fusion Network for Multitask Learning in
    Recommendations", KDD 2023, section 3.
    DIFF: gates have no bias.
    """

    num_levels: Count = 2
    _: KW_ONLY
    num_task_experts: Count = 2
    expert_dims: ExpertDims = (128,)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _AdaTT(self, input_dim, tasks)


@dataclass(frozen=True)
class _Fused:
    """What a level gives: T outputs (B, H), its gates and its experts."""

    tasks: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    experts: tuple[Tensor, ...]


class _Level(nn.Module):
    """One fusion level; T inputs in, T outputs out."""

    residual_TX: Tensor

    def __init__(self, spec: AdaTT, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        own = spec.num_task_experts
        self.experts = make_experts(
            num_tasks * own,
            input_dim,
            spec.expert_dims,
            dropout=spec.dropout,
            normalize=spec.normalize_experts,
        )
        self.gates = spec.gating.gates(input_dim, num_tasks * own, num_tasks)
        if own == 1:
            self.register_buffer("residual_TX", torch.ones(num_tasks, 1), persistent=False)
        else:
            weights_TX = torch.empty(num_tasks, own).uniform_(-sqrt(1 / own), sqrt(1 / own))
            self.residual_TX = nn.Parameter(weights_TX)
        self.num_own = own

    def forward(self, tasks: tuple[Tensor, ...]) -> _Fused:
        experts = tuple(
            expert(tasks[number // self.num_own]) for number, expert in enumerate(self.experts)
        )
        gates = tuple(gate(x_BI) for gate, x_BI in zip(self.gates, tasks, strict=True))
        # Both sums run over the same experts, so their weights are added before the one product.
        own_TT1 = torch.eye(len(tasks), device=gates[0].device)[:, :, None]
        residual_TE = (own_TT1 * self.residual_TX[:, None]).flatten(1)
        return _Fused(mix_all(experts, torch.stack(gates, dim=1) + residual_TE), gates, experts)


class _AdaTT(SharingModule):
    def __init__(self, spec: AdaTT, input_dim: int, tasks: Sequence[str]) -> None:
        super().__init__()
        widths = [input_dim, *[spec.expert_dims[-1]] * (spec.num_levels - 1)]
        self.levels = nn.ModuleList(_Level(spec, width, len(tasks)) for width in widths)
        self.gating = spec.gating
        self.num_tasks = len(tasks)
        names = expert_names(tasks, spec.num_task_experts)
        self.rosters = (whole_roster(names, len(tasks), bypassing=True),) * spec.num_levels
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        tasks: tuple[Tensor, ...] = (cast_once(x_BVI[:, 0]),) * self.num_tasks
        levels: list[_Fused] = []
        for level in self.levels:
            levels.append(level(tasks))
            tasks = levels[-1].tasks
        gates = tuple(level.gates for level in levels)
        penalty = self.gating.penalty(gate_BE for level in gates for gate_BE in level)
        experts = tuple(level.experts for level in levels)
        return Shared(tasks, gates, experts, penalty, self.rosters)
