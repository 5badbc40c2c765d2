"""Row-wise Adagrad: a step on the table rows a batch touched, and on no other.

Shape letters: R table rows, D embedding dim, S pooled vectors of a batch, K lookups of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys_mtl.compiled import compiled
from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.spec import Spec, spec

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@spec
class RowWiseAdagrad(Spec, kind="row_wise_adagrad"):
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

    learning_rate: Rate = 0.1
    _: KW_ONLY
    l2: Penalty = 0.0
    eps: Rate = 1e-8

    def build(self, tables: Sequence[EmbeddingTable]) -> RowWiseAdagradOptimizer:
        """Make the optimizer for these tables."""
        return RowWiseAdagradOptimizer(self, tables)


class RowWiseAdagradOptimizer:
    """Accumulators of the tables and the step on touched rows.

    Parameters
    ----------
    settings
        The choice.
    tables
        Embedding tables whose weights are changed in place.
    """

    def __init__(self, settings: RowWiseAdagrad, tables: Sequence[EmbeddingTable]) -> None:
        self.settings = settings
        self.tables = list(tables)
        self.accumulators = [table.weight_RD.new_zeros(len(table.weight_RD)) for table in tables]
        self._slots = [
            torch.full(
                (len(table.weight_RD),), -1, dtype=torch.int64, device=table.weight_RD.device
            )
            for table in tables
        ]

    def reset(self) -> None:
        """Draw all tables afresh and forget their accumulators."""
        for table, accumulator_R in zip(self.tables, self.accumulators, strict=True):
            table.reset_parameters()
            accumulator_R.zero_()

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
        rate = self.settings.learning_rate * factor
        for number, (table, rows, gradient) in enumerate(
            zip(self.tables, touched, gradients, strict=True)
        ):
            if rows.rows_K.numel() == 0:
                continue
            update = _update_cpu if table.weight_RD.device.type == "cpu" else _update_torch
            update(
                table.weight_RD,
                self.accumulators[number],
                self._slots[number],
                rows,
                gradient.reshape(-1, table.dim),
                self.settings,
                rate,
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
    """Merge duplicate rows through a scratch slot per table row (no sort), then step."""
    gradient_KD = gradient_SD[rows.slots_K]
    if rows.weights_K is not None:
        gradient_KD = gradient_KD * rows.weights_K[:, None]
    order_K = torch.arange(rows.rows_K.numel(), device=weight_RD.device)
    slots_R[rows.rows_K] = order_K
    chosen_K = slots_R[rows.rows_K]
    first_K = chosen_K == order_K
    unique_U = rows.rows_K[first_K]
    place_K = (torch.cumsum(first_K, 0) - 1)[chosen_K]
    merged_UD = gradient_KD.new_zeros(unique_U.numel(), gradient_KD.shape[1])
    merged_UD.index_add_(0, place_K, gradient_KD)
    slots_R[unique_U] = -1
    before_UD = weight_RD[unique_U]
    merged_UD += settings.l2 * before_UD
    state_U = accumulator_R[unique_U] + merged_UD.square().mean(dim=1)
    accumulator_R[unique_U] = state_U
    scale_U = rate / (state_U.sqrt() + settings.eps)
    weight_RD[unique_U] = before_UD - scale_U[:, None] * merged_UD


def _update_cpu(
    weight_RD: Tensor,
    accumulator_R: Tensor,
    slots_R: Tensor,
    rows: Touched,
    gradient_SD: Tensor,
    settings: RowWiseAdagrad,
    rate: float,
) -> None:
    """Do the same in one pass over memory: on CPUs two orders faster than torch's scatter."""
    weights = rows.weights_K
    dtype = weight_RD.numpy().dtype.type
    _merge_and_step(
        weight_RD.numpy(),
        accumulator_R.numpy(),
        slots_R.numpy(),
        rows.rows_K.numpy(),
        rows.slots_K.numpy(),
        np.empty(0, dtype=dtype) if weights is None else weights.to(weight_RD.dtype).numpy(),
        gradient_SD.contiguous().numpy(),
        dtype(rate),
        dtype(settings.l2),
        dtype(settings.eps),
    )


@compiled
def _merge_and_step(
    weight: Any,
    accumulator: Any,
    slots: Any,
    rows: Any,
    sources: Any,
    factors: Any,
    gradient: Any,
    rate: Any,
    l2: Any,
    eps: Any,
) -> None:
    dim = weight.shape[1]
    merged = np.zeros((rows.size, dim), dtype=weight.dtype)
    unique = np.empty(rows.size, dtype=np.int64)
    count = 0
    for k in range(rows.size):
        slot = slots[rows[k]]
        if slot < 0:
            slot = count
            slots[rows[k]] = slot
            unique[slot] = rows[k]
            count += 1
        source = sources[k]
        if factors.size > 0:
            for d in range(dim):
                merged[slot, d] += factors[k] * gradient[source, d]
        else:
            for d in range(dim):
                merged[slot, d] += gradient[source, d]
    for slot in range(count):
        row = unique[slot]
        slots[row] = -1
        square = weight.dtype.type(0)
        for d in range(dim):
            merged[slot, d] += l2 * weight[row, d]
            square += merged[slot, d] * merged[slot, d]
        accumulator[row] += square / weight.dtype.type(dim)
        scale = rate / (np.sqrt(accumulator[row]) + eps)
        for d in range(dim):
            weight[row, d] -= scale * merged[slot, d]
