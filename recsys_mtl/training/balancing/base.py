"""Balance: how the losses of several tasks become one set of gradients.

Shape letters: T tasks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import HeadsModule
from recsys_mtl.schema import Task
from recsys_mtl.spec import Spec


@dataclass(frozen=True)
class Boundary:
    """What gradients are wanted for.

    Parameters
    ----------
    embedded
        The looked-up vectors, where the graph begins: leaves, one per table width. Their gradient is
        carried to table rows by the table optimizer, so that tables never have a dense gradient.
    dense
        All dense parameters that are trained. Those that only one task's loss reaches are that task's
        own.
    """

    embedded: tuple[Tensor, ...]
    dense: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Balanced:
    """What a balancer did in one step, for the training history; all stay on the device.

    Parameters
    ----------
    weights_T
        The factor each task's loss (or shared gradient) was given.
    gramian_TT
        Inner products of the tasks' gradients at the boundary, where they were computed.
    """

    weights_T: Tensor
    gramian_TT: Tensor | None = None


class Balancer(ABC):
    """The state of a balance during training.

    Attributes
    ----------
    state
        Names of the attributes, all tensors, that `state_dict` holds.
    """

    state: ClassVar[tuple[str, ...]] = ()
    gives_gramian: bool = False
    """Whether every step's `Balanced` has the inner products at all that is shared."""

    @abstractmethod
    def backward(
        self,
        losses_T: Tensor,
        present_T: Tensor,
        boundary: Boundary,
        *,
        penalty: Tensor | None = None,
    ) -> Balanced:
        """Fill `grad` of everything in the boundary, and take a step on what the balancer learns.

        Parameters
        ----------
        losses_T
            Losses, each multiplied by its task's fixed weight.
        present_T
            Which tasks have labels in the batch; the losses of others are 0 and teach nothing.
        boundary
            Where gradients are wanted; their `grad` is None before.
        penalty
            A term that is added as it is.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what is needed to go on after a break."""
        return {name: getattr(self, name).clone() for name in self.state}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take what `state_dict` of the same balance returned."""
        for name in self.state:
            known = getattr(self, name)
            setattr(self, name, state[name].to(known.device, known.dtype, copy=True))


class Balance(Spec, ABC):
    """A choice of balance. Subclasses are specs with a `kind`, one file each."""

    needs_positive_losses: ClassVar[bool] = False
    """Whether it reads logarithms or ratios of losses, which a negative loss would lead astray."""

    @abstractmethod
    def build(self, tasks: Sequence[Task], *, seed: int, device: str) -> Balancer:
        """Make the balancer for these tasks; what it draws at random comes from `seed`."""


def backward_weighted(losses_T: Tensor, weights_T: Tensor, penalty: Tensor | None) -> Balanced:
    """Fill the gradients of a weighted sum of losses and the penalty; for balances of losses."""
    weights_T = weights_T.to(losses_T.dtype)
    total = (losses_T * weights_T).sum()
    torch.autograd.backward(total if penalty is None else total + penalty)
    return Balanced(weights_T)


def check_signs(balance: Balance, heads: HeadsModule) -> None:
    """Refuse a balance that needs positive losses beside heads whose losses may be negative.

    Raises
    ------
    SchemaError
        If the two do not go together.
    """
    if balance.needs_positive_losses and heads.signed_losses:
        raise SchemaError(
            f"balance {balance.kind!r} needs positive losses, and a doubly robust loss of these heads"
            " is negative in some batches. Choose another balance, such as 'fixed', or method 'ipw'."
        )
