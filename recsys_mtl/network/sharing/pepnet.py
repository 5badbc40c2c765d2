"""PEPNet: gates of context on the input and on every layer of each task's network.

Shape letters: B rows, V views, I input width, C numbers of some features, H layer width, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor, nn

from recsys_mtl.network.layers import MLP, linear
from recsys_mtl.network.sharing.base import (
    Columns,
    Count,
    Dropout,
    ExpertDims,
    Shared,
    Sharing,
    SharingModule,
)
from recsys_mtl.spec import spec


@spec
class PEPNet(Sharing, kind="pepnet"):
    """A network per task whose input and layers are scaled, number by number, by the context.

    All scales come from ``G(u) = 2 sigmoid(W_2 relu(W_1 u))``, which lies between 0 and 2. EPNet
    scales the input once for all tasks, ``o = G([x_domain; stop(x)]) * x``; PPNet scales the output
    of layer l of task k, ``G_l([x_personal; stop(o)])_k * h_kl``. ``stop`` passes no gradient: gates
    choose among features without bending them.

    Parameters
    ----------
    dims
        Widths of the layers of each task's network, at least one.
    domain
        Features that tell the domain, such as the page or the country; none given: all features.
    personal
        Features that tell user, item and author; none given: all features.
    gate_dim
        Width of the hidden layer of each gate.
    dropout
        Share of activations dropped after each layer in training.

    References
    ----------
    J. Chang et al., "PEPNet: Parameter and Embedding Personalized Network for Infusing with
    Personalized Prior Information", KDD 2023, section 2.
    """

    dims: ExpertDims = (256, 128)
    _: KW_ONLY
    domain: tuple[str, ...] = ()
    personal: tuple[str, ...] = ()
    gate_dim: Count = 64
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If there is no feature of a name in `domain` or `personal`.
        """
        return _PEPNet(self, input_dim, len(tasks), columns)


class _ContextGate(nn.Module):
    """Scales between 0 and 2; (B, context_dim) -> (B, output_dim)."""

    def __init__(self, context_dim: int, gate_dim: int, output_dim: int) -> None:
        super().__init__()
        self.hidden = MLP(context_dim, (gate_dim,))
        self.output = linear(gate_dim, output_dim)

    def forward(self, context_BC: Tensor) -> Tensor:
        return 2 * torch.sigmoid(self.output(self.hidden(context_BC)))


class _Chosen(nn.Module):
    """The numbers of some features, side by side with the input; the input's pass no gradient."""

    places_C: Tensor

    def __init__(self, places: Sequence[int], input_dim: int) -> None:
        super().__init__()
        # Known from the spec, so not part of the state; without places all numbers are taken.
        self.register_buffer("places_C", torch.tensor(places, dtype=torch.long), persistent=False)
        self.takes_all = not places
        self.output_dim = input_dim + (len(places) or input_dim)

    def forward(self, x_BI: Tensor, whole_BI: Tensor) -> Tensor:
        chosen_BC = x_BI if self.takes_all else x_BI.index_select(1, self.places_C)
        return torch.cat([chosen_BC, whole_BI.detach()], dim=1)


class _PEPNet(SharingModule):
    def __init__(self, spec: PEPNet, input_dim: int, num_tasks: int, columns: Columns) -> None:
        super().__init__()
        self.domain = _Chosen(columns.of(spec.domain), input_dim)
        self.personal = _Chosen(columns.of(spec.personal), input_dim)
        self.input_gate = _ContextGate(self.domain.output_dim, spec.gate_dim, input_dim)
        self.layer_gates = nn.ModuleList(
            _ContextGate(self.personal.output_dim, spec.gate_dim, num_tasks * dim)
            for dim in spec.dims
        )
        self.networks = nn.ModuleList(
            nn.ModuleList(
                MLP(before, (after,), dropout=spec.dropout)
                for before, after in zip([input_dim, *spec.dims], spec.dims, strict=False)
            )
            for _ in range(num_tasks)
        )
        self.num_tasks = num_tasks
        self.output_dim = spec.dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        x_BI = x_BVI[:, 0]
        gated_BI = self.input_gate(self.domain(x_BI, x_BI)) * x_BI
        context_BC = self.personal(x_BI, gated_BI)
        scales = [gate(context_BC).chunk(self.num_tasks, dim=1) for gate in self.layer_gates]
        tasks = []
        for task, network in enumerate(self.networks):
            h_BH = gated_BI
            for layer, scale in zip(network.children(), scales, strict=True):
                h_BH = scale[task] * layer(h_BH)
            tasks.append(h_BH)
        return Shared(tuple(tasks))
