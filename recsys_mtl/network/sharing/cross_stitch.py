"""Cross-stitch: a network per task, mixed after every layer by one number per pair of tasks.

Shape letters: B rows, V views, I input width, H representation width, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY

import torch
from torch import Tensor, nn

from recsys_mtl.network.layers import MLP, cast_once
from recsys_mtl.network.sharing.base import (
    Columns,
    Dropout,
    ExpertDims,
    Shared,
    Sharing,
    SharingModule,
)
from recsys_mtl.spec import spec


@spec
class CrossStitch(Sharing, kind="cross_stitch"):
    """After each layer tasks read each other: ``x~_k = sum_j A_kj x_j``, A near the identity.

    A starts with 0.9 on the diagonal and the rest spread over the other tasks. It costs a network
    per task; keep it as a baseline.

    Parameters
    ----------
    dims
        Widths of the layers of each task's network, at least one.
    dropout
        Share of activations dropped after each layer in training.

    References
    ----------
    I. Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016, section 3.
    DIFF: the networks start at random, not from networks trained on one task each.
    """

    dims: ExpertDims = (256, 128)
    _: KW_ONLY
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _CrossStitch(self, input_dim, len(tasks))


class _CrossStitch(SharingModule):
    def __init__(self, spec: CrossStitch, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(MLP(before, (after,), dropout=spec.dropout) for _ in range(num_tasks))
            for before, after in zip([input_dim, *spec.dims], spec.dims, strict=False)
        )
        self.stitches = nn.ParameterList(_near_identity(num_tasks) for _ in spec.dims)
        self.num_tasks = num_tasks
        self.output_dim = spec.dims[-1]

    def forward(self, x_BVI: Tensor) -> Shared:
        tasks: tuple[Tensor, ...] = (cast_once(x_BVI[:, 0]),) * self.num_tasks
        for layers, stitch_TT in zip(self.layers, self.stitches, strict=True):
            outputs = [layer(x_BI) for layer, x_BI in zip(layers.children(), tasks, strict=True)]
            outputs_TBH = torch.stack(outputs)
            stitched_TX = stitch_TT @ outputs_TBH.flatten(1)
            tasks = stitched_TX.view(outputs_TBH.shape).unbind(0)
        return Shared(tasks)


def _near_identity(num_tasks: int) -> nn.Parameter:
    own = 0.9 if num_tasks > 1 else 1.0
    others_TT = torch.full((num_tasks, num_tasks), (1 - own) / max(num_tasks - 1, 1))
    return nn.Parameter(others_TT.fill_diagonal_(own))
