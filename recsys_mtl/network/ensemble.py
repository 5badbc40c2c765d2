"""Ensemble: networks that differ by their seeds alone, and score by the mean of their scores.

Shape letters: B rows, M members, K logits of one task, Z logits of all tasks side by side.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recsys_mtl.network.embedding import Embeddings
from recsys_mtl.network.heads import Headed
from recsys_mtl.network.inputs import Inputs
from recsys_mtl.network.model import MultiTaskModel, Predicted
from recsys_mtl.network.outputs import Outputs
from recsys_mtl.schema import Binary, Regression


class EnsembleModel(MultiTaskModel):
    """Several trained networks as one, for scoring.

    Its logits are those of the mean score: the mean probability, mean distribution or mean value. A
    joint probability is the product of mean probabilities, so that it stays below its parent.

    Parameters
    ----------
    members
        Networks for the same inputs and tasks, with the same label scales.
    """

    def __init__(self, members: Sequence[MultiTaskModel]) -> None:
        nn.Module.__init__(self)  # the parts of a network are those of the members
        self.members = nn.ModuleList(members)
        self.outputs = copy.deepcopy(members[0].outputs)

    @property
    def embeddings(self) -> Embeddings:
        """The embedding tables of the first member; the others' are alike in shape."""
        return members_of(self)[0].embeddings

    def forward(self, inputs: Inputs) -> Predicted:
        """Return the logits of the mean scores; gates and experts are the first member's."""
        found = [member(inputs) for member in members_of(self)]
        logits_BZ = mean_logits(self.outputs, [one.logits_BZ for one in found])
        return Predicted(Headed(logits_BZ), found[0].shared)


def members_of(model: MultiTaskModel) -> list[MultiTaskModel]:
    """Return the networks of an ensemble, or the one that a model is."""
    return list(cast("Sequence[MultiTaskModel]", getattr(model, "members", (model,))))


def mean_logits(outputs: Outputs, logits: Sequence[Tensor]) -> Tensor:
    """Return the logits (B, Z) whose scores are the mean of the members' scores.

    Parameters
    ----------
    outputs
        What turns logits into scores.
    logits
        Per member (B, Z). Those of one member alone are given back as they are.
    """
    if len(logits) == 1:
        return logits[0]
    all_MBZ = torch.stack(tuple(logits))
    all_MBZ = all_MBZ.to(torch.promote_types(all_MBZ.dtype, torch.float32))
    means = []
    for number, (task, part) in enumerate(zip(outputs.tasks, outputs.slices, strict=True)):
        own_MBK = all_MBZ[..., part]
        if isinstance(task, Binary):  # in log space, where neither p nor 1 - p runs out of digits
            yes_BK, no_BK = (F.logsigmoid(one).logsumexp(dim=0) for one in (own_MBK, -own_MBK))
            means.append(yes_BK - no_BK)
        elif task.num_logits > 1:
            logs_MBK = torch.log_softmax(own_MBK, dim=-1)
            means.append(logs_MBK.logsumexp(dim=0) - math.log(len(logits)))
        else:
            bounds = task.bounds if isinstance(task, Regression) else None
            if bounds is not None:  # scores are clipped before their mean is taken
                low, high = ((x - outputs.mean_T[number]) / outputs.std_T[number] for x in bounds)
                own_MBK = own_MBK.clamp(low, high)
            means.append(own_MBK.mean(dim=0))
    return torch.cat(means, dim=1)
