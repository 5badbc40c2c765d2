"""Gradients of each task's loss, their inner products, and their combination, tensor by tensor.

Shape letters: P tensors of the boundary (embedded leaves, then dense parameters), T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from recsys_mtl.training.balancing.base import Boundary

Place = Literal["both", "embeddings", "dense"]

_FEW_NUMBERS = 1 << 14
"""Up to this size one product of a stacked copy beats a dot product per pair of tasks."""


@dataclass(frozen=True)
class TaskGradients:
    """The gradient of every task's loss at every tensor of the boundary.

    Parameters
    ----------
    boundary
        The tensors.
    found
        Per tensor, per task: its gradient, or None where autograd sees no way from the loss.
    gramians_PTT
        Inner products of the tasks' gradients at each tensor; float32 or wider.
    """

    boundary: Boundary
    found: tuple[tuple[Tensor | None, ...], ...]
    gramians_PTT: Tensor

    def reached(self) -> Tensor:
        """Tell which tasks' losses have a gradient other than 0 at which tensors, (P, T)."""
        return self.gramians_PTT.diagonal(dim1=1, dim2=2) > 0

    def gramian(self, shared_P: Tensor, place: Place) -> Tensor:
        """Return inner products (T, T) over the shared tensors of a place.

        Parameters
        ----------
        shared_P
            Which tensors are shared.
        place
            ``"embeddings"``: the looked-up vectors; ``"dense"``: parameters; ``"both"``: all.
        """
        num_embedded = len(self.boundary.embedded)
        parts = {
            "both": slice(None),
            "embeddings": slice(num_embedded),
            "dense": slice(num_embedded, None),
        }
        part = parts[place]
        return torch.where(shared_P[part, None, None], self.gramians_PTT[part], 0).sum(dim=0)

    def fill(self, factors_PT: Tensor) -> None:
        """Set `grad` of every tensor to the sum of the tasks' gradients, each times its factor."""
        targets = (*self.boundary.embedded, *self.boundary.dense)
        for target, found, factors_T in zip(targets, self.found, factors_PT.unbind(), strict=True):
            target.grad = _combine(found, factors_T.to(target.dtype))


def task_gradients(losses_T: Tensor, boundary: Boundary, *, keep_graph: bool) -> TaskGradients:
    """Differentiate each task's loss; fills no `grad`.

    Parameters
    ----------
    losses_T
        Losses.
    boundary
        Where gradients are wanted.
    keep_graph
        Whether the graph is differentiated again afterwards.
    """
    targets = (*boundary.embedded, *boundary.dense)
    last = len(losses_T) - 1
    by_task = [
        torch.autograd.grad(loss, targets, retain_graph=keep_graph or k < last, allow_unused=True)
        for k, loss in enumerate(losses_T.unbind())
    ]
    found = tuple(zip(*by_task, strict=True))
    # matrix products under autocast would be of half precision
    with torch.no_grad(), torch.autocast(losses_T.device.type, enabled=False):
        gramians_PTT = torch.stack([_gramian(one, losses_T) for one in found])
    return TaskGradients(boundary, found, gramians_PTT)


def task_gramian(losses_T: Tensor, boundary: Boundary, place: Place = "both") -> Tensor:
    """Return inner products of the tasks' gradients at what they share, to look at conflicts.

    The graph stays as it is and no `grad` is filled.

    Parameters
    ----------
    losses_T
        Losses.
    boundary
        Where gradients are taken; a tensor at which fewer than two tasks have a gradient is not
        shared.
    place
        ``"embeddings"``: the looked-up vectors; ``"dense"``: parameters; ``"both"``: all.

    Returns
    -------
    Tensor
        (T, T).
    """
    gradients = task_gradients(losses_T, boundary, keep_graph=True)
    return gradients.gramian(gradients.reached().sum(dim=1) > 1, place)


def conflict(gramian_TT: Tensor) -> Tensor:
    """Return the cosines between the tasks' gradients; 0 for a task that has no gradient.

    Parameters
    ----------
    gramian_TT
        Inner products of the gradients.
    """
    squares_T = gramian_TT.diagonal()
    scales_T = torch.where(squares_T > 0, squares_T, torch.inf).rsqrt()
    return (gramian_TT * scales_T[:, None] * scales_T).clamp(-1, 1)


def _combine(found: Sequence[Tensor | None], factors_T: Tensor) -> Tensor | None:
    """Add up gradients times factors.

    The sum is a tensor of its own: autograd may return one and the same tensor as the gradient of
    two inputs of an addition, so none can be changed in place.
    """
    total: Tensor | None = None
    for gradient, factor in zip(found, factors_T.unbind(), strict=True):
        if gradient is None:
            continue
        total = gradient * factor if total is None else total.addcmul_(gradient, factor)
    return total


def _gramian(found: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Return inner products (T, T) of the gradients at one tensor."""
    flat = [None if one is None else one.flatten() for one in found]
    wide = [one if one is None else one.to(_at_least_single(one.dtype)) for one in flat]
    dtype = _at_least_single(like.dtype)
    given = [one for one in wide if one is not None]
    if len(given) == len(wide) and given[0].numel() <= _FEW_NUMBERS:
        rows = torch.stack(given)
        return torch.mm(rows, rows.T).to(dtype)
    zero = like.new_zeros((), dtype=dtype)
    entries: list[list[Tensor]] = [[zero] * len(wide) for _ in wide]
    for i, first in enumerate(wide):
        for j, second in enumerate(wide[: i + 1]):
            if first is not None and second is not None:
                entries[i][j] = entries[j][i] = torch.dot(first, second).to(dtype)
    return torch.stack([entry for row in entries for entry in row]).view(len(wide), len(wide))


def _at_least_single(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
