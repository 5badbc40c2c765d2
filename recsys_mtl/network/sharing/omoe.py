"""OMoE: experts and one gate, shared by all tasks.

Shape letters: B rows, V views, I input width, H representation width, E experts.
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
    make_experts,
    mix,
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
class OMoE(Sharing, kind="omoe"):
    """All tasks read the same mixture of experts: ``f(x) = sum_i g(x)_i f_i(x)``.

    It is MMoE with tied gates, the control that tells what gates of their own bring to tasks.

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
        How the gate behaves.

    References
    ----------
    J. Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate
    Mixture-of-Experts", KDD 2018, section 4.1.
    """

    num_experts: Count = 8
    _: KW_ONLY
    expert_dims: ExpertDims = (256, 128)
    dropout: Dropout = 0.0
    normalize_experts: bool = False
    gating: Gating = Gating()

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _OMoE(self, input_dim, len(tasks))


class _OMoE(SharingModule):
    def __init__(self, spec: OMoE, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.gating = spec.gating
        self.experts = make_experts(
            spec.num_experts,
            input_dim,
            spec.expert_dims,
            dropout=spec.dropout,
            normalize=spec.normalize_experts,
        )
        self.gate = spec.gating.gate(input_dim, spec.num_experts)
        self.num_tasks = num_tasks
        names = expert_names(["shared"], spec.num_experts)
        self.rosters = (whole_roster(names, num_tasks),)
        self.output_dim = spec.expert_dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        x_BI = cast_once(x_BVI[:, 0])
        experts = tuple(expert(x_BI) for expert in self.experts)
        return self._mixed(experts, self.gate(x_BI))

    def first_linears(self) -> tuple[FirstLinear, ...]:
        return (*first_layers(self.experts), FirstLinear(self.gate.weight))

    def from_linears(self, outputs: Iterator[Tensor]) -> Shared:
        experts = tuple(after_first(self.experts, outputs))
        return self._mixed(experts, self.gate.shares(next(outputs)))

    def _mixed(self, experts: tuple[Tensor, ...], gate_BE: Tensor) -> Shared:
        return Shared(
            (mix(experts, gate_BE),) * self.num_tasks,
            ((gate_BE,) * self.num_tasks,),
            (experts,),
            self.gating.penalty([gate_BE]),
            self.rosters,
        )
