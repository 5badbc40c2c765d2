"""ESCM2: conversion losses weighted by the inverse propensity of the click, or doubly robust.

Shape letters: B rows, H representation width, X imputation logits, one per joint task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.encoding import OBSERVED
from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule, RowLosses
from recsys_mtl.network.heads.joint import Joint, required_joints
from recsys_mtl.network.heads.towers import Tower, TowersModule
from recsys_mtl.network.inputs import Targets
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Task
from recsys_mtl.spec import spec

TermWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@spec
class ESCM2(Heads, kind="escm2"):
    """A binary task within another has its own loss, corrected for who is seen, and the joint one.

    With clicks o, losses l and propensities p of the click, averaged over all impressions, the own
    loss is ``o l / p`` (IPW) or ``g + o (l - g) / p`` with imputed losses g (DR). A mean over clicked
    rows alone is biased: those who click are not those who are shown.

    Parameters
    ----------
    method
        ``"ipw"``: inverse propensity weighting; ``"dr"``: doubly robust, right if the propensities or
        the imputation are, with a second tower for each such task.
    dims
        Widths of each tower's hidden layers; none leaves the linear layer alone.
    dropout
        Share of activations dropped after each hidden layer in training.
    own_weight, joint_weight
        Weights of the two terms in the task's loss, at least 0, not both 0; the paper's lambda_c and
        lambda_g.
    min_propensity
        Propensities are clipped below at this, in (0, 1]: smaller is less biased, and noisier.

    Notes
    -----
    The propensity is the predicted probability that all outer labels are positive. No gradient goes
    through it: the model could lower the loss by inflating it. Rows whose joint label is not known
    do not count.

    DIFF: the paper's imputation tower predicts the loss itself. Such a number does not depend on the
    conversion tower, whose gradient then is that of IPW. Ours predicts the label, and the imputed
    loss is the loss at that label (Wang et al. 2019): the gradient is doubly robust as well. For the
    same reason the imputation learns from its own term alone and the conversion tower not from it.

    References
    ----------
    H. Wang et al., "ESCM2: Entire Space Counterfactual Multi-Task Model for Post-Click Conversion
    Rate Estimation", SIGIR 2022.
    X. Wang et al., "Doubly Robust Joint Learning for Recommendation on Data Missing Not at Random",
    ICML 2019.
    """

    links = "within"

    method: Literal["ipw", "dr"] = "ipw"
    _: KW_ONLY
    dims: Dims = (64,)
    dropout: Dropout = 0.0
    own_weight: TermWeight = 1.0
    joint_weight: TermWeight = 1.0
    min_propensity: Annotated[float, Field(gt=0, le=1)] = 0.05

    def __post_init__(self) -> None:
        if self.own_weight == 0 and self.joint_weight == 0:
            raise ValueError(
                "own_weight and joint_weight must not both be 0: nothing would train the task"
            )

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If no binary task is within another.
        """
        joints = required_joints("escm2", tasks)
        imputed = joints if self.method == "dr" else {}
        kinds = [_ImputingTower if number in imputed else Tower for number in range(len(tasks))]
        towers = [
            kind(input_dim, self.dims, task.num_logits, dropout=self.dropout)
            for kind, task in zip(kinds, tasks, strict=True)
        ]
        return _ESCM2(self, towers, joints, tuple(imputed))


class _ImputingTower(Tower):
    """A tower with a second one beside it, for the labels of the rows that were not clicked."""

    def __init__(
        self, input_dim: int, dims: Sequence[int], num_logits: int, *, dropout: float = 0.0
    ) -> None:
        super().__init__(input_dim, dims, num_logits, dropout=dropout)
        self.imputation = Tower(input_dim, dims, num_logits, dropout=dropout)

    def set_bias(self, bias_Z: Tensor) -> None:
        super().set_bias(bias_Z)
        self.imputation.set_bias(bias_Z)


class _ESCM2(TowersModule):
    def __init__(
        self,
        spec: ESCM2,
        towers: Iterable[Tower],
        joints: Mapping[int, Joint],
        imputed: tuple[int, ...],
    ) -> None:
        super().__init__(towers)
        self.spec = spec
        self.joints = dict(joints)
        self.imputed = imputed
        self.signed_losses = bool(imputed)

    def forward(self, tasks: tuple[Tensor, ...]) -> Headed:
        logits_BZ = super().forward(tasks).logits_BZ
        if not self.imputed:
            return Headed(logits_BZ)
        guesses = [
            cast("_ImputingTower", self.towers[number]).imputation(tasks[number])
            for number in self.imputed
        ]
        return Headed(logits_BZ, torch.cat(guesses, dim=1))

    def defines_loss(self, number: int) -> bool:
        return number in self.joints

    def row_weights(self, number: int, targets: Targets) -> Tensor | None:
        joint = self.joints.get(number)
        return None if joint is None else joint.targets(targets)[1]

    def row_losses(self, number: int, headed: Headed, targets: Targets) -> RowLosses | None:
        joint = self.joints.get(number)
        if joint is None:
            return None
        labels_B, weights_B = joint.targets(targets)
        own_B = self._own_losses(number, joint, headed, targets)
        joint_B = joint.loss(headed.logits_BZ, labels_B)
        return RowLosses(self.spec.own_weight * own_B + self.spec.joint_weight * joint_B, weights_B)

    def _own_losses(self, number: int, joint: Joint, headed: Headed, targets: Targets) -> Tensor:
        outer = Joint(joint.numbers[:-1], joint.columns[:-1])
        log_propensity_B, _ = outer.logs(headed.logits_BZ.detach())
        propensity_B = log_propensity_B.exp().clamp_min(self.spec.min_propensity)
        logit_B = headed.logits_BZ[:, joint.columns[-1]].to(propensity_B.dtype)
        labels_B = targets.labels_BT[:, number].to(propensity_B.dtype)
        observed_B = (targets.states_BT[:, number] == OBSERVED).to(propensity_B.dtype)
        losses_B = _losses(logit_B, labels_B)
        if headed.extra_BX is None:
            return inverse_propensity(losses_B, observed_B, propensity_B)
        guess_B = headed.extra_BX[:, self.imputed.index(number)].to(propensity_B.dtype).sigmoid()
        robust_B = doubly_robust(
            losses_B, _losses(logit_B, guess_B.detach()), observed_B, propensity_B
        )
        errors_B = losses_B.detach() - _losses(logit_B.detach(), guess_B)
        return robust_B + inverse_propensity(errors_B.square(), observed_B, propensity_B)


def inverse_propensity(losses_B: Tensor, observed_B: Tensor, propensity_B: Tensor) -> Tensor:
    """Return terms (B,) whose mean over all rows estimates the mean of all losses.

    Parameters
    ----------
    losses_B
        Losses; any finite number where not observed.
    observed_B
        1 where the row's label was observed, else 0.
    propensity_B
        The probability of that.
    """
    return observed_B * losses_B / propensity_B


def doubly_robust(
    losses_B: Tensor, imputed_B: Tensor, observed_B: Tensor, propensity_B: Tensor
) -> Tensor:
    """Return terms (B,) whose mean over all rows estimates the mean of all losses.

    Unbiased where the propensities are right, and where the imputed losses are right on average.

    Parameters
    ----------
    losses_B, observed_B, propensity_B
        As in `inverse_propensity`.
    imputed_B
        A guess of every row's loss.
    """
    return imputed_B + inverse_propensity(losses_B - imputed_B, observed_B, propensity_B)


def _losses(logit_B: Tensor, labels_B: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logit_B, labels_B, reduction="none")
