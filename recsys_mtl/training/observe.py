"""Observer: what gates, experts and task gradients did, for the training history.

Everything is added up on the device and read once per epoch.

Shape letters: B rows, T tasks, E experts, H representation width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from recsys_mtl.network import Shared
from recsys_mtl.training.balancing import conflict

LOOKS = 4
"""Looks at an epoch, at least."""
DEAD_SHARE = 0.01
"""An expert is dead where its mean share in every gate that reads it is below this."""


class Observer:
    """Look at every n-th step and report the means of an epoch.

    Parameters
    ----------
    tasks
        Names of the T tasks.
    every
        Steps between two looks, fewer in an epoch of few steps; 0: never.
    """

    def __init__(self, tasks: Sequence[str], every: int) -> None:
        self.tasks = list(tasks)
        self.every = every
        self._gap = every
        self._steps = 0
        self._looks = 0
        self._sums: dict[str, Tensor] = {}
        self._silent: dict[str, Tensor] = {}

    def start_epoch(self, num_steps: int, *, taken: int = 0) -> None:
        """Plan the looks of an epoch of so many steps, of which some are taken: four at least."""
        self._gap = min(self.every, max(num_steps // LOOKS, 1))
        self._steps = taken

    def is_due(self) -> bool:
        """Tell whether this step, which is counted, is to be looked at: the middle one of each gap."""
        if self.every == 0:
            return False
        self._steps += 1
        return (self._steps - 1) % self._gap == self._gap // 2

    @torch.no_grad()
    def see(self, shared: Shared, weights_T: Tensor, gramian_TT: Tensor) -> None:
        """Look at one step.

        Parameters
        ----------
        shared
            What the sharing structure returned.
        weights_T
            The factors that the balance gave the tasks.
        gramian_TT
            Inner products of the tasks' gradients.
        """
        self._looks += 1
        self._add("weights", weights_T)
        cosines_TT = conflict(gramian_TT)
        self._add("cosine", cosines_TT)
        self._add("conflict", (cosines_TT < 0).to(cosines_TT.dtype))
        for level, gates in enumerate(shared.gates, start=1):
            names = [*(f".{level}.{task}" for task in self.tasks), f"_shared.{level}"]
            for name, gate_BE in zip(names, gates, strict=False):
                self._add(f"gate{name}", gate_BE.mean(dim=0))
                self._add(f"entropy{name}", _entropy(gate_BE))
        for level, experts in enumerate(shared.experts, start=1):
            for number, expert_BH in enumerate(experts):
                silent_H = (expert_BH == 0).all(dim=0)
                key = f"{level}.{number}"
                known = self._silent.get(key)
                self._silent[key] = silent_H if known is None else known & silent_H

    def record(self) -> dict[str, Any]:
        """Return the means since the last record, by name, and forget them.

        Returns
        -------
        dict
            ``looks``, the steps that the means are taken over; ``task_weight.{task}``;
            ``gradient_cosine.{task}.{task}`` and ``gradient_conflict...``, the share of looks in which
            the cosine was negative; per level ``gate.{level}.{task}``, the mean share of each expert
            that the task reads (its own first, then the shared ones; all tasks' own, then the shared
            ones for ``gate_shared.{level}``), and ``gate_entropy...``, 1 where all experts weigh alike
            in every row and 0 where each row has one; ``expert_load.{level}`` and
            ``dead_experts.{level}`` where every task's gate reads all experts, so not for PLE, CGC or
            groups of tasks; ``dead_units.{level}``, the share of each expert's outputs that were 0 in
            all rows seen.
        """
        if self._looks == 0:
            return {}
        means = {name: (value / self._looks).tolist() for name, value in self._sums.items()}
        found: dict[str, Any] = {"looks": self._looks}
        found |= {
            f"task_weight.{task}": weight
            for task, weight in zip(self.tasks, means["weights"], strict=True)
        }
        for (i, first), (j, second) in combinations(enumerate(self.tasks), 2):
            for what in ("cosine", "conflict"):
                found[f"gradient_{what}.{first}.{second}"] = means[what][i][j]
        found |= {name: value for name, value in means.items() if name.startswith("gate")}
        found |= {
            f"gate_{name}": value for name, value in means.items() if name.startswith("entropy")
        }
        dead_units: dict[str, list[float]] = {}
        for key, silent_H in self._silent.items():
            level, _ = key.split(".")
            dead_units.setdefault(level, []).append(float(silent_H.float().mean()))
        for level, shares in dead_units.items():
            gates = [means.get(f"gate.{level}.{task}", []) for task in self.tasks]
            if all(len(gate) == len(shares) for gate in gates):
                loads = [sum(column) / len(gates) for column in zip(*gates, strict=True)]
                found[f"expert_load.{level}"] = loads
                peaks = [max(column) for column in zip(*gates, strict=True)]
                found[f"dead_experts.{level}"] = sum(peak < DEAD_SHARE for peak in peaks)
            found[f"dead_units.{level}"] = shares
        self._steps, self._looks, self._sums, self._silent = 0, 0, {}, {}
        return found

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is needed to go on after a break: counts and the order of names, and sums."""
        sums = {f"sum.{name}": value for name, value in self._sums.items()}
        silent = {f"silent.{name}": value for name, value in self._silent.items()}
        counts = {"steps": self._steps, "looks": self._looks}
        return counts | {"sums": list(self._sums), "silent": list(self._silent)}, sums | silent

    def load_state(self, counts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take what `state` returned."""
        self._steps, self._looks = counts["steps"], counts["looks"]
        self._sums = {name: tensors[f"sum.{name}"] for name in counts["sums"]}
        self._silent = {name: tensors[f"silent.{name}"] for name in counts["silent"]}

    def _add(self, name: str, value: Tensor) -> None:
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value


def _entropy(gate_BE: Tensor) -> Tensor:
    """Return the mean entropy of the rows' gates, as a share of the largest possible."""
    if gate_BE.shape[1] == 1:
        return gate_BE.new_zeros(())
    entropy_B = -torch.xlogy(gate_BE, gate_BE).sum(dim=1)
    return entropy_B.mean() / math.log(gate_BE.shape[1])
