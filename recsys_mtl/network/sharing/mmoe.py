"""MMoE: experts shared by all tasks, one gate per task.

Shape letters: B rows, V views, I input width, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY

from torch import Tensor

from recsys_mtl.network.layers import (
    FirstLinear,
    after_first,
    cast_once,
    first_layers,
    gate_all,
    gate_weights,
    make_experts,
    mix_all,
    share_all,
)
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
class MMoE(Sharing, kind="mmoe"):
    """Each task reads its own mixture of shared experts: ``f_k(x) = sum_i g_k(x)_i f_i(x)``.

    Parameters
    ----------
    num_experts
        Experts.
    expert_dims
        Widths of each expert's layers, at least one.
    dropout
        Share of activations dropped after each expert layer in training.
    normalize_experts
        End experts in layer normalisation and Swish instead of ReLU.
    gating
        How the gates behave.

    References
    ----------
    J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, section 4.2.
    """

    num_experts: Count = 8
    _: KW_ONLY
    expert_dims: ExpertDims = (256, 128)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _MMoE(self, input_dim, len(tasks))


class _MMoE(SharingModule):
    def __init__(self, spec: MMoE, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.gating = spec.gating
        self.experts = make_experts(
            spec.num_experts,
            input_dim,
            spec.expert_dims,
            dropout=spec.dropout,
            normalize=spec.normalize_experts,
        )
        self.gates = spec.gating.gates(input_dim, spec.num_experts, num_tasks)
        names = expert_names(["shared"], spec.num_experts)
        self.rosters = (whole_roster(names, num_tasks),)
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        x_BI = cast_once(x_BVI[:, 0])
        experts = tuple(expert(x_BI) for expert in self.experts)
        return self._mixed(experts, gate_all(self.gates, x_BI))

    def first_linears(self) -> tuple[FirstLinear, ...]:
        return (*first_layers(self.experts), FirstLinear(gate_weights(self.gates)))

    def from_linears(self, outputs: Iterator[Tensor]) -> Shared:
        experts = tuple(after_first(self.experts, outputs))
        return self._mixed(experts, share_all(self.gates, next(outputs)))

    def _mixed(self, experts: tuple[Tensor, ...], gates_BTE: Tensor) -> Shared:
        gates = gates_BTE.unbind(1)
        tasks = mix_all(experts, gates_BTE)
        return Shared(tasks, (gates,), (experts,), self.gating.penalty(gates), self.rosters)
