"""Best: the best epoch so far and a copy of its weights."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from torch import Tensor

from recsys_mtl.metrics import Measurement, Report
from recsys_mtl.network import MultiTaskModel


class Best:
    """The best epoch so far and a copy of its weights."""

    def __init__(self) -> None:
        self.epoch = 0
        self.report: Report | None = None
        self._badness = math.inf
        self._weights: dict[str, Tensor] | None = None

    def accept(self, epoch: int, badness: float, report: Report, model: MultiTaskModel) -> bool:
        """Keep the epoch if it is the first, or better than the best so far."""
        if self.epoch and not badness < self._badness:
            return False
        self.epoch, self.report = epoch, report
        self._badness = badness
        self._weights = {name: value.clone() for name, value in model.state_dict().items()}
        return True

    def restore(self, model: MultiTaskModel) -> None:
        """Give the model the best epoch's weights."""
        if self._weights is not None:
            model.load_state_dict(self._weights)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return what is needed to go on after a break: JSON values and tensors."""
        report = None
        if self.report is not None:
            measured = [asdict(found) for found in self.report.measurements]
            report = {"measurements": measured, "notes": list(self.report.notes)}
        return {
            "epoch": self.epoch,
            "badness": self._badness,
            "report": report,
        }, self._weights or {}

    def load_state(self, values: dict[str, Any], weights: dict[str, Tensor]) -> None:
        """Take what `state` returned."""
        self.epoch, self._badness = values["epoch"], values["badness"]
        self._weights = weights or None
        report = values["report"]
        if report is not None:
            measured = tuple(Measurement(**found) for found in report["measurements"])
            self.report = Report(measured, tuple(report["notes"]))
