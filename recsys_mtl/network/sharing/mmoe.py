"""MMoE: experts shared by all tasks, one gate per task."""

from __future__ import annotations

from dataclasses import KW_ONLY

from torch import Tensor, nn

from recsys_mtl.network.layers import MLP, Gate, mix
from recsys_mtl.network.sharing.base import (
    Count,
    Dropout,
    ExpertDims,
    Shared,
    Sharing,
    SharingModule,
)
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

    References
    ----------
    J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, section 4.2.
    """

    num_experts: Count = 8
    _: KW_ONLY
    expert_dims: ExpertDims = (256, 128)
    dropout: Dropout = 0.0

    def build(self, input_dim: int, num_tasks: int) -> SharingModule:
        """Make the module."""
        return _MMoE(self, input_dim, num_tasks)


class _MMoE(SharingModule):
    def __init__(self, spec: MMoE, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            MLP(input_dim, spec.expert_dims, dropout=spec.dropout) for _ in range(spec.num_experts)
        )
        self.gates = nn.ModuleList(Gate(input_dim, spec.num_experts) for _ in range(num_tasks))
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        x_BI = x_BVI[:, 0]
        experts = [expert(x_BI) for expert in self.experts]
        gates = tuple(gate(x_BI) for gate in self.gates)
        return Shared(tuple(mix(experts, gate_BE) for gate_BE in gates), (gates,))
