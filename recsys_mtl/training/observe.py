"""Observer: what gates, experts and task gradients did, for the training history.

Everything is added up on the device and read once per epoch.

Shape letters: B rows, T tasks, E experts, H representation width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from recsys_mtl.network import Roster, Shared, whole_roster
from recsys_mtl.training.balancing import conflict

LOOKS = 4
"""Looks at an epoch, at least, as long as `LEAST_GAP` allows."""
LEAST_GAP = 16
"""Steps between looks, at least, in epochs that have so many: a look costs some steps."""
DEAD_SHARE = 0.01
"""An expert is dead where its mean share in every gate that mixes it is below this."""


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
        self._rosters: list[Roster | None] = []

    def start_epoch(self, num_steps: int, *, taken: int = 0) -> None:
        """Plan the looks of an epoch of so many steps, of which some are taken.

        Four at least, if a look costs no more than every 16th step; one in any case.
        """
        sparing = min(LEAST_GAP, num_steps)
        self._gap = min(self.every, max(num_steps // LOOKS, sparing, 1))
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
            for name, gate_BE in zip(self._gate_names(level), gates, strict=False):
                self._add(f"gate{name}", gate_BE.mean(dim=0))
                self._add(f"entropy{name}", _entropy(gate_BE))
                self._add(f"max_share{name}", gate_BE.amax(dim=1).mean())
        for level, experts in enumerate(shared.experts, start=1):
            for number, expert_BH in enumerate(experts):
                wide = torch.promote_types(expert_BH.dtype, torch.float32)
                norm_B = torch.linalg.vector_norm(expert_BH, dim=1, dtype=wide)
                self._add(f"norm.{level}.{number}", norm_B.mean())
                silent_H = (expert_BH == 0).all(dim=0)
                key = f"{level}.{number}"
                known = self._silent.get(key)
                self._silent[key] = silent_H if known is None else known & silent_H
        self._rosters = _rosters(shared)

    def record(self) -> dict[str, Any]:
        """Return the means since the last record, by name, and forget them.

        Returns
        -------
        dict
            ``looks``, the steps that the means are taken over; ``task_weight.{task}``;
            ``gradient_cosine.{task}.{task}`` and ``gradient_conflict...``, the share of looks in which
            the cosine was negative.

            Per level and task, with ``gate_..._shared.{level}`` for a gate between levels that is no
            task's: ``gate.{level}.{task}``, the mean share of each expert that the gate mixes (a task's
            own first, then its group's, then the shared ones; all experts where it mixes all);
            ``gate_mean_entropy...``, the entropy of that mean, 1 where all experts weigh alike and 0
            where there is one; ``gate_entropy...``, the mean of the rows' entropies, which is 0 where
            each row has one expert, be it another for each; ``gate_max_share...``, the mean of
            the rows' largest shares. ``gate_distance.{level}.{task}.{task}`` is the Jensen-Shannon
            distance (base 2) of two tasks' mean gates: 0 where they are the same, 1 where they have no
            expert in common.

            Per level, a number for each expert in the order of the names ``experts.{level}``:
            ``expert_load.{level}``, the mean share in all gates of the level, 0 in one that does not
            mix it, so that loads sum to 1; ``expert_norm.{level}``, the mean length of its output;
            ``dead_units.{level}``, the share of its outputs that were 0 in all rows seen.
            ``dead_experts.{level}`` counts those with a mean share below 0.01 in every gate that
            mixes them; an expert that a task also reads past its gate (`AdaTT`, own ones of `HoME`)
            is never among them.
        """
        if self._looks == 0:
            return {}
        means = {name: (value / self._looks).tolist() for name, value in self._sums.items()}
        found: dict[str, Any] = {"looks": self._looks}
        found |= self._balance(means)
        found |= {name: value for name, value in means.items() if name.startswith("gate")}
        found |= {
            f"gate_mean_{name.replace('gate', 'entropy', 1)}": _entropy_of(value)
            for name, value in means.items()
            if name.startswith("gate")
        }
        found |= {
            f"gate_{name}": value
            for name, value in means.items()
            if name.startswith(("entropy", "max_share"))
        }
        for level, roster in enumerate(self._rosters, start=1):
            if roster is not None:
                found |= self._shares(level, roster, means)
            found |= self._outputs(level, means)
        self._steps, self._looks, self._sums, self._silent = 0, 0, {}, {}
        return found

    def _balance(self, means: Mapping[str, Any]) -> dict[str, float]:
        found = {
            f"task_weight.{task}": weight
            for task, weight in zip(self.tasks, means["weights"], strict=True)
        }
        for (i, first), (j, second) in combinations(enumerate(self.tasks), 2):
            for what in ("cosine", "conflict"):
                found[f"gradient_{what}.{first}.{second}"] = means[what][i][j]
        return found

    def _shares(self, level: int, roster: Roster, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the gates of a level give its experts, and how far tasks are apart in it."""
        gates = []
        for name, numbers in zip(self._gate_names(level), roster.reads, strict=False):
            shares = dict(zip(numbers, means[f"gate{name}"], strict=True))
            gates.append([shares.get(number, 0.0) for number in range(len(roster.names))])
        columns = list(zip(*gates, strict=True))
        found: dict[str, Any] = {
            f"experts.{level}": list(roster.names),
            f"expert_load.{level}": [sum(column) / len(gates) for column in columns],
            f"dead_experts.{level}": sum(
                max(column) < DEAD_SHARE and number not in roster.bypassing
                for number, column in enumerate(columns)
            ),
        }
        for (i, first), (j, second) in combinations(enumerate(self.tasks), 2):
            found[f"gate_distance.{level}.{first}.{second}"] = _distance(gates[i], gates[j])
        return found

    def _outputs(self, level: int, means: Mapping[str, Any]) -> dict[str, list[float]]:
        """Return what the outputs of a level's experts were like."""
        start = f"{level}."
        silent = [value for key, value in self._silent.items() if key.startswith(start)]
        norms = [value for name, value in means.items() if name.startswith(f"norm.{start}")]
        return {
            f"expert_norm.{level}": norms,
            f"dead_units.{level}": [float(silent_H.float().mean()) for silent_H in silent],
        }

    def _gate_names(self, level: int) -> list[str]:
        return [*(f".{level}.{task}" for task in self.tasks), f"_shared.{level}"]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is needed to go on after a break: counts and the order of names, and sums."""
        sums = {f"sum.{name}": value for name, value in self._sums.items()}
        silent = {f"silent.{name}": value for name, value in self._silent.items()}
        counts = {
            "steps": self._steps,
            "looks": self._looks,
            "sums": list(self._sums),
            "silent": list(self._silent),
            "rosters": [None if one is None else asdict(one) for one in self._rosters],
        }
        return counts, sums | silent

    def load_state(self, counts: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take what `state` returned."""
        self._steps, self._looks = counts["steps"], counts["looks"]
        self._sums = {name: tensors[f"sum.{name}"] for name in counts["sums"]}
        self._silent = {name: tensors[f"silent.{name}"] for name in counts["silent"]}
        self._rosters = [
            None
            if one is None
            else Roster(
                tuple(one["names"]),
                tuple(tuple(numbers) for numbers in one["reads"]),
                tuple(one["bypassing"]),
            )
            for one in counts["rosters"]
        ]

    def _add(self, name: str, value: Tensor) -> None:
        known = self._sums.get(name)
        self._sums[name] = value if known is None else known + value


