"""Layers that several structures use.

Shape letters: B rows, I input width, H representation width, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear layers, each followed by ReLU and dropout; (B, input_dim) -> (B, dims[-1]).

    Parameters
    ----------
    input_dim
        Width I of the input.
    dims
        Width of each layer; none returns the input as it is.
    dropout
        Share of activations dropped in training, 0 <= dropout < 1.
    normalize
        End the last layer in layer normalisation and Swish instead of ReLU, so that the outputs of
        several experts have one scale and few zeros.
    """

    def __init__(
        self, input_dim: int, dims: Sequence[int], *, dropout: float = 0.0, normalize: bool = False
    ) -> None:
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip([input_dim, *dims], dims, strict=False), 1):
            # In place: a linear layer's backward does not read its output.
            relu = nn.ReLU(inplace=True)
            swish = normalize and number == len(dims)
            layers += [linear(before, after)]
            layers += [nn.LayerNorm(after), nn.SiLU()] if swish else [relu]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.output_dim = dims[-1] if dims else input_dim

    def after_first(self, x_BH: Tensor) -> Tensor:
        """Return the output (B, dims[-1]) from that of the first linear layer, which is overwritten."""
        for layer in islice(self, 1, None):
            x_BH = layer(x_BH)
        return x_BH


@dataclass(frozen=True)
class FirstLinear:
    """A linear layer that reads the input of sharing: ``x W^T + b``.

    Parameters
    ----------
    weight_HI
        W, shape (outputs, I).
    bias_H
        b, if there is one.
    """

    weight_HI: Tensor
    bias_H: Tensor | None = None


def first_layers(mlps: Iterable[nn.Module]) -> list[FirstLinear]:
    """Return the first linear layers of MLPs that have some."""
    found = [cast("nn.Linear", cast("MLP", mlp)[0]) for mlp in mlps]
    return [FirstLinear(layer.weight, layer.bias) for layer in found]


def after_first(mlps: Iterable[nn.Module], outputs: Iterable[Tensor]) -> list[Tensor]:
    """Return the outputs of MLPs from those of their first linear layers, taken one by one."""
    return [cast("MLP", mlp).after_first(output) for mlp, output in zip(mlps, outputs)]  # noqa: B905


def linear(input_dim: int, output_dim: int) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(input_dim, output_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def cast_once(x: Tensor) -> Tensor:
    """Return an input of several layers in autocast's type; as it is without autocast.

    Autocast casts an input anew for each layer that reads it, which took 10 % of a step with 8 experts.
    """
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def make_experts(
    count: int, input_dim: int, dims: Sequence[int], *, dropout: float, normalize: bool
) -> nn.ModuleList:
    """Return so many MLPs of one shape.

    Separate products, one per expert and layer: one wide product for all first layers gives slices
    whose rows do not lie together, and batched products copy; both took longer on CPUs in float32.
    """
    return nn.ModuleList(
        MLP(input_dim, dims, dropout=dropout, normalize=normalize) for _ in range(count)
    )


class Gate(nn.Module):
    """A linear softmax gate; (B, input_dim) -> (B, num_experts), rows sum to 1.

    The softmax is taken in float32 at least, also under autocast: in half precision small gates
    vanish. One layer, since deep gates on id embeddings overfit.

    Parameters
    ----------
    input_dim
        Width I of the input.
    num_experts
        Experts E that share 1.
    dropout
        Chance that a row goes without an expert in training, 0 <= dropout < 1. The others share 1
        among them; a row that would lose all keeps all.
    temperature
        What the logits are divided by, above 0: below 1 sharpens the gate, above 1 evens it out.
    """

    def __init__(
        self, input_dim: int, num_experts: int, *, dropout: float = 0.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, input_dim))
        nn.init.xavier_uniform_(self.weight)
        self.dropout, self.temperature = dropout, temperature

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return the share of each expert."""
        return self.shares(nn.functional.linear(x_BI, self.weight))

    def shares(self, logits: Tensor) -> Tensor:
        """Return the shares of the experts, which lie in the last dimension of the logits."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        if self.temperature != 1:
            logits = logits.to(wide) / self.temperature
        if self.training and self.dropout > 0:
            # The softmax of those that are left is their renormalised share.
            dropped = torch.rand(logits.shape, device=logits.device) < self.dropout
            dropped = dropped & ~dropped.all(dim=-1, keepdim=True)
            logits = logits.masked_fill(dropped, -torch.inf)
        return torch.softmax(logits, dim=-1, dtype=wide)


def gate_all(gates: nn.ModuleList, x_BI: Tensor) -> Tensor:
    """Return the shares (B, T, E) of T gates of one shape that read the same input.

    One matrix product; each gate keeps a weight of its own, so that tasks can be told apart by
    parameter.
    """
    return share_all(gates, nn.functional.linear(x_BI, gate_weights(gates)))


def gate_weights(gates: nn.ModuleList) -> Tensor:
    """Return the weights (T * E, I) of T gates of one shape, one under the other."""
    return torch.stack([cast("Gate", gate).weight for gate in gates]).flatten(0, 1)


def share_all(gates: nn.ModuleList, logits_BX: Tensor) -> Tensor:
    """Return the shares (B, T, E) of T gates of one shape from their logits side by side."""
    first = cast("Gate", gates[0])
    num_experts = first.weight.shape[0]
    return first.shares(logits_BX.view(logits_BX.shape[0], len(gates), num_experts))


def mix(experts: Sequence[Tensor], gate_BE: Tensor) -> Tensor:
    """Return the gated sum of expert outputs, each (B, H).

    A running sum: for one gate, stacking the experts takes longer than the sum itself.
    """
    gate_BE = gate_BE.to(experts[0].dtype)
    mixed_BH = experts[0] * gate_BE[:, :1]
    for number, expert_BH in enumerate(experts[1:], start=1):
        mixed_BH = torch.addcmul(mixed_BH, expert_BH, gate_BE[:, number : number + 1])
    return mixed_BH


def mix_all(experts: Sequence[Tensor], gates_BTE: Tensor) -> tuple[Tensor, ...]:
    """Return the gated sums of expert outputs, each (B, H), for T gates over the same experts.

    One copy of the experts serves the products of all gates, forward and backward. torch.compile fuses
    the running sums instead; of a copied ReLU it would keep a mask of bytes, which is slow to write.
    """
    if torch.compiler.is_compiling():
        return tuple(mix(experts, gate_BE) for gate_BE in gates_BTE.unbind(1))
    experts_BEH = torch.stack(list(experts), dim=1)
    return torch.bmm(gates_BTE.to(experts_BEH.dtype), experts_BEH).unbind(1)
