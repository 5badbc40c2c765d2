"""Joint probabilities: that a label and those of all tasks it is within are positive.

Shape letters: B rows, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_mtl.encoding import OUT_OF_SPACE
from recsys_mtl.errors import SchemaError
from recsys_mtl.network.heads.base import logit_slices
from recsys_mtl.network.inputs import Targets
from recsys_mtl.schema import Binary, Task


@dataclass(frozen=True)
class Joint:
    """A binary task and the binary tasks it is within, such as click, cart, buy.

    Parameters
    ----------
    numbers
        The tasks' numbers, outermost first, the task itself last.
    columns
        Where their logits lie among the Z.
    """

    numbers: tuple[int, ...]
    columns: tuple[int, ...]

    def logs(self, logits_BZ: Tensor) -> tuple[Tensor, Tensor]:
        """Return log s and log(1 - s) of the joint probability s, (B,) both.

        Both are finite, with finite gradients, wherever the logits' sums are: a product of sigmoids
        rounds to 0 or 1 first, and ``log(1 - exp(log s))`` has no gradient there. In float32 at least.
        """
        wide = torch.promote_types(logits_BZ.dtype, torch.float32)
        first_B, *others = (logits_BZ[:, column].to(wide) for column in self.columns)
        log_s_B, log_not_B = F.logsigmoid(first_B), F.logsigmoid(-first_B)
        for logit_B in others:
            # not all: not those before, or those before but not this one
            log_not_B = torch.logaddexp(log_not_B, log_s_B + F.logsigmoid(-logit_B))
            log_s_B = log_s_B + F.logsigmoid(logit_B)
        return log_s_B, log_not_B

    def loss(self, logits_BZ: Tensor, labels_B: Tensor) -> Tensor:
        """Return the cross-entropy (B,) of the joint probability."""
        log_s_B, log_not_B = self.logs(logits_BZ)
        labels_B = labels_B.to(log_s_B.dtype)
        return -(labels_B * log_s_B + (1 - labels_B) * log_not_B)

    def targets(self, targets: Targets) -> tuple[Tensor, Tensor]:
        """Return the joint label and its weight, (B,) both; the weight is 0 where it is not known.

        Where an outer label is negative the joint one is 0, and has the weight of that outer label.
        """
        outermost, *others = self.numbers
        weights_B = targets.weights_BT[:, outermost]
        for number in others:
            outside_B = targets.states_BT[:, number] == OUT_OF_SPACE
            weights_B = weights_B.where(outside_B, targets.weights_BT[:, number])
        return targets.labels_BT[:, self.numbers[-1]], weights_B


def joints(tasks: Sequence[Task]) -> dict[int, Joint]:
    """Return the joint of every binary task that is within another, by the task's number.

    Raises
    ------
    SchemaError
        If a task is within what is no binary task, or within itself.
    """
    numbers = {task.name: number for number, task in enumerate(tasks)}
    slices = logit_slices(tasks)
    found = {}
    for number, task in enumerate(tasks):
        chain = [number]
        while (outer := tasks[chain[0]].within) is not None:
            outer_number = numbers.get(outer)
            if outer_number is None or not isinstance(tasks[outer_number], Binary):
                raise SchemaError(
                    f"Task {tasks[chain[0]].name!r}: within must name a binary task."
                    f" Found {outer!r}; tasks: {list(numbers)}."
                )
            if outer_number in chain:
                raise SchemaError(f"Task {task.name!r}: within must not lead back to itself.")
            chain.insert(0, outer_number)
        if len(chain) > 1 and isinstance(task, Binary):
            found[number] = Joint(tuple(chain), tuple(slices[link].start for link in chain))
    return found


def required_joints(kind: str, tasks: Sequence[Task]) -> dict[int, Joint]:
    """Return `joints`, for heads that make no sense without any.

    Raises
    ------
    SchemaError
        If no binary task is within another.
    """
    found = joints(tasks)
    if not found:
        raise SchemaError(
            f"Heads {kind!r} need a binary task that is within another. Found none among"
            f" {[task.name for task in tasks]}: name the outer task, as in"
            " Binary('cvr', label='buy', within='ctr'), or choose heads 'towers'."
        )
    return found