def _rosters(shared: Shared) -> list[Roster | None]:
    """Return the roster of every level with experts; None where columns of gates cannot be told."""
    if shared.rosters:
        return list(shared.rosters)
    found: list[Roster | None] = []
    for number, experts in enumerate(shared.experts):
        gates = shared.gates[number] if number < len(shared.gates) else ()
        names = [str(expert) for expert in range(1, len(experts) + 1)]
        whole = gates and all(gate_BE.shape[1] == len(experts) for gate_BE in gates)
        found.append(whole_roster(names, len(gates)) if whole else None)
    return found


def _entropy(gate_BE: Tensor) -> Tensor:
    """Return the mean entropy of the rows' gates, as a share of the largest possible."""
    if gate_BE.shape[1] == 1:
        return gate_BE.new_zeros(())
    entropy_B = -torch.xlogy(gate_BE, gate_BE).sum(dim=1)
    return entropy_B.mean() / math.log(gate_BE.shape[1])


def _entropy_of(shares: Sequence[float]) -> float:
    """Return the entropy of one gate, as a share of the largest possible."""
    if len(shares) == 1:
        return 0.0
    return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))


def _distance(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance of two gates over the same experts, in base 2."""
    divergence = 0.0
    for one, other in zip(first, second, strict=True):
        middle = (one + other) / 2
        divergence += sum(share * math.log2(share / middle) for share in (one, other) if share > 0)
    return math.sqrt(max(divergence, 0.0) / 2)
