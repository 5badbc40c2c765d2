"""ESMM: tasks within others are learned from their joint probability over all impressions.

Shape letters: B rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY

from torch import Tensor

from recsys_mtl.network.heads.base import Headed, Heads, HeadsModule, RowLosses
from recsys_mtl.network.heads.joint import Joint, required_joints
from recsys_mtl.network.heads.towers import Tower, TowersModule
from recsys_mtl.network.inputs import Targets
from recsys_mtl.network.sharing.base import Dims, Dropout
from recsys_mtl.schema import Task
from recsys_mtl.spec import spec


@spec
class ESMM(Heads, kind="esmm"):
    """A binary task within another has the loss of the joint probability, and none of its own.

    ``pCTCVR = pCTR * pCVR`` is learned over all impressions, so that pCVR is not learned on clicks
    alone and scored on all. Chains may be of any length: click, cart, buy.

    Parameters
    ----------
    dims
        Widths of each tower's hidden layers; none leaves the linear layer alone.
    dropout
        Share of activations dropped after each hidden layer in training.

    Notes
    -----
    Rows whose joint label is not known (a label of the chain is missing) do not count. Tasks within
    none, and tasks that are not binary, keep their own loss.

    References
    ----------
    X. Ma et al., "Entire Space Multi-Task Model: An Effective Approach for Estimating Post-Click
    Conversion Rate", SIGIR 2018, equation 3.
    """

    links = "within"

    dims: Dims = (64,)
    _: KW_ONLY
    dropout: Dropout = 0.0

    def build(self, input_dim: int, tasks: Sequence[Task]) -> HeadsModule:
        """Make the module.

        Raises
        ------
        SchemaError
            If no binary task is within another.
        """
        towers = [
            Tower(input_dim, self.dims, task.num_logits, dropout=self.dropout) for task in tasks
        ]
        return _ESMM(towers, required_joints("esmm", tasks))


class _ESMM(TowersModule):
    def __init__(self, towers: Iterable[Tower], joints: Mapping[int, Joint]) -> None:
        super().__init__(towers)
        self.joints = dict(joints)

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
        return RowLosses(joint.loss(headed.logits_BZ, labels_B), weights_B)
