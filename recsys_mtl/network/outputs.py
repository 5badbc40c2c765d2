"""Between logits and scores: base rates, label scales, probabilities.

Shape letters: B rows, T tasks, Z logits of all tasks side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_mtl.encoding import OBSERVED, Batch
from recsys_mtl.network.heads import Joint, joints, logit_slices
from recsys_mtl.network.two_hot import bin_mean, two_hot
from recsys_mtl.schema import Binary, LabelBins, Multiclass, Regression, Task

_RATE_FLOOR = 1e-6
_READ_ROWS = 1 << 20

_Doubles = npt.NDArray[np.float64]


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
    deviation: an uncentred squared error would drown the other tasks in the shared layers. With a loss
    over bins it has a logit per bin, labels keep their scale, and the score is the bins' mean.
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
            known = _Known(batch.labels, batch.states, batch.weights, number)
            total = sum(weights.sum() for _, weights in known.pieces())
            if total == 0:
                continue
            if isinstance(task, Multiclass):
                bias_Z[part] = torch.tensor(np.log(_rate(known.counts(task.num_classes) / total)))
                continue
            if isinstance(task, Regression) and task.bins is not None:
                bias_Z[part] = torch.tensor(np.log(_rate(known.binned(task.bins) / total)))
                continue
            mean = sum((labels * weights).sum() for labels, weights in known.pieces()) / total
            if isinstance(task, Regression):
                squares = sum((w * (labels - mean) ** 2).sum() for labels, w in known.pieces())
                self.mean_T[number] = float(mean)
                # a weighted mean of equal labels is off by rounding: their deviation is 1e-17, not 0
                self.std_T[number] = math.sqrt(squares / total) if known.differ() else 1.0
            else:
                rate = _rate(mean)
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
            elif isinstance(task, Regression) and task.bins is not None:
                scores.append(bin_mean(logits_BZ[:, part], task.bins))
            else:
                value_B = logits_BZ[:, part.start] * self.std_T[number] + self.mean_T[number]
                bounds = task.bounds if isinstance(task, Regression) else None
                scores.append(value_B if bounds is None else value_B.clamp(*bounds))
        for joint in self.joints.values():
            # a product of numbers up to 1, outermost first: never above the outer score, rounding included
            chain_BK = torch.sigmoid(logits_BZ[:, list(joint.columns)])
            scores.append(chain_BK.cumprod(dim=1)[:, -1])
        return tuple(scores)


@dataclass(frozen=True)
class _Known:
    """The observed labels of one task, read some rows at a time: they may be mapped from disk."""

    labels: npt.NDArray[np.float32]
    states: npt.NDArray[np.uint8]
    weights: npt.NDArray[np.float32]
    number: int

    def pieces(self) -> Iterator[tuple[_Doubles, _Doubles]]:
        for start in range(0, len(self.labels), _READ_ROWS):
            rows = slice(start, start + _READ_ROWS), self.number
            weights = self.weights[rows]
            seen = (self.states[rows] == OBSERVED) & (weights > 0)
            yield self.labels[rows][seen].astype(np.float64), weights[seen].astype(np.float64)

    def counts(self, num_classes: int) -> _Doubles:
        """Return the weight of the rows of each class."""
        counts = np.zeros(num_classes)
        for labels, weights in self.pieces():
            counts += np.bincount(labels.astype(np.int64), weights, num_classes)
        return counts

    def binned(self, bins: LabelBins) -> _Doubles:
        """Return the weight of the rows of each bin; rows between two bins are split."""
        counts = np.zeros(bins.number)
        for labels, weights in self.pieces():
            lower, share = (found.numpy() for found in two_hot(torch.from_numpy(labels), bins))
            counts += np.bincount(lower, weights * (1 - share), bins.number)
            counts += np.bincount(lower + 1, weights * share, bins.number)
        return counts

    def differ(self) -> bool:
        """Tell whether not all labels are the same."""
        found = [(labels.min(), labels.max()) for labels, _ in self.pieces() if labels.size]
        return bool(min(low for low, _ in found) < max(high for _, high in found))


def _rate(share: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.clip(np.asarray(share, dtype=np.float64), _RATE_FLOOR, 1 - _RATE_FLOOR)
