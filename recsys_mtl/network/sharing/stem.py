"""STEM: each task has embeddings of its own, beside shared ones.

Shape letters: B rows, V views (T task views, then the shared one), I input width, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import cast

from torch import Tensor, nn

from recsys_mtl.network.layers import cast_once, make_experts, mix
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
class STEM(Sharing, kind="stem"):
    """Task experts read the task's own embeddings, shared experts read shared ones.

    A task's gate mixes the experts of all tasks and sees their output, but its gradient stops at
    those of other tasks, so what one task wants of an id never bends the embedding of another.
    The gate of task k reads ``x_k + x_shared``; the shared gate, between levels, stops nothing.

    Embedding tables, and their optimizer's state, are T + 1 times as wide: with 3 tasks, 4 times
    the memory.

    Parameters
    ----------
    num_levels
        Levels. With one, a task's loss has no gradient at all on another task's embeddings.
    num_shared_experts, num_task_experts
        Experts per level that are shared, and that each task has for itself.
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
    L. Su et al., "STEM: Unleashing the Power of Embeddings for Multi-task Recommendation",
    AAAI 2024.
    DIFF: gates are one linear layer, where the authors' code has an MLP; experts end in ReLU.
    """

    num_levels: Count = 1
    _: KW_ONLY
    num_shared_experts: Count = 1
    num_task_experts: Count = 1
    expert_dims: ExpertDims = (256, 128)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def num_views(self, num_tasks: int) -> int:
        """Return T + 1: one view per task, then the shared one."""
        return num_tasks + 1

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _STEM(self, input_dim, tasks)


@dataclass(frozen=True)
class _Mixed:
    """What a level gives: outputs of the views, its gates and its experts."""

    views: tuple[Tensor, ...]
    gates: tuple[Tensor, ...]
    experts: tuple[Tensor, ...]


class _Level(nn.Module):
    """One level; T task views and the shared one in, the same out, the last without the shared one."""

    def __init__(self, spec: STEM, input_dim: int, num_tasks: int, *, last: bool) -> None:
        super().__init__()
        self.task_experts = nn.ModuleList(
            _experts(spec, input_dim, spec.num_task_experts) for _ in range(num_tasks)
        )
        self.shared_experts = _experts(spec, input_dim, spec.num_shared_experts)
        num_experts = num_tasks * spec.num_task_experts + spec.num_shared_experts
        self.task_gates = spec.gating.gates(input_dim, num_experts, num_tasks)
        self.shared_gate = None if last else spec.gating.gate(input_dim, num_experts)

    def forward(self, views: tuple[Tensor, ...]) -> _Mixed:
        *own_views, shared_BI = views
        own = [
            [expert(x_BI) for expert in cast("nn.ModuleList", experts)]
            for experts, x_BI in zip(self.task_experts, own_views, strict=True)
        ]
        shared = [expert(shared_BI) for expert in self.shared_experts]
        stopped = [[expert_BH.detach() for expert_BH in outputs] for outputs in own]
        mixed, gates = [], []
        for task, (gate, x_BI) in enumerate(zip(self.task_gates, own_views, strict=True)):
            gates.append(gate(x_BI + shared_BI))
            seen = _joined([*stopped[:task], own[task], *stopped[task + 1 :], shared])
            mixed.append(mix(seen, gates[-1]))
        experts = _joined([*own, shared])
        if self.shared_gate is not None:
            gates.append(self.shared_gate(shared_BI))
            mixed.append(mix(experts, gates[-1]))
        return _Mixed(tuple(mixed), tuple(gates), experts)


class _STEM(SharingModule):
    def __init__(self, spec: STEM, input_dim: int, tasks: Sequence[str]) -> None:
        super().__init__()
        widths = [input_dim, *[spec.expert_dims[-1]] * (spec.num_levels - 1)]
        self.levels = nn.ModuleList(
            _Level(spec, width, len(tasks), last=number == spec.num_levels)
            for number, width in enumerate(widths, start=1)
        )
        self.gating = spec.gating
        names = (
            *expert_names(tasks, spec.num_task_experts),
            *expert_names(["shared"], spec.num_shared_experts),
        )
        inner = whole_roster(names, len(tasks) + 1)
        self.rosters = (*[inner] * (spec.num_levels - 1), whole_roster(names, len(tasks)))
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        views = cast_once(x_BVI).unbind(1)
        levels: list[_Mixed] = []
        for level in self.levels:
            levels.append(level(views))
            views = levels[-1].views
        gates = tuple(level.gates for level in levels)
        penalty = self.gating.penalty(gate_BE for level in gates for gate_BE in level)
        experts = tuple(level.experts for level in levels)
        return Shared(views, gates, experts, penalty, self.rosters)


def _joined(groups: Sequence[Sequence[Tensor]]) -> tuple[Tensor, ...]:
    return tuple(expert_BH for outputs in groups for expert_BH in outputs)


def _experts(spec: STEM, input_dim: int, count: int) -> nn.ModuleList:
    return make_experts(
        count,
        input_dim,
        spec.expert_dims,
        dropout=spec.dropout,
        normalize=spec.normalize_experts,
    )
