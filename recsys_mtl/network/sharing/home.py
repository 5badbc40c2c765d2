"""HoME: experts for all, for a group of tasks and for one task, in two levels.

Shape letters: B rows, V views, I input width, H representation width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.layers import MLP, Gate, mix
from recsys_mtl.network.sharing.base import (
    Columns,
    Count,
    Dropout,
    ExpertDims,
    Roster,
    Shared,
    Sharing,
    SharingModule,
    expert_names,
)
from recsys_mtl.network.sharing.gating import Gating
from recsys_mtl.spec import spec


@spec
class HoME(Sharing, kind="home"):
    """Tasks of a group share experts that other groups do not see; experts have one output scale.

    Level 1 gives a representation of all tasks, mixed from all experts, and one of each group, mixed
    from the group's experts and the shared ones. In level 2 a task mixes shared experts on the
    first, its group's experts and its own on the second; its gate reads both side by side.

    Every expert ends in normalisation and Swish and reads its input scaled by a feature gate of
    its own, ``x * 2 sigmoid(x B A)`` with narrow B and A. Every mixture adds, by a self-gate, the
    experts that are its own alone, so that rare tasks train theirs.

    Parameters
    ----------
    groups
        Names of the tasks of each group, every task once; none given: all tasks are one group.
    num_shared_experts, num_group_experts
        Experts per level for all tasks, and for each group.
    num_task_experts
        Experts of each task in level 2.
    expert_dims
        Widths of each expert's layers, at least one; the same in both levels.
    rank
        Width between B and A. A starts at 0, so feature gates start at 1.
    dropout
        Share of activations dropped after each expert layer in training.
    gating
        How the gates behave; self-gates are left alone.

    References
    ----------
    X. Wang et al., "HoME: Hierarchy of Multi-Gate Experts for Multi-Task Learning at Kuaishou",
    KDD 2025, section 3.
    DIFF: layer normalisation instead of batch normalisation, so a row never depends on its batch and
    a request of one row is scored as in training; one pair B, A per expert instead of a mixture of
    pairs.
    """

    groups: tuple[tuple[str, ...], ...] = ()
    _: KW_ONLY
    num_shared_experts: Count = 2
    num_group_experts: Count = 2
    num_task_experts: Count = 2
    expert_dims: ExpertDims = (128,)
    rank: Count = 8
    dropout: Dropout = 0.0
    gating: Gating = Gating()

    def __post_init__(self) -> None:
        names = [name for group in self.groups for name in group]
        if len(set(names)) < len(names) or not all(self.groups):
            raise ValueError(
                f"groups must be disjoint and not empty. Found {[list(g) for g in self.groups]}"
            )

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If the groups do not hold exactly the tasks.
        """
        names = [name for group in self.groups for name in group]
        if self.groups and sorted(names) != sorted(tasks):
            raise SchemaError(
                f"HoME.groups must hold every task once. Found {sorted(names)} for the tasks"
                f" {sorted(tasks)}; name each task in one group or leave groups out."
            )
        number = {name: place for place, group in enumerate(self.groups) for name in group}
        return _HoME(self, input_dim, tasks, [number.get(name, 0) for name in tasks])


