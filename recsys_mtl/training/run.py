"""Run: how far a training run has come.

Shape letters: T tasks.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from recsys_mtl.training.best import Best


class Clock:
    """Seconds of each phase of an epoch, by name, on the host: a GPU works on meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a phase here: what came before counts nowhere."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """End a phase, and begin the next."""
        now = time.perf_counter()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._last
        self._last = now


class Run:
    """Counters and sums of a training run, and its best epoch.

    Parameters
    ----------
    num_tasks
        T.
    device
        Where the sums lie.
    """

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self.epoch, self.batches, self.steps = 1, 0, 0
        self.finished = False
        self.history: list[dict[str, Any]] = []
        self.best = Best()
        self.sums_T = torch.zeros(num_tasks, dtype=torch.float64, device=device)
        self.totals_T = torch.zeros_like(self.sums_T)
        self.clock = Clock()
        self._spent, self._started = 0.0, time.perf_counter()

    def seconds_since_start(self) -> float:
        """Return the seconds that the epoch has taken, those before a break included."""
        return self._spent + time.perf_counter() - self._started

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batches = self.epoch + 1, 0
        self.sums_T.zero_()
        self.totals_T.zero_()
        self.clock = Clock()
        self._spent, self._started = 0.0, time.perf_counter()

    def values(self) -> dict[str, Any]:
        """Return the counters and the history, as JSON values."""
        return {
            "epoch": self.epoch,
            "batches": self.batches,
            "steps": self.steps,
            "finished": self.finished,
            "history": self.history,
            "phases": self.clock.seconds,
            "spent": self.seconds_since_start(),
        }

    def load(self, values: dict[str, Any], sums_T: Tensor, totals_T: Tensor) -> None:
        """Take what `values` returned, and the sums."""
        self.epoch, self.batches, self.steps = (
            values[name] for name in ("epoch", "batches", "steps")
        )
        self.finished, self.history = values["finished"], values["history"]
        self.sums_T, self.totals_T = sums_T, totals_T
        self.clock.seconds = values["phases"]
        self._spent, self._started = values["spent"], time.perf_counter()
