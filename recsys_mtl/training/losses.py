"""Losses: one number per task, over the rows where the task's label is observed.

Shape letters: B rows, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.network import Targets, logit_slices
from recsys_mtl.schema import Binary, Multiclass, Regression, Task


def task_losses(
    logits_BZ: Tensor, targets: Targets, tasks: Sequence[Task], mean_T: Tensor, std_T: Tensor
) -> Tensor:
    """Return each task's mean loss (T,) over its observed rows, weighted by their sample weights.

    Parameters
    ----------
    logits_BZ
        Logits of all tasks.
    targets
        Labels, and weights that are 0 where a label is not observed.
    tasks
        T tasks.
    mean_T, std_T
        Label scale of regression tasks; 0 and 1 for others.

    Notes
    -----
    A task without observed rows in the batch has loss 0 and no gradient. The label of a row that is
    not observed is never looked at.
    """
    wide = torch.promote_types(logits_BZ.dtype, torch.float32)
    logits_BZ = logits_BZ.to(wide)
    weights_BT = targets.weights_BT.to(wide)
    labels_BT = (targets.labels_BT.to(wide) - mean_T) / std_T
    labels_BT = labels_BT.where(weights_BT > 0, 0)
    losses = [
        _row_losses(logits_BZ[:, part], labels_BT[:, number], task)
        for number, (task, part) in enumerate(zip(tasks, logit_slices(tasks), strict=True))
    ]
    sums_T = (torch.stack(losses, dim=1) * weights_BT).sum(dim=0)
    totals_T = weights_BT.sum(dim=0)
    return sums_T / torch.where(totals_T > 0, totals_T, torch.ones_like(totals_T))


def _row_losses(logits: Tensor, labels_B: Tensor, task: Task) -> Tensor:
    if isinstance(task, Binary):
        return F.binary_cross_entropy_with_logits(logits[:, 0], labels_B, reduction="none")
    if isinstance(task, Multiclass):
        return F.cross_entropy(logits, labels_B.long(), reduction="none")
    if isinstance(task, Regression) and task.loss == "huber":
        return F.huber_loss(logits[:, 0], labels_B, reduction="none", delta=task.huber_delta)
    return F.mse_loss(logits[:, 0], labels_B, reduction="none")
