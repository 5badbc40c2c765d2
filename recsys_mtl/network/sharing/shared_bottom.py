"""Shared bottom: one network for all tasks, the baseline everything is judged against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY

from torch import Tensor

from recsys_mtl.network.layers import MLP, FirstLinear, first_layers
from recsys_mtl.network.sharing.base import Columns, Dims, Dropout, Shared, Sharing, SharingModule
from recsys_mtl.spec import spec


@spec
class SharedBottom(Sharing, kind="shared_bottom"):
    """All tasks read the output of one MLP: ``y_k = h_k(f(x))``.

    Parameters
    ----------
    dims
        Widths of the MLP's layers.
    dropout
        Share of activations dropped after each layer in training.

    References
    ----------
    R. Caruana, "Multitask Learning", Machine Learning 28, 1997.
    """

    dims: Dims = (256, 128)
    _: KW_ONLY
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[str], columns: Columns) -> SharingModule:
        """Make the module."""
        return _SharedBottom(self, input_dim, len(tasks))


class _SharedBottom(SharingModule):
    def __init__(self, spec: SharedBottom, input_dim: int, num_tasks: int) -> None:
        super().__init__()
        self.bottom = MLP(input_dim, spec.dims, dropout=spec.dropout)
        self.num_tasks = num_tasks
        self.output_dim = self.bottom.output_dim

    def forward(self, x_BVI: Tensor) -> Shared:
        return Shared((self.bottom(x_BVI[:, 0]),) * self.num_tasks)

    def first_linears(self) -> tuple[FirstLinear, ...]:
        return tuple(first_layers([self.bottom])) if len(self.bottom) else ()

    def from_linears(self, outputs: Iterator[Tensor]) -> Shared:
        return Shared((self.bottom.after_first(next(outputs)),) * self.num_tasks)