class _FeatureGate(nn.Module):
    """Low-rank scales between 0 and 2 of the input's own numbers; (B, I) -> (B, I)."""

    def __init__(self, input_dim: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Parameter(torch.empty(rank, input_dim))
        self.widen = nn.Parameter(torch.zeros(input_dim, rank))
        nn.init.xavier_uniform_(self.narrow)

    def forward(self, x_BI: Tensor) -> Tensor:
        logits_BI = nn.functional.linear(nn.functional.linear(x_BI, self.narrow), self.widen)
        return 2 * torch.sigmoid(logits_BI) * x_BI


class _Expert(nn.Module):
    """A normalised expert behind its feature gate; (B, I) -> (B, H)."""

    def __init__(self, spec: HoME, input_dim: int) -> None:
        super().__init__()
        self.feature_gate = _FeatureGate(input_dim, spec.rank)
        self.mlp = MLP(input_dim, spec.expert_dims, dropout=spec.dropout, normalize=True)

    def forward(self, x_BI: Tensor) -> Tensor:
        return self.mlp(self.feature_gate(x_BI))  # type: ignore[no-any-return] # a Sequential


class _Mixture(nn.Module):
    """A gate over all experts that may be seen, and a self-gate over those that are its own alone.

    A self-gate over one expert is a sigmoid: a softmax would always be 1.
    """

    def __init__(self, gating: Gating, input_dim: int, num_own: int, num_seen: int) -> None:
        super().__init__()
        self.gate = gating.gate(input_dim, num_seen)
        self.self_gate = Gate(input_dim, num_own)
        self.single = num_own == 1

    def forward(
        self, x_BI: Tensor, own: Sequence[Tensor], others: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the mixture (B, H) and the gate (B, E), the own experts first."""
        gate_BE = self.gate(x_BI)
        logits_BE = nn.functional.linear(x_BI, self.self_gate.weight)
        own_BE = torch.sigmoid(logits_BE) if self.single else self.self_gate.shares(logits_BE)
        return mix([*own, *others], gate_BE) + mix(own, own_BE), gate_BE


@dataclass(frozen=True)
class _Level1:
    """Representations (B, H) of the groups and of all tasks, their gates, and all experts."""

    groups: list[Tensor]
    shared_BH: Tensor
    gates: list[Tensor]
    experts: tuple[Tensor, ...]


class _MetaLevel(nn.Module):
    def __init__(self, spec: HoME, input_dim: int, num_groups: int) -> None:
        super().__init__()
        shared, own = spec.num_shared_experts, spec.num_group_experts
        self.group_experts = nn.ModuleList(
            _experts(spec, input_dim, own) for _ in range(num_groups)
        )
        self.shared_experts = _experts(spec, input_dim, shared)
        self.group_mixtures = nn.ModuleList(
            _Mixture(spec.gating, input_dim, own, own + shared) for _ in range(num_groups)
        )
        self.shared_mixture = _Mixture(spec.gating, input_dim, shared, shared + num_groups * own)

    def forward(self, x_BI: Tensor) -> _Level1:
        groups = [_outputs(experts, x_BI) for experts in self.group_experts]
        shared = _outputs(self.shared_experts, x_BI)
        joined = [expert_BH for experts in groups for expert_BH in experts]
        mixed, gates = [], []
        for mixture, own in zip(self.group_mixtures, groups, strict=True):
            mixed_BH, gate_BE = mixture(x_BI, own, shared)
            mixed.append(mixed_BH)
            gates.append(gate_BE)
        shared_BH, gate_BE = self.shared_mixture(x_BI, shared, joined)
        return _Level1(mixed, shared_BH, [*gates, gate_BE], (*joined, *shared))


class _TaskLevel(nn.Module):
    def __init__(self, spec: HoME, input_dim: int, group_of: Sequence[int]) -> None:
        super().__init__()
        num_groups = max(group_of) + 1
        shared, group, own = spec.num_shared_experts, spec.num_group_experts, spec.num_task_experts
        self.task_experts = nn.ModuleList(_experts(spec, input_dim, own) for _ in group_of)
        self.group_experts = nn.ModuleList(
            _experts(spec, input_dim, group) for _ in range(num_groups)
        )
        self.shared_experts = _experts(spec, input_dim, shared)
        self.mixtures = nn.ModuleList(
            _Mixture(spec.gating, 2 * input_dim, own, own + group + shared) for _ in group_of
        )
        self.group_of = tuple(group_of)

    def forward(self, level: _Level1) -> tuple[list[Tensor], list[Tensor], tuple[Tensor, ...]]:
        """Return the tasks' representations, their gates and all experts."""
        groups = [
            _outputs(experts, group_BH)
            for experts, group_BH in zip(self.group_experts, level.groups, strict=True)
        ]
        shared = _outputs(self.shared_experts, level.shared_BH)
        contexts = [torch.cat([group_BH, level.shared_BH], dim=1) for group_BH in level.groups]
        tasks, gates, seen = [], [], []
        for experts, mixture, place in zip(
            self.task_experts, self.mixtures, self.group_of, strict=True
        ):
            own = _outputs(experts, level.groups[place])
            task_BH, gate_BE = mixture(contexts[place], own, [*groups[place], *shared])
            tasks.append(task_BH)
            gates.append(gate_BE)
            seen += own
        seen += [expert_BH for experts in groups for expert_BH in experts]
        return tasks, gates, (*seen, *shared)


class _HoME(SharingModule):
    def __init__(
        self, spec: HoME, input_dim: int, tasks: Sequence[str], group_of: Sequence[int]
    ) -> None:
        super().__init__()
        self.output_dim = spec.expert_dims[-1]
        self.level1 = _MetaLevel(spec, input_dim, max(group_of) + 1)
        self.level2 = _TaskLevel(spec, self.output_dim, group_of)
        self.gating, self.group_of = spec.gating, tuple(group_of)
        self.rosters = _rosters(spec, tasks, group_of)

    def forward(self, x_BVI: Tensor) -> Shared:
        level1 = self.level1(x_BVI[:, 0])
        tasks, gates, experts = self.level2(level1)
        *groups, shared_BE = level1.gates
        first = (*(groups[place] for place in self.group_of), shared_BE)
        penalty = self.gating.penalty([*level1.gates, *gates])
        return Shared(
            tuple(tasks),
            (first, tuple(gates)),
            (level1.experts, experts),
            penalty,
            self.rosters,
        )


def _rosters(spec: HoME, tasks: Sequence[str], group_of: Sequence[int]) -> tuple[Roster, Roster]:
    """Say what gates mix: what is their own first, then the rest that they see; self-gates bypass."""
    num_groups = max(group_of) + 1
    groups = expert_names(
        [f"group {place}" for place in range(1, num_groups + 1)], spec.num_group_experts
    )
    shared = expert_names(["shared"], spec.num_shared_experts)
    own = expert_names(tasks, spec.num_task_experts)

    def block(start: int, place: int, width: int) -> tuple[int, ...]:
        return tuple(range(start + place * width, start + (place + 1) * width))

    def group_and_shared(start: int, group: int) -> tuple[int, ...]:
        behind = start + len(groups)
        return block(start, group, spec.num_group_experts) + block(behind, 0, len(shared))

    meta = [group_and_shared(0, group) for group in group_of]
    meta.append((*block(len(groups), 0, len(shared)), *block(0, 0, len(groups))))
    level1 = (*groups, *shared)
    level2 = [
        block(0, place, spec.num_task_experts) + group_and_shared(len(own), group)
        for place, group in enumerate(group_of)
    ]
    return (
        Roster(level1, tuple(meta), bypassing=tuple(range(len(level1)))),
        Roster((*own, *level1), tuple(level2), bypassing=tuple(range(len(own)))),
    )


def _experts(spec: HoME, input_dim: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(_Expert(spec, input_dim) for _ in range(count))


def _outputs(experts: nn.Module, x_BI: Tensor) -> list[Tensor]:
    return [expert(x_BI) for expert in experts.children()]
