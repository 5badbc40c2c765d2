"""Exact solutions of the two small quadratic programs behind MGDA, UPGrad and DualProj.

Both are non-negative least squares on a square root of the Gramian, which SciPy's active-set method
solves to rounding for as many tasks as there may be.

Shape letters: T tasks.

References
----------
C. L. Lawson and R. J. Hanson, "Solving Least Squares Problems", 1974, chapter 23.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ITERATIONS_PER_TASK = 100


def min_norm_weights(gramian_TT: Tensor) -> Tensor:
    """Return the convex weights (T,) whose combination of gradients is shortest.

    Parameters
    ----------
    gramian_TT
        Inner products of the gradients; float64, on the CPU, of mean diagonal near 1.
    """
    # min |R b|^2 + (1 - sum b)^2 over b >= 0 is solved by a multiple of the wanted weights
    ones_1T = torch.ones_like(gramian_TT[:1])
    target = torch.zeros(len(gramian_TT) + 1, dtype=gramian_TT.dtype)
    target[-1] = 1
    found_T = _non_negative(torch.cat([_root(gramian_TT), ones_1T]), target)
    return found_T / found_T.sum()


def dual_cone_weights(weights_T: Tensor, gramian_TT: Tensor) -> Tensor:
    """Return the weights (T,) of the projection of a combination of gradients on their dual cone.

    The dual cone holds the directions in which no task loses.

    Parameters
    ----------
    weights_T
        Weights of the combination; the result is nowhere smaller.
    gramian_TT
        Inner products of the gradients; float64, on the CPU.
    """
    root_TT = _root(gramian_TT)
    return weights_T + _non_negative(root_TT, -root_TT @ weights_T)


def _root(gramian_TT: Tensor) -> Tensor:
    """Return R with R' R = gramian."""
    values_T, vectors_TT = torch.linalg.eigh(gramian_TT)
    root_TT: Tensor = values_T.clamp(min=0).sqrt()[:, None] * vectors_TT.T
    return root_TT


def _non_negative(matrix: Tensor, target: Tensor) -> Tensor:
    """Return x >= 0 that brings `matrix @ x` nearest to the target."""
    from scipy.optimize import nnls

    limit = _ITERATIONS_PER_TASK * matrix.shape[1]
    found, _ = nnls(matrix.numpy(), target.numpy(), maxiter=limit)
    return torch.as_tensor(found, dtype=matrix.dtype)
