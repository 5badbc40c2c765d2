"""Losses: one number per task, over the rows where the task's label is observed.

Shape letters: B rows, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import Headed, HeadsModule, RowLosses, Targets, joints, logit_slices
from recsys_mtl.network.two_hot import two_hot_loss
from recsys_mtl.schema import Binary, Multiclass, Regression, Task
from recsys_mtl.training.ranking import listwise_loss, pairwise_loss


def check_losses(tasks: Sequence[Task], heads: HeadsModule) -> None:
    """Refuse loss settings of tasks whose loss the heads define, or whose score they read.

    Raises
    ------
    SchemaError
        If such a task, or one that it is within, asks for a focal or a ranking loss or weighs positive
        rows: its score would be no probability.
    """
    defined = {number for number in range(len(tasks)) if heads.defines_loss(number)}
    read = {
        n for number, joint in joints(tasks).items() if number in defined for n in joint.numbers
    }
    for number, task in enumerate(tasks):
        if not isinstance(task, Binary) or number not in defined | read:
            continue
        asked = {
            "loss": task.loss != "bce",
            "positive_weight": task.positive_weight != 1,
            "ranking": task.ranking is not None,
        }
        for setting, differs in asked.items():
            if differs:
                raise SchemaError(
                    f"task {task.name!r}: the heads define its loss or read its probability, so"
                    f" {setting} must be left out. Found {getattr(task, setting)!r}. Remove it, or"
                    " choose other heads."
                )


@dataclass(frozen=True)
class TaskLosses:
    """Mean losses (T,) of a batch, and what each mean was divided by: its weight in an epoch's mean.

    A ranking loss counts by the task's observed rows, and not at all where the batch has nothing to
    compare: its mean over an epoch is an approximation.
    """

    means_T: Tensor
    totals_T: Tensor


def loss_weights(targets: Targets, tasks: Sequence[Task], heads: HeadsModule) -> Tensor:
    """Return what each row counts in each task's mean loss, (B, T): what `task_losses` divides by.

    A ranking loss counts by the task's observed rows.
    """
    columns = []
    for number, task in enumerate(tasks):
        own_B = targets.weights_BT[:, number]
        if isinstance(task, Multiclass) and task.class_weights is not None:
            classes_B = targets.labels_BT[:, number].where(own_B > 0, 0).long()
            own_B = own_B * own_B.new_tensor(task.class_weights)[classes_B]
        of_heads_B = heads.row_weights(number, targets)
        columns.append(own_B if of_heads_B is None else of_heads_B.to(own_B.dtype))
    return torch.stack(columns, dim=1)


def task_losses(
    headed: Headed,
    targets: Targets,
    tasks: Sequence[Task],
    mean_T: Tensor,
    std_T: Tensor,
    heads: HeadsModule,
) -> TaskLosses:
    """Return each task's mean loss over its observed rows, weighted by their sample weights.

    Parameters
    ----------
    headed
        Logits of all tasks, and what the heads' own losses read.
    targets
        Labels, and weights that are 0 where a label is not observed; groups, if a task has a ranking
        loss.
    tasks
        T tasks.
    mean_T, std_T
        Label scale of regression tasks; 0 and 1 for others, and where the loss is over bins.
    heads
        Where they define a task's loss, theirs counts and not the task's own.

    Notes
    -----
    A task without observed rows in the batch has loss 0 and no gradient. The label of a row that is
    not observed is never looked at.
    """
    wide = torch.promote_types(headed.logits_BZ.dtype, torch.float32)
    logits_BZ = headed.logits_BZ.to(wide)
    weights_BT = targets.weights_BT.to(wide)
    labels_BT = (targets.labels_BT.to(wide) - mean_T) / std_T
    labels_BT = labels_BT.where(weights_BT > 0, 0)
    means, totals = [], []
    for number, (task, part) in enumerate(zip(tasks, logit_slices(tasks), strict=True)):
        own = logits_BZ[:, part], labels_BT[:, number], weights_BT[:, number]
        rows = heads.row_losses(number, headed, targets) or _row_losses(*own, task)
        counts_B = rows.weights_B.to(wide)
        total = counts_B.sum()
        mean = (rows.losses_B.to(wide) * counts_B).sum() / torch.where(total > 0, total, 1)
        if isinstance(task, Binary) and task.ranking is not None:
            ranking = _ranking_loss(own[0][:, 0], *own[1:], targets.groups_B, task)
            share = task.ranking_share
            mean = ranking if share == 1 else (1 - share) * mean + share * ranking
            total = torch.where(ranking.detach() != 0, total, 0)
        means.append(mean)
        totals.append(total)
    return TaskLosses(torch.stack(means), torch.stack(totals).detach())


def _ranking_loss(
    logits_B: Tensor, labels_B: Tensor, weights_B: Tensor, groups_B: Tensor | None, task: Binary
) -> Tensor:
    if groups_B is None:
        raise ValueError(f"The ranking loss of task {task.name!r} needs rows encoded with groups.")
    loss = pairwise_loss if task.ranking == "pairwise" else listwise_loss
    return loss(logits_B, labels_B, weights_B, groups_B)


def _row_losses(logits: Tensor, labels_B: Tensor, weights_B: Tensor, task: Task) -> RowLosses:
    if isinstance(task, Binary):
        return RowLosses(_binary_losses(logits[:, 0], labels_B, task), weights_B)
    if isinstance(task, Multiclass):
        classes_B = labels_B.long()
        losses_B = F.cross_entropy(logits, classes_B, reduction="none")
        if task.class_weights is not None:
            weights_B = weights_B * logits.new_tensor(task.class_weights)[classes_B]
        return RowLosses(losses_B, weights_B)
    if isinstance(task, Regression) and task.bins is not None:
        return RowLosses(two_hot_loss(logits, labels_B, task.bins), weights_B)
    if isinstance(task, Regression) and task.loss == "huber":
        losses_B = F.huber_loss(logits[:, 0], labels_B, reduction="none", delta=task.huber_delta)
        return RowLosses(losses_B, weights_B)
    return RowLosses(F.mse_loss(logits[:, 0], labels_B, reduction="none"), weights_B)


def _binary_losses(logits_B: Tensor, labels_B: Tensor, task: Binary) -> Tensor:
    losses_B = F.binary_cross_entropy_with_logits(logits_B, labels_B, reduction="none")
    if task.loss == "focal":
        # log(1 - p of the label): in log space, where neither p nor 1 - p runs out of digits
        log_missed_B = F.logsigmoid(torch.where(labels_B > 0, -logits_B, logits_B))
        losses_B = (task.focal_gamma * log_missed_B).exp() * losses_B
    if task.positive_weight != 1:
        losses_B = torch.where(labels_B > 0, losses_B * task.positive_weight, losses_B)
    return losses_B
