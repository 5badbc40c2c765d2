"""Merge the lookups of a batch: one summed gradient for each table row it touched.

A scratch slot per table row tells whether a row was met before, so nothing is sorted and the cost is
that of the lookups, whatever the height of the table.

Shape letters: R table rows, D embedding dim, S looked-up vectors of a batch, K lookups of a batch,
U table rows of a batch, each once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_mtl.compiled import compiled
from recsys_mtl.network import EmbeddingTable, Touched


def scratch_slots(table: EmbeddingTable) -> Tensor:
    """Return the scratch of a table, int64 (R,): -1 everywhere, before and after every merge."""
    return torch.full_like(table.weight_RD[:, 0], -1, dtype=torch.int64)


def merge_torch(slots_R: Tensor, touched: Touched, gradient_SD: Tensor) -> tuple[Tensor, Tensor]:
    """Merge on any device.

    Parameters
    ----------
    slots_R
        From `scratch_slots`.
    touched
        Which rows went where.
    gradient_SD
        Gradient of the looked-up vectors.

    Returns
    -------
    rows_U
        The rows touched.
    merged_UD
        The gradient of each: summed over its lookups, each times its weight.
    """
    gradient_KD = gradient_SD[touched.slots_K]
    if touched.weights_K is not None:
        gradient_KD = gradient_KD * touched.weights_K[:, None]
    order_K = torch.arange(touched.rows_K.numel(), device=slots_R.device)
    slots_R[touched.rows_K] = order_K
    chosen_K = slots_R[touched.rows_K]
    first_K = chosen_K == order_K
    rows_U = touched.rows_K[first_K]
    place_K = (torch.cumsum(first_K, 0) - 1)[chosen_K]
    merged_UD = gradient_KD.new_zeros(rows_U.numel(), gradient_KD.shape[1])
    merged_UD.index_add_(0, place_K, gradient_KD)
    slots_R[rows_U] = -1
    return rows_U, merged_UD


def merge_cpu(slots_R: Tensor, touched: Touched, gradient_SD: Tensor) -> tuple[Any, Any]:
    """Do the same in one pass over memory, into numpy arrays: two orders faster on CPUs."""
    gradient = gradient_SD.contiguous().numpy()
    weights_K = touched.weights_K
    return _merge(  # type: ignore[no-any-return] # numba's functions have no types
        slots_R.numpy(),
        touched.rows_K.numpy(),
        touched.slots_K.numpy(),
        np.empty(0, gradient.dtype)
        if weights_K is None
        else weights_K.to(gradient_SD.dtype).numpy(),
        gradient,
    )


@compiled
def _merge(slots: Any, rows: Any, sources: Any, factors: Any, gradient: Any) -> Any:
    dim = gradient.shape[1]
    merged = np.empty((rows.size, dim), dtype=gradient.dtype)
    unique = np.empty(rows.size, dtype=np.int64)
    count = 0
    for k in range(rows.size):
        slot = slots[rows[k]]
        if slot < 0:
            slot = count
            slots[rows[k]] = slot
            unique[slot] = rows[k]
            merged[slot, :] = 0
            count += 1
        source = sources[k]
        if factors.size > 0:
            for d in range(dim):
                merged[slot, d] += factors[k] * gradient[source, d]
        else:
            for d in range(dim):
                merged[slot, d] += gradient[source, d]
    for slot in range(count):
        slots[unique[slot]] = -1
    return unique[:count], merged[:count]
