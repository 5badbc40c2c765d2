"""Between logits and scores: base rates, label scales, probabilities.

Shape letters: B rows, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import OBSERVED, Batch
from recsys_mtl.network.heads import Joint, joints, logit_slices
from recsys_mtl.schema import Binary, Multiclass, Regression, Task

_RATE_FLOOR = 1e-6


def joint_scores(tasks: Sequence[Task]) -> dict[str, Joint]:
    """Return the derived scores that tasks name: the probability that a label and outer ones hold."""
    return {
        task.joint: joint
        for number, joint in joints(tasks).items()
        if isinstance(task := tasks[number], Binary) and task.joint is not None
    }


class Outputs(nn.Module):
    """Turn logits into scores: probabilities, or numbers on the label's own scale.

    Parameters
    ----------
    tasks
        T tasks.

    Notes
    -----
    A regression task's logit is its label centred by the training mean and divided by the training
    deviation: an uncentred squared error would drown the other tasks in the shared layers.
    """

    mean_T: Tensor
    std_T: Tensor

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.slices = logit_slices(tasks)
        self.joints = joint_scores(tasks)
        self.register_buffer("mean_T", torch.zeros(len(tasks)))
        self.register_buffer("std_T", torch.ones(len(tasks)))

    def learn(self, batch: Batch) -> Tensor:
        """Take label scales from training rows; return the logits (Z,) of their base rates."""
        if batch.labels is None or batch.states is None or batch.weights is None:
            raise ValueError("Label scales need rows encoded with labels.")
        bias_Z = torch.zeros(sum(task.num_logits for task in self.tasks))
        for number, (task, part) in enumerate(zip(self.tasks, self.slices, strict=True)):
            seen = (batch.states[:, number] == OBSERVED) & (batch.weights[:, number] > 0)
            if not seen.any():
                continue
            labels = batch.labels[seen, number].astype(np.float64)
            weights = batch.weights[seen, number].astype(np.float64)
            if isinstance(task, Regression):
                mean = float(np.average(labels, weights=weights))
                std = float(np.sqrt(np.average((labels - mean) ** 2, weights=weights)))
                self.mean_T[number] = mean
                # a weighted mean of equal labels is off by rounding: their deviation is 1e-17, not 0
                self.std_T[number] = std if labels.max() > labels.min() else 1.0
            elif isinstance(task, Multiclass):
                counts = np.bincount(
                    labels.astype(np.int64), weights=weights, minlength=task.num_classes
                )
                bias_Z[part] = torch.tensor(np.log(_rate(counts / counts.sum())))
            else:
                rate = _rate(np.average(labels, weights=weights))
                bias_Z[part] = float(np.log(rate / (1 - rate)))
        return bias_Z

    def forward(self, logits_BZ: Tensor) -> tuple[Tensor, ...]:
        """Return scores: (B,) per task, (B, classes) for a multiclass task; then those of joints."""
        logits_BZ = logits_BZ.to(torch.promote_types(logits_BZ.dtype, torch.float32))
        scores = []
        for number, (task, part) in enumerate(zip(self.tasks, self.slices, strict=True)):
            if isinstance(task, Binary):
                scores.append(torch.sigmoid(logits_BZ[:, part.start]))
            elif isinstance(task, Multiclass):
                scores.append(torch.softmax(logits_BZ[:, part], dim=1))
            else:
                value_B = logits_BZ[:, part.start] * self.std_T[number] + self.mean_T[number]
                bounds = task.bounds if isinstance(task, Regression) else None
                scores.append(value_B if bounds is None else value_B.clamp(*bounds))
        for joint in self.joints.values():
            # a product of numbers up to 1, outermost first: never above the outer score, rounding included
            chain_BK = torch.sigmoid(logits_BZ[:, list(joint.columns)])
            scores.append(chain_BK.cumprod(dim=1)[:, -1])
        return tuple(scores)


def _rate(share: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.clip(np.asarray(share, dtype=np.float64), _RATE_FLOOR, 1 - _RATE_FLOOR)
