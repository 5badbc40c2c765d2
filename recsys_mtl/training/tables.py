"""Optimizers of embedding tables: a step on the rows a batch touched, and on no other.

Shape letters: R table rows, D embedding dim, S looked-up vectors of a batch, U table rows of a batch,
each once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys_mtl.compiled import compiled
from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.spec import Spec, spec
from recsys_mtl.training.row_merge import merge_cpu, merge_torch, scratch_slots

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TableOptimizer(Spec, ABC):
    """A choice of optimizer for the embedding tables."""

    @abstractmethod
    def build(self, tables: Sequence[EmbeddingTable]) -> TableStepper:
        """Make the optimizer for these tables."""


class TableStepper(ABC):
    """State of the tables' optimizer and its step on touched rows.

    Parameters
    ----------
    tables
        Embedding tables whose weights are changed in place.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        self.tables = list(tables)
        self._slots = [scratch_slots(table) for table in tables]

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """Return all that is kept per row, as ``"<number of the table>.<name>"``; not copies."""

    @abstractmethod
    def trained(self, number: int) -> Tensor:
        """Tell which rows of a table have had a gradient other than zero since the last reset.

        Parameters
        ----------
        number
            Place of the table among `tables`.

        Returns
        -------
        trained_R
            bool (R,).
        """

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; with the tables' weights, steps then go on bit-equal."""
        for name, tensor in self.state().items():
            tensor.copy_(tensors[name])

    def reset(self) -> None:
        """Draw all tables afresh and forget the state."""
        for table in self.tables:
            table.reset_parameters()
        for tensor in self.state().values():
            tensor.zero_()

    @torch.no_grad()
    def step(
        self, touched: Sequence[Touched], gradients: Sequence[Tensor], *, factor: float = 1.0
    ) -> None:
        """Change the rows that were looked up.

        Parameters
        ----------
        touched
            Per table: which rows went where.
        gradients
            Per table: gradient of the looked-up vectors, (S, D).
        factor
            What the learning rate is multiplied with.
        """
        for number, (table, rows, gradient) in enumerate(
            zip(self.tables, touched, gradients, strict=True)
        ):
            if rows.rows_K.numel() > 0:
                self._update(number, rows, gradient.reshape(-1, table.dim), factor)

    @abstractmethod
    def _update(self, number: int, rows: Touched, gradient_SD: Tensor, factor: float) -> None:
        """Step on one table."""


@spec
class RowWiseAdagrad(TableOptimizer, kind="row_wise_adagrad"):
    """Adagrad with one accumulator per table row.

    With g the summed gradient of a row: ``acc += mean(g**2)``, ``w -= lr * g / (sqrt(acc) + eps)``.

    Parameters
    ----------
    learning_rate
        Step size lr.
    l2
        Added to the gradient of a touched row: ``l2 * w``. Rows not touched do not decay.
    eps
        Keeps the first steps finite.

    References
    ----------
    D. Mudigere et al., "Software-Hardware Co-design for Fast and Scalable Training of Deep Learning
    Recommendation Models", ISCA 2022, section 4.1.4 (row-wise Adagrad).
    """

    learning_rate: Rate = 0.03
    _: KW_ONLY
    l2: Penalty = 0.0
    eps: Rate = 1e-8

    def build(self, tables: Sequence[EmbeddingTable]) -> RowWiseAdagradOptimizer:
        """Make the optimizer for these tables."""
        return RowWiseAdagradOptimizer(self, tables)


class RowWiseAdagradOptimizer(TableStepper):
    """Accumulators of the tables and the step on touched rows.

    Parameters
    ----------
    settings
        The choice.
    tables
        Embedding tables whose weights are changed in place.
    """

    def __init__(self, settings: RowWiseAdagrad, tables: Sequence[EmbeddingTable]) -> None:
        super().__init__(tables)
        self.settings = settings
        self.accumulators = [torch.zeros_like(table.weight_RD[:, 0]) for table in tables]

    def state(self) -> dict[str, Tensor]:
        """Return the accumulators; not copies."""
        return {f"{i}.accumulator": state_R for i, state_R in enumerate(self.accumulators)}

    def trained(self, number: int) -> Tensor:
        """Tell which rows of a table have an accumulator above zero."""
        return self.accumulators[number] > 0

    def _update(self, number: int, rows: Touched, gradient_SD: Tensor, factor: float) -> None:
        weight_RD = self.tables[number].weight_RD
        update = _update_cpu if weight_RD.device.type == "cpu" else _update_torch
        update(
            weight_RD,
            self.accumulators[number],
            self._slots[number],
            rows,
            gradient_SD,
            self.settings,
            self.settings.learning_rate * factor,
        )


def _update_torch(
    weight_RD: Tensor,
    accumulator_R: Tensor,
    slots_R: Tensor,
    rows: Touched,
    gradient_SD: Tensor,
    settings: RowWiseAdagrad,
    rate: float,
) -> None:
    rows_U, merged_UD = merge_torch(slots_R, rows, gradient_SD)
    before_UD = weight_RD[rows_U]
    merged_UD += settings.l2 * before_UD
    state_U = accumulator_R[rows_U] + merged_UD.square().mean(dim=1)
    accumulator_R[rows_U] = state_U
    scale_U = rate / (state_U.sqrt() + settings.eps)
    weight_RD[rows_U] = before_UD - scale_U[:, None] * merged_UD


def _update_cpu(
    weight_RD: Tensor,
    accumulator_R: Tensor,
    slots_R: Tensor,
    rows: Touched,
    gradient_SD: Tensor,
    settings: RowWiseAdagrad,
    rate: float,
) -> None:
    weight = weight_RD.numpy()
    real = weight.dtype.type
    rows_U, merged_UD = merge_cpu(slots_R, rows, gradient_SD)
    _step(
        weight,
        accumulator_R.numpy(),
        rows_U,
        merged_UD,
        real(rate),
        real(settings.l2),
        real(settings.eps),
    )


@compiled
def _step(
    weight: Any, accumulator: Any, rows: Any, gradient: Any, rate: Any, l2: Any, eps: Any
) -> None:
    dim = weight.shape[1]
    for u in range(rows.size):
        row = rows[u]
        square = weight.dtype.type(0)
        for d in range(dim):
            gradient[u, d] += l2 * weight[row, d]
            square += gradient[u, d] * gradient[u, d]
        accumulator[row] += square / weight.dtype.type(dim)
        scale = rate / (np.sqrt(accumulator[row]) + eps)
        for d in range(dim):
            weight[row, d] -= scale * gradient[u, d]
