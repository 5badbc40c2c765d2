"""The metrics of all tasks side by side, as a value, a frame and a table."""

import html
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

HIGHER_IS_BETTER: dict[str, bool | None] = {
    "auc": True,
    "gauc": True,
    "log_loss": False,
    "accuracy": True,
    "pcoc": None,
    "ece": False,
    "rmse": False,
    "mae": False,
}
"""Direction of each metric of a report, in the order of its columns. None: closest to 1 is best."""

_RANKED = ("ndcg", "recall", "mrr")
_NOTE_WIDTH = 88


def higher_is_better(metric: str) -> bool | None:
    """Return a metric's direction as in `HIGHER_IS_BETTER`, for those of ranked lists too."""
    return True if metric.partition("@")[0] in _RANKED else HIGHER_IS_BETTER[metric]


@dataclass(frozen=True)
class Measurement:
    """One metric of one task.

    Parameters
    ----------
    task : str
        Name of the task.
    metric : str
        One of `HIGHER_IS_BETTER`, or of ranked lists: ``ndcg@10``, ``recall@10``, ``mrr``.
    value : float
        NaN where the metric is undefined.
    rows : int
        Rows with an observed label.
    low, high : float, optional
        Bounds of its interval, NaN where they are undefined; None where none were asked for.
    slice : str, optional
        Which of the rows it is of; None: all.
    """

    task: str
    metric: str
    value: float
    rows: int
    low: float | None = None
    high: float | None = None
    slice: str | None = None


@dataclass(frozen=True)
class Report:
    """The measurements of a model on one set of rows; prints as a table.

    Parameters
    ----------
    measurements : tuple of Measurement
        At most one for each slice, task and metric.
    notes : tuple of str, default=()
        What a reader should know beside the numbers.
    by : str, optional
        The column whose values the slices are.

    Raises
    ------
    ValueError
        A task has one metric twice.
    """

    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    by: str | None = None

    def __post_init__(self) -> None:
        counts = Counter((found.slice, found.task, found.metric) for found in self.measurements)
        twice = sorted({place[1:] for place, count in counts.items() if count > 1})
        if twice:
            raise ValueError(f"A task must have each metric once; found twice: {twice}")

    def value(self, task: str, metric: str, *, slice: object = None) -> float:
        """Return one value, of all rows or of a slice.

        Raises
        ------
        KeyError
            The report has no such measurement; the error lists those it has.
        """
        wanted = None if slice is None else str(slice)
        for found in self.measurements:
            if (found.slice, found.task, found.metric) == (wanted, task, metric):
                return found.value
        names = dict.fromkeys(f"{found.task}/{found.metric}" for found in self.measurements)
        known = ", ".join(names)
        if self.by is not None:
            slices = dict.fromkeys(found.slice for found in self.measurements if found.slice)
            known += f"; slices by {self.by}: {', '.join(slices)}"
            metric += f"' of {self.by} '{slice}" if slice is not None else ""
        raise KeyError(f"No metric '{metric}' of task '{task}'. The report has: {known or 'none'}")

    def to_frame(self) -> pl.DataFrame:
        """Return one row per slice, task and metric.

        The columns are task, metric, value and rows; ``low`` and ``high`` if there are intervals; and
        before them ``slice``, null for all rows, if there are slices.
        """
        schema: dict[str, pl.DataType] = {
            "slice": pl.String(),
            "task": pl.String(),
            "metric": pl.String(),
            "value": pl.Float64(),
            "low": pl.Float64(),
            "high": pl.Float64(),
            "rows": pl.Int64(),
        }
        without = {"slice"} if self.by is None else set()
        without |= set() if self._bounded else {"low", "high"}
        return pl.DataFrame(
            {
                name: [getattr(found, name) for found in self.measurements]
                for name in schema
                if name not in without
            },
            schema={name: dtype for name, dtype in schema.items() if name not in without},
        )

    @property
    def _bounded(self) -> bool:
        return any(found.low is not None for found in self.measurements)

    def __str__(self) -> str:
        """Lay out one line per task and one column per metric, then the notes.

        With intervals, there is one line per task and metric.
        """
        return laid_out(self._cells(), self.notes, texts=1 if self.by is None else 2)

    def _repr_html_(self) -> str:
        return laid_out_html(self._cells(), self.notes)

    def _cells(self) -> list[list[str]]:
        """Return the header and the lines, all as text; empty where nothing applies."""
        cells = self._long_cells() if self._bounded else self._wide_cells()
        return cells if self.by is not None else [line[1:] for line in cells]

    def _wide_cells(self) -> list[list[str]]:
        seen = {found.metric: None for found in self.measurements}
        metrics = [name for name in HIGHER_IS_BETTER if name in seen]
        metrics += [name for name in seen if name not in HIGHER_IS_BETTER]
        lines: dict[tuple[str | None, str], list[str]] = {}
        for found in self.measurements:
            start = [found.slice or "(all)", found.task, "", *[""] * len(metrics)]
            line = lines.setdefault((found.slice, found.task), start)
            line[2] = f"{found.rows:,}"
            line[3 + metrics.index(found.metric)] = number_text(found.value)
        return [[self.by or "", "task", "rows", *metrics], *lines.values()]

    def _long_cells(self) -> list[list[str]]:
        head = [self.by or "", "task", "rows", "metric", "value", "low", "high"]
        lines = [
            [
                *(found.slice or "(all)", found.task, f"{found.rows:,}", found.metric),
                *map(number_text, (found.value, found.low, found.high)),
            ]
            for found in self.measurements
        ]
        return [head, *lines]


def laid_out(cells: Sequence[Sequence[str]], notes: Sequence[str], *, texts: int) -> str:
    """Lay out lines of cells, the first `texts` columns to the left, then the notes."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines += [
        textwrap.fill(note, _NOTE_WIDTH, initial_indent="- ", subsequent_indent="  ")
        for note in notes
    ]
    return "\n".join(lines)


def laid_out_html(cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Lay out lines of cells as a table, then the notes as a list."""
    head, *body = cells
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
        for line in body
    )
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table>"
    return table + (f"<ul>{listed}</ul>" if notes else "")


def number_text(value: float | None) -> str:
    """Return a number in a table: four decimals, or five digits from 1,000 on; empty for None."""
    if value is None:
        return ""
    if math.isfinite(value) and abs(value) >= 1000:
        return f"{value:.5g}"
    return f"{value:.4f}"
