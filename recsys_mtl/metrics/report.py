"""The metrics of all tasks side by side, as a value, a frame and a table."""

import html
import math
import textwrap
from dataclasses import dataclass

import polars as pl

HIGHER_IS_BETTER: dict[str, bool | None] = {
    "auc": True,
    "gauc": True,
    "log_loss": False,
    "accuracy": True,
    "pcoc": None,
    "rmse": False,
    "mae": False,
}
"""Direction of each metric of a report, in the order of its columns. None: closest to 1 is best."""

_NOTE_WIDTH = 88


@dataclass(frozen=True)
class Measurement:
    """One metric of one task.

    Parameters
    ----------
    task : str
        Name of the task.
    metric : str
        One of `HIGHER_IS_BETTER`.
    value : float
        NaN where the metric is undefined.
    rows : int
        Rows with an observed label.
    """

    task: str
    metric: str
    value: float
    rows: int


@dataclass(frozen=True)
class Report:
    """The measurements of a model on one set of rows; prints as a table.

    Parameters
    ----------
    measurements : tuple of Measurement
        At most one for each task and metric.
    notes : tuple of str, default=()
        What a reader should know beside the numbers.

    Raises
    ------
    ValueError
        A task has one metric twice.
    """

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        pairs = [(found.task, found.metric) for found in self.measurements]
        twice = sorted({pair for pair in pairs if pairs.count(pair) > 1})
        if twice:
            raise ValueError(f"A task must have each metric once; found twice: {twice}")

    def value(self, task: str, metric: str) -> float:
        """Return one value.

        Raises
        ------
        KeyError
            The report has no such measurement; the error lists those it has.
        """
        for found in self.measurements:
            if (found.task, found.metric) == (task, metric):
                return found.value
        known = ", ".join(f"{found.task}/{found.metric}" for found in self.measurements)
        raise KeyError(f"No metric '{metric}' of task '{task}'. The report has: {known or 'none'}")

    def to_frame(self) -> pl.DataFrame:
        """Return the columns task, metric, value and rows: one row per task and metric."""
        return pl.DataFrame(
            {
                "task": [found.task for found in self.measurements],
                "metric": [found.metric for found in self.measurements],
                "value": [found.value for found in self.measurements],
                "rows": [found.rows for found in self.measurements],
            },
            schema={"task": pl.String, "metric": pl.String, "value": pl.Float64, "rows": pl.Int64},
        )

    def __str__(self) -> str:
        """Lay out one line per task and one column per metric, then the notes."""
        table = self._cells()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in table
        ]
        lines += [
            textwrap.fill(note, _NOTE_WIDTH, initial_indent="- ", subsequent_indent="  ")
            for note in self.notes
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self._cells()
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in body
        )
        header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
        return table + (f"<ul>{notes}</ul>" if notes else "")

    def _cells(self) -> list[list[str]]:
        """Return the header and a line per task, all as text; empty where nothing applies."""
        seen = {found.metric: None for found in self.measurements}
        metrics = [name for name in HIGHER_IS_BETTER if name in seen]
        metrics += [name for name in seen if name not in HIGHER_IS_BETTER]
        lines: dict[str, list[str]] = {}
        for found in self.measurements:
            line = lines.setdefault(found.task, [found.task, "", *[""] * len(metrics)])
            line[1] = f"{found.rows:,}"
            line[2 + metrics.index(found.metric)] = _number(found.value)
        return [["task", "rows", *metrics], *lines.values()]


def _number(value: float) -> str:
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:.5g}"
    return f"{value:.4f}"
