"""Layers that several structures use.

Shape letters: B rows, I input width, H representation width, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """

    def __init__(self, input_dim: int, dims: Sequence[int], *, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for before, after in zip([input_dim, *dims], dims, strict=False):
            layers += [linear(before, after), nn.ReLU()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.output_dim = dims[-1] if dims else input_dim


def linear(input_dim: int, output_dim: int) -> nn.Linear:
    """Return a linear layer with Xavier-uniform weights and zero bias."""
    layer = nn.Linear(input_dim, output_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Gate(nn.Module):
    """A linear softmax gate; (B, input_dim) -> (B, num_experts), rows sum to 1.

    The softmax is taken in float32 at least, also under autocast: in half precision small gates
    vanish. One layer, since deep gates on id embeddings overfit.
    """

    def __init__(self, input_dim: int, num_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, input_dim))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x_BI: Tensor) -> Tensor:
        """Return the share of each expert."""
        logits_BE = nn.functional.linear(x_BI, self.weight)
        wide = torch.promote_types(logits_BE.dtype, torch.float32)
        return torch.softmax(logits_BE, dim=-1, dtype=wide)


def mix(experts: Sequence[Tensor], gate_BE: Tensor) -> Tensor:
    """Return the gated sum of expert outputs, each (B, H).

    A running sum: stacking the experts for one batched product costs copies that took longer than
    the sum itself in training, on CPUs in float32 and bfloat16.
    """
    gate_BE = gate_BE.to(experts[0].dtype)
    mixed_BH = experts[0] * gate_BE[:, :1]
    for number, expert_BH in enumerate(experts[1:], start=1):
        mixed_BH = torch.addcmul(mixed_BH, expert_BH, gate_BE[:, number : number + 1])
    return mixed_BH
