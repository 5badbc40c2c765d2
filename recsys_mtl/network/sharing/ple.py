"""PLE: shared and task-own experts, mixed level by level; one level is CGC.

Shape letters: B rows, V views, I input width, H representation width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import Annotated, cast

from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.network.layers import (
    FirstLinear,
    Gate,
    after_first,
    cast_once,
    first_layers,
    make_experts,
    mix,
)
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
class PLE(Sharing, kind="ple"):
    """Each task mixes its own experts with the shared ones; the result feeds the next level.

    With one level it is CGC; with one level and no task experts it is MMoE.

    Parameters
    ----------
    num_levels
        Extraction levels.
    num_shared_experts, num_task_experts
        Experts per level that are shared, and that each task has for itself. Not both 0.
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
    H. Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning Model for
    Personalized Recommendations", RecSys 2020, sections 4.1 and 4.2.
    """

    num_levels: Count = 2
    _: KW_ONLY
    num_shared_experts: Annotated[int, Field(ge=0)] = 2
    num_task_experts: Annotated[int, Field(ge=0)] = 2
    expert_dims: ExpertDims = (128,)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def __post_init__(self) -> None:
        if self.num_shared_experts + self.num_task_experts == 0:
            raise ValueError("num_shared_experts and num_task_experts must not both be 0")

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _PLE(self, input_dim, tasks)


@dataclass(frozen=True)
class _Mixed:
    """What a level gives: T task outputs and the shared one (B, H), its gates and its experts."""

    tasks: tuple[Tensor, ...]
    shared_BH: Tensor
    gates: tuple[Tensor, ...]
    experts: tuple[Tensor, ...]


class _Level(nn.Module):
    """One extraction level; T task inputs and the shared one in, the same out.

    The last level has no shared output, and without shared experts nothing would read it.
    """

    def __init__(self, spec: PLE, input_dim: int, num_tasks: int, *, last: bool) -> None:
        super().__init__()
        own, shared = spec.num_task_experts, spec.num_shared_experts
        gating = spec.gating
        self.task_experts = nn.ModuleList(_experts(spec, input_dim, own) for _ in range(num_tasks))
        self.shared_experts = _experts(spec, input_dim, shared)
        self.task_gates = gating.gates(input_dim, own + shared, num_tasks)
        mixes = not last and shared > 0
        self.shared_gate = gating.gate(input_dim, num_tasks * own + shared) if mixes else None

    def forward(self, tasks: tuple[Tensor, ...], shared_BI: Tensor) -> _Mixed:
        own = [
            [expert(x_BI) for expert in cast("nn.ModuleList", experts)]
            for experts, x_BI in zip(self.task_experts, tasks, strict=True)
        ]
        shared = [expert(shared_BI) for expert in self.shared_experts]
        gates = [gate(x_BI) for gate, x_BI in zip(self.task_gates, tasks, strict=True)]
        if self.shared_gate is not None:
            gates.append(self.shared_gate(shared_BI))
        return self._mixed(own, shared, gates, shared_BI)

    def first_linears(self) -> tuple[FirstLinear, ...]:
        layers = [first_layers(cast("nn.ModuleList", experts)) for experts in self.task_experts]
        gates = [FirstLinear(gate.weight) for gate in self._gates()]
        first = [layer for found in layers for layer in found]
        return (*first, *first_layers(self.shared_experts), *gates)

    def from_linears(self, outputs: Iterator[Tensor]) -> _Mixed:
        own = [
            after_first(cast("nn.ModuleList", experts), outputs) for experts in self.task_experts
        ]
        shared = after_first(self.shared_experts, outputs)
        gates = [gate.shares(next(outputs)) for gate in self._gates()]
        return self._mixed(own, shared, gates, gates[0][:, :0])

    def _gates(self) -> list[Gate]:
        shared = [] if self.shared_gate is None else [self.shared_gate]
        return [*(cast("Gate", gate) for gate in self.task_gates), *shared]

    def _mixed(
        self,
        own: Sequence[Sequence[Tensor]],
        shared: Sequence[Tensor],
        gates: Sequence[Tensor],
        shared_BI: Tensor,
    ) -> _Mixed:
        """Mix by the gates; where no gate mixes for all tasks, their input is what it was."""
        experts = (*(expert_BH for outputs in own for expert_BH in outputs), *shared)
        mixed = tuple(mix([*e, *shared], g_BE) for e, g_BE in zip(own, gates, strict=False))
        if self.shared_gate is not None:
            shared_BI = mix(experts, gates[-1])
        return _Mixed(mixed, shared_BI, tuple(gates), experts)


class _PLE(SharingModule):
    def __init__(self, spec: PLE, input_dim: int, tasks: Sequence[str]) -> None:
        super().__init__()
        widths = [input_dim, *[spec.expert_dims[-1]] * (spec.num_levels - 1)]
        self.levels = nn.ModuleList(
            _Level(spec, width, len(tasks), last=number == spec.num_levels)
            for number, width in enumerate(widths, start=1)
        )
        self.gating = spec.gating
        self.num_tasks = len(tasks)
        self.rosters = tuple(
            _roster(spec, tasks, shared_gate=cast("_Level", level).shared_gate is not None)
            for level in self.levels
        )
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        shared_BI = cast_once(x_BVI[:, 0])
        return self._deepened([self.levels[0]((shared_BI,) * self.num_tasks, shared_BI)])

    def first_linears(self) -> tuple[FirstLinear, ...]:
        return cast("_Level", self.levels[0]).first_linears()

    def from_linears(self, outputs: Iterator[Tensor]) -> Shared:
        return self._deepened([cast("_Level", self.levels[0]).from_linears(outputs)])

    def _deepened(self, levels: list[_Mixed]) -> Shared:
        for level in islice(self.levels, 1, None):
            levels.append(level(levels[-1].tasks, levels[-1].shared_BH))
        tasks = levels[-1].tasks
        gates = tuple(level.gates for level in levels)
        penalty = self.gating.penalty(gate_BE for level in gates for gate_BE in level)
        experts = tuple(level.experts for level in levels)
        return Shared(tasks, gates, experts, penalty, self.rosters)


def _roster(spec: PLE, tasks: Sequence[str], *, shared_gate: bool) -> Roster:
    """Say that a task's gate mixes its own experts, then the shared ones; the shared gate all."""
    own = spec.num_task_experts
    shared = expert_names(["shared"], spec.num_shared_experts)
    names = (*expert_names(tasks, own), *shared)
    everyone = range(len(names))
    reads = [
        (*everyone[place * own : (place + 1) * own], *everyone[len(tasks) * own :])
        for place in range(len(tasks))
    ]
    return Roster(names, (*reads, tuple(everyone)) if shared_gate else tuple(reads))


def _experts(spec: PLE, input_dim: int, count: int) -> nn.ModuleList:
    return make_experts(
        count,
        input_dim,
        spec.expert_dims,
        dropout=spec.dropout,
        normalize=spec.normalize_experts,
    )
