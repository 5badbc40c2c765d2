"""One table against the past: its rows' features, and the past with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl

from recsys_mtl.errors import EncodingError
from recsys_mtl.reading.as_of.kernels import FloatArray, IntArray
from recsys_mtl.reading.as_of.keys import KeyBook, read_values
from recsys_mtl.reading.as_of.plan import Plan, Slot, asked_columns, slot_of
from recsys_mtl.reading.as_of.sums import Sums, Tally
from recsys_mtl.reading.as_of.trails import Steps, Walk, own_steps
from recsys_mtl.reading.scan import require
from recsys_mtl.schema import AsOf, AsOfHistory, ComputedFeature, Recency, Time

Mode = Literal["learn", "apply", "alone"]
"""Whether rows count for later ones: wholly; but for their outcomes; not at all."""

_FINE_TICKS = {"ns": 1, "us": 1, "ms": 1_000, "s": 1_000_000}
"""What a unit of time has of the next finer one that datetimes are read in."""


@dataclass(frozen=True)
class Past:
    """All that is kept of earlier rows; never changed, only replaced.

    Parameters
    ----------
    books, sums, steps
        For each key, ledger and trail of the plan.
    begin, end
        Smallest and largest time so far.
    """

    books: tuple[KeyBook, ...]
    sums: tuple[Sums, ...]
    steps: tuple[Steps, ...]
    begin: int | None = None
    end: int | None = None

    @classmethod
    def empty(cls, plan: Plan) -> Past:
        """Return the past of the first row."""
        return cls(
            tuple(KeyBook() for _ in plan.keys),
            tuple(
                Sums(values={slot: (np.empty(0), np.empty(0)) for slot in ledger.slots})
                for ledger in plan.ledgers
            ),
            tuple(Steps() for _ in plan.trails),
        )


@dataclass
class Run:
    """The rows of one table, in the order of their times, and what they see.

    Parameters
    ----------
    plan, past
        What is kept, and what is known so far.
    frame
        The rows.
    ticks
        Their times.
    mode
        What they count for.
    """

    plan: Plan
    past: Past
    frame: pl.DataFrame
    ticks: IntArray
    mode: Mode
    _codes: dict[int, IntArray] = field(default_factory=dict)
    _books: dict[int, KeyBook] = field(default_factory=dict)
    _tallies: dict[int, Tally] = field(default_factory=dict)
    _walks: dict[int, Walk] = field(default_factory=dict)
    _filled: set[tuple[int, Slot]] = field(default_factory=set)
    _found: dict[str, FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._order = np.argsort(self.ticks, kind="stable")
        if (np.diff(self.ticks) < 0).any():
            self.frame, self.ticks = self.frame[self._order], self.ticks[self._order]

    def columns(self, features: Sequence[ComputedFeature]) -> list[pl.Series]:
        """Return the features' values, in the order the rows came in."""
        place = np.empty_like(self._order)
        place[self._order] = np.arange(place.size)
        columns = []
        for feature in features:
            if isinstance(feature, AsOfHistory):
                walk = self._walk(self.plan.trail_of(feature))
                columns.append(walk.lists(place, feature.max_length).alias(feature.name))
            else:
                values = self._values(feature)[place]
                columns.append(pl.Series(feature.name, values, nan_to_null=True))
        return columns

    def learned(self) -> Past:
        """Return the past with these rows."""
        if self.ticks.size == 0:
            return self.past
        for feature in self.plan.ordered:
            if isinstance(feature, AsOf):
                self._fill(feature)
        begin, end = int(self.ticks[0]), int(self.ticks[-1])
        if self.past.begin is not None and self.past.end is not None:
            begin, end = min(begin, self.past.begin), max(end, self.past.end)
        settled = end - self.plan.slack + self.plan.offset
        ledgers, trails = self.plan.ledgers, self.plan.trails
        for number in range(len(self.plan.keys)):
            self._coded(number)
        return Past(
            tuple(self._books[number] for number in range(len(self.plan.keys))),
            tuple(
                self._tally(number).sums(settled // ledger.period)
                for number, ledger in enumerate(ledgers)
            ),
            tuple(
                self._walk(number).steps(settled // trail.period)
                for number, trail in enumerate(trails)
            ),
            begin,
            end,
        )

    def _values(self, feature: ComputedFeature) -> FloatArray:
        """Return a number for each row, NaN for null."""
        if feature.name not in self._found:
            if isinstance(feature, AsOf):
                self._found[feature.name] = self._statistic(feature)
            else:
                time, value = self._walk(self.plan.trail_of(feature)).previous()
                gap = self.ticks - time
                value = gap - value if isinstance(feature, Recency) else value
                self._found[feature.name] = value
        return self._found[feature.name]

    def _statistic(self, feature: AsOf) -> FloatArray:
        self._fill(feature)
        tally, slot = self._tally(self.plan.ledger_of(feature)), slot_of(feature)
        window = self.plan.window(feature)
        count = tally.count(slot, window)
        if slot is None or feature.statistic == "count":
            return count
        total = tally.sum(slot, window)
        if feature.statistic == "sum":
            return total
        weight = count + feature.smoothing
        if feature.prior is not None:
            left = np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
            return left if feature.residual else self._prior(feature) + left
        if feature.smoothing > 0:
            total = total + feature.smoothing * self._everyone(feature, slot)
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    def _prior(self, feature: AsOf) -> FloatArray:
        other = self.plan.chain(feature)[1]
        return self._values(other)

    def _everyone(self, feature: AsOf, slot: Slot) -> FloatArray:
        """Return the mean over all earlier rows."""
        tally = self._tally(self.plan.prior_ledger_of(feature))
        count, total = tally.count(slot, None), tally.sum(slot, None)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

    def _fill(self, feature: AsOf) -> None:
        """Give the ledgers of a feature the numbers that it sums."""
        slot = slot_of(feature)
        if slot is None:
            return
        places = [self.plan.ledger_of(feature)]
        if feature.statistic == "mean" and feature.prior is None:
            places.append(self.plan.prior_ledger_of(feature))
        for place in places:
            if (place, slot) in self._filled:
                continue
            values = None
            if self._adds(self.plan.ledgers[place].free):
                values = read_values(self.frame[slot[0]], f"Feature {feature.name!r}").to_numpy()
                if feature.prior is not None:
                    values = values - self._prior(feature)
            self._tally(place).add(slot, values)
            self._filled.add((place, slot))

    def _adds(self, free: bool) -> bool:
        return self.mode == "learn" or (self.mode == "apply" and free)

    def _coded(self, key: int) -> tuple[IntArray, int]:
        """Return the codes of the rows, and how many codes there are."""
        if key not in self._codes:
            found = self.past.books[key].encode(self.frame, self.plan.keys[key])
            self._codes[key], self._books[key] = found
        return self._codes[key], len(self._books[key])

    def _periods(self, period: int) -> IntArray:
        return (self.ticks + self.plan.offset) // period

    def _tally(self, place: int) -> Tally:
        if place not in self._tallies:
            ledger = self.plan.ledgers[place]
            codes, num_codes = self._coded(ledger.key)
            self._tallies[place] = Tally(
                ledger,
                self.past.sums[place],
                codes,
                self._periods(ledger.period),
                num_codes=num_codes,
                adds=self._adds(ledger.free),
            )
        return self._tallies[place]

    def _walk(self, place: int) -> Walk:
        if place not in self._walks:
            trail = self.plan.trails[place]
            codes, num_codes = self._coded(trail.key)
            adds = self._adds(trail.free)
            self._walks[place] = Walk(
                trail,
                self.past.steps[place],
                own_steps(trail, self.frame, codes, self.ticks) if adds else None,
                codes,
                self._periods(trail.period),
                num_codes=num_codes,
                offset=self.plan.offset,
            )
        return self._walks[place]


def read_ticks(frame: pl.DataFrame, clock: Time) -> IntArray:
    """Return the times of rows in the clock's unit.

    Raises
    ------
    EncodingError
        If one is null, or the column holds no times.
    """
    column = frame[clock.column]
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("us"))
    if isinstance(column.dtype, pl.Datetime):
        fine: Literal["ns", "us"] = "ns" if clock.unit == "ns" else "us"
        column = column.dt.cast_time_unit(fine).to_physical() // _FINE_TICKS[clock.unit]
    if not column.dtype.is_integer():
        raise EncodingError(
            f"The time column {clock.column!r} must hold whole numbers, datetimes or dates. Found"
            f" {column.dtype}: cast it."
        )
    if column.null_count():
        raise EncodingError(
            f"The time column {clock.column!r} must not be null. Found {column.null_count()} nulls:"
            " fill or drop them."
        )
    return column.cast(pl.Int64).to_numpy()


def check_rows(frame: pl.DataFrame, plan: Plan, mode: Mode, past: Past, ticks: IntArray) -> None:
    """Refuse rows that lie before the end of the past, or already have the features' columns.

    Raises
    ------
    EncodingError
        If there is one.
    """
    taken = [feature.name for feature in plan.features if feature.name in frame.columns]
    if taken:
        raise EncodingError(
            f"Feature {taken[0]!r} is computed from earlier rows; the table must not have a column of"
            " that name. Drop or rename it."
        )
    if past.end is None or ticks.size == 0:
        return
    border = past.end - plan.slack
    early = int((ticks < border).sum())
    if early:
        raise EncodingError(
            f"Rows must not lie before time {border}, up to which features of earlier rows were"
            f" learned: those know their future. Found {early} of {ticks.size} rows, the first at"
            f" {int(ticks.min())}."
            + (
                " Feed rows in the order of time."
                if mode == "learn"
                else " Split by time, score rows with a state that ends before them, or give Time a slack."
            )
        )


def check_columns(columns: Sequence[str], plan: Plan, mode: Mode) -> None:
    """Require the columns that features are computed from.

    Raises
    ------
    EncodingError
        If the table lacks one.
    """
    wanted = [plan.clock.column]
    for feature in plan.features:
        wanted += feature.inputs if mode == "learn" else asked_columns(feature)
    require(columns, list(dict.fromkeys(wanted)), "interactions")
