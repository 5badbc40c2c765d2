"""Optimizers of the dense parameters, as specs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import KW_ONLY
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from recsys_mtl.spec import Spec, spec
from recsys_mtl.training.tables import Penalty, Rate


class Optimizer(Spec, ABC):
    """A choice of optimizer for the dense parameters."""

    @abstractmethod
    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""


@spec
class Adam(Optimizer, kind="adam"):
    """Adam (Kingma & Ba, ICLR 2015).

    Parameters
    ----------
    learning_rate
        Step size.
    weight_decay
        L2 penalty, added to the gradient.
    """

    learning_rate: Rate = 1e-3
    _: KW_ONLY
    weight_decay: Penalty = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.Adam(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


@spec
class AdamW(Optimizer, kind="adamw"):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Parameters
    ----------
    learning_rate
        Step size.
    weight_decay
        Share of each weight, times the step size, taken off per step.
    """

    learning_rate: Rate = 1e-3
    _: KW_ONLY
    weight_decay: Penalty = 0.01

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )


@spec
class SGD(Optimizer, kind="sgd"):
    """Stochastic gradient descent.

    Parameters
    ----------
    learning_rate
        Step size.
    momentum
        Share of the last step kept.
    weight_decay
        L2 penalty, added to the gradient.
    """

    learning_rate: Rate = 0.01
    _: KW_ONLY
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    weight_decay: Penalty = 0.0

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Make the torch optimizer."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            fused=True,
        )
