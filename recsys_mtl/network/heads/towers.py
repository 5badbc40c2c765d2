"""Towers: each task has layers of its own, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor, nn

from recsys_mtl.network.heads.base import Heads, HeadsModule
from recsys_mtl.network.layers import MLP, linear
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Task
from recsys_mtl.spec import spec


@spec
class Towers(Heads, kind="towers"):
    """One MLP and one linear layer per task.

    Parameters
    ----------
    dims
        Widths of each tower's hidden layers; none leaves the linear layer alone.
    dropout
        Share of activations dropped after each hidden layer in training.
    """

    dims: Dims = (64,)
    _: KW_ONLY
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module."""
        return _Towers(self, input_dim, tasks)


class _Towers(HeadsModule):
    def __init__(self, spec: Towers, input_dim: int, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.towers = nn.ModuleList(MLP(input_dim, spec.dims, dropout=spec.dropout) for _ in tasks)
        width = spec.dims[-1] if spec.dims else input_dim
        self.outputs = nn.ModuleList(linear(width, task.num_logits) for task in tasks)

    def forward(self, tasks: tuple[Tensor, ...]) -> Tensor:
        logits = [
            output(tower(task_BH))
            for output, tower, task_BH in zip(self.outputs, self.towers, tasks, strict=True)
        ]
        return torch.cat(logits, dim=1)

    @torch.no_grad()
    def set_bias(self, bias_Z: Tensor) -> None:
        start = 0
        for output in self.outputs:
            bias = output.get_parameter("bias")
            bias.copy_(bias_Z[start : start + bias.numel()])
            start += bias.numel()
