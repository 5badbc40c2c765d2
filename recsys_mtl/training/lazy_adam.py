"""Lazy Adam: Adam on the table rows a batch touched, and on no other.

Shape letters: R table rows, D embedding dim, S looked-up vectors of a batch, U table rows of a batch,
each once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys_mtl.compiled import compiled
from recsys_mtl.network import EmbeddingTable, Touched
from recsys_mtl.spec import spec
from recsys_mtl.training.row_merge import merge_cpu, merge_torch
from recsys_mtl.training.tables import Penalty, Rate, TableOptimizer, TableStepper

Decay = Annotated[float, Field(ge=0, lt=1)]


@spec
class LazyAdam(TableOptimizer, kind="lazy_adam"):
    """Adam whose moments are those of the table rows that a batch touches; no other row is changed.

    With g the summed gradient of a row and t how often the row itself was stepped, this step included:
    ``m = beta1 * m + (1 - beta1) * g``, ``v = beta2 * v + (1 - beta2) * g**2``,
    ``w -= lr * m / (1 - beta1**t) / (sqrt(v / (1 - beta2**t)) + eps)``. It keeps two numbers per
    coordinate and one per row, so tables take three times the memory; `RowWiseAdagrad` keeps one per
    row.

    Parameters
    ----------
    learning_rate
        Step size lr.
    beta1, beta2
        Share of the running means m and v that a step keeps, 0 <= beta < 1.
    l2
        Added to the gradient of a touched row: ``l2 * w``. Rows not touched do not decay.
    eps
        Keeps steps finite where gradients vanish.

    Notes
    -----
    DIFF: between two of its batches a row rests. Adam would let its moments decay and move it on.

    DIFF: t counts the steps of the row. The paper, and lazy Adams such as that of TensorFlow Addons
    and `torch.optim.SparseAdam`, count those of the run. The correction by t undoes that m and v
    start at zero, and the moments of a row start when the row is first met. An id first met late in
    the run would be corrected as if they had long settled: its first step would be
    ``(1 - beta1) / sqrt(1 - beta2)`` times lr, 3.2 with the defaults, where Adam's is lr. With t of
    its own every row takes the steps of an Adam that sees nothing but the batches with the row.

    References
    ----------
    D. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1 and
    section 3 (correction of the bias).
    """

    learning_rate: Rate = 1e-3
    _: KW_ONLY
    beta1: Decay = 0.9
    beta2: Decay = 0.999
    l2: Penalty = 0.0
    eps: Rate = 1e-8

    def build(self, tables: Sequence[EmbeddingTable]) -> LazyAdamOptimizer:
        """Make the optimizer for these tables."""
        return LazyAdamOptimizer(self, tables)


class Moments(NamedTuple):
    """What is kept of a table: both running means, and how often each row was stepped."""

    first_RD: Tensor
    second_RD: Tensor
    steps_R: Tensor


class LazyAdamOptimizer(TableStepper):
    """Moments of the tables and the step on touched rows.

    Parameters
    ----------
    settings
        The choice.
    tables
        Embedding tables whose weights are changed in place.
    """

    def __init__(self, settings: LazyAdam, tables: Sequence[EmbeddingTable]) -> None:
        super().__init__(tables)
        self.settings = settings
        self._moments = [
            Moments(
                torch.zeros_like(table.weight_RD),
                torch.zeros_like(table.weight_RD),
                torch.zeros_like(table.weight_RD[:, 0], dtype=torch.int32),
            )
            for table in tables
        ]

    def state(self) -> dict[str, Tensor]:
        """Return both moments and the rows' counts of steps; not copies."""
        return {
            f"{number}.{name}": tensor
            for number, moments in enumerate(self._moments)
            for name, tensor in zip(("first", "second", "steps"), moments, strict=True)
        }

    def trained(self, number: int) -> Tensor:
        """Tell which rows of a table have a second moment above zero."""
        return self._moments[number].second_RD.any(dim=1)

    def _update(self, number: int, rows: Touched, gradient_SD: Tensor, factor: float) -> None:
        weight_RD = self.tables[number].weight_RD
        update = _update_cpu if weight_RD.device.type == "cpu" else _update_torch
        update(
            weight_RD,
            self._moments[number],
            self._slots[number],
            rows,
            gradient_SD,
            self.settings,
            self.settings.learning_rate * factor,
        )


def _update_torch(
    weight_RD: Tensor,
    moments: Moments,
    slots_R: Tensor,
    rows: Touched,
    gradient_SD: Tensor,
    settings: LazyAdam,
    rate: float,
) -> None:
    rows_U, gradient_UD = merge_torch(slots_R, rows, gradient_SD)
    before_UD = weight_RD[rows_U]
    gradient_UD += settings.l2 * before_UD
    first_UD = moments.first_RD[rows_U].lerp(gradient_UD, 1 - settings.beta1)
    second_UD = moments.second_RD[rows_U] * settings.beta2
    second_UD.addcmul_(gradient_UD, gradient_UD, value=1 - settings.beta2)
    steps_U = moments.steps_R[rows_U] + 1
    moments.first_RD[rows_U] = first_UD
    moments.second_RD[rows_U] = second_UD
    moments.steps_R[rows_U] = steps_U
    grown1_U1 = _grown(settings.beta1, steps_U, weight_RD.dtype)[:, None]
    grown2_U1 = _grown(settings.beta2, steps_U, weight_RD.dtype)[:, None]
    root_UD = (second_UD / grown2_U1).sqrt_() + settings.eps
    weight_RD[rows_U] = before_UD - (rate / grown1_U1) * first_UD / root_UD


def _grown(beta: float, steps_U: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``1 - beta**steps`` without the rounding of a power close to 1."""
    log = math.log(beta) if beta > 0 else -math.inf
    return -torch.expm1(steps_U.to(dtype) * log)


def _update_cpu(
    weight_RD: Tensor,
    moments: Moments,
    slots_R: Tensor,
    rows: Touched,
    gradient_SD: Tensor,
    settings: LazyAdam,
    rate: float,
) -> None:
    weight = weight_RD.numpy()
    real = weight.dtype.type
    rows_U, gradient_UD = merge_cpu(slots_R, rows, gradient_SD)
    _step(
        weight,
        moments.first_RD.numpy(),
        moments.second_RD.numpy(),
        moments.steps_R.numpy(),
        rows_U,
        gradient_UD,
        rate,
        settings.beta1,
        settings.beta2,
        real(settings.l2),
        real(settings.eps),
    )


@compiled
def _step(
    weight: Any,
    first: Any,
    second: Any,
    steps: Any,
    rows: Any,
    gradient: Any,
    rate: Any,
    beta1: Any,
    beta2: Any,
    l2: Any,
    eps: Any,
) -> None:
    real = weight.dtype.type
    keep1, keep2 = real(beta1), real(beta2)
    take1, take2 = real(1 - beta1), real(1 - beta2)
    log1, log2 = np.log(beta1), np.log(beta2)
    for u in range(rows.size):
        row = rows[u]
        steps[row] += 1
        scale = real(rate / -np.expm1(steps[row] * log1))
        stretch = real(1 / np.sqrt(-np.expm1(steps[row] * log2)))
        for d in range(weight.shape[1]):
            slope = gradient[u, d] + l2 * weight[row, d]
            first[row, d] = keep1 * first[row, d] + take1 * slope
            second[row, d] = keep2 * second[row, d] + take2 * slope * slope
            root = np.sqrt(second[row, d]) * stretch + eps
            weight[row, d] -= scale * first[row, d] / root
