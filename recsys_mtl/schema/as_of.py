"""Features computed from earlier rows: their definitions, and the time that says what is earlier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from recsys_mtl.schema.features import History, Name, Numeric, Positive
from recsys_mtl.spec import Spec, spec

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 24 * 3600 * 10**9,
    "w": 7 * 24 * 3600 * 10**9,
}
_DURATION = re.compile(r"(-?)(\d+)(ns|us|ms|s|m|h|d|w)")


def nanoseconds(duration: str) -> int:
    """Return the length of a duration such as ``"1d"``, ``"36h"`` or ``"-5h"``.

    Raises
    ------
    ValueError
        If the text is no whole number and a unit.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(
            f"a duration must be a whole number and one of {list(_NANOSECONDS)}, such as '1d'."
            f" Found {duration!r}"
        )
    sign, number, unit = found.groups()
    return (-1 if sign else 1) * int(number) * _NANOSECONDS[unit]


def _positive(duration: str) -> str:
    if nanoseconds(duration) <= 0:
        raise ValueError(f"a duration must be above 0. Found {duration!r}")
    return duration


def _any_sign(duration: str) -> str:
    nanoseconds(duration)
    return duration


Duration = Annotated[str, AfterValidator(_positive)]
Shift = Annotated[str, AfterValidator(_any_sign)]


@spec
class Time(Spec):
    """The time of an interaction, and where its periods begin.

    Parameters
    ----------
    column
        Column of the interactions: integers since 1970 (UTC), or a datetime or date. Never null.
    unit
        Of integers; datetimes are cut to it. Rows of one time count as simultaneous.
    offset
        What local time is ahead of UTC: with ``"8h"`` periods of a day begin at midnight in Beijing.
    warm_up
        What to leave out of training at the beginning, such as ``"1d"``: these rows count in the
        features of later ones, but know too little to be learned from. It begins where the day (hour,
        minute, second) of the first row begins, the longest of which `warm_up` is a multiple.
    slack
        How far before the end of what is known later tables may begin, such as ``"1h"`` where a log is
        cut by another clock than this. So long the past is kept in detail, and no row sees its future.
    """

    column: Name
    _: KW_ONLY
    unit: Literal["s", "ms", "us", "ns"] = "ms"
    offset: Shift = "0s"
    warm_up: Duration | None = None
    slack: Shift = "0s"

    def __post_init__(self) -> None:
        if nanoseconds(self.slack) < 0:
            raise ValueError(f"slack must be at least 0. Found {self.slack!r}")

    def ticks(self, duration: str) -> int:
        """Return a duration in units of the time column.

        Raises
        ------
        ValueError
            If it is no multiple of the unit.
        """
        ticks, rest = divmod(nanoseconds(duration), _NANOSECONDS[self.unit])
        if rest:
            raise ValueError(
                f"{duration!r} must be a multiple of the time's unit. Found unit {self.unit!r}:"
                " choose a finer one, Time(..., unit=...)"
            )
        return ticks

    @property
    def warm_up_border(self) -> int:
        """What the beginning of the warm-up is a multiple of, in units of the time column."""
        length = 1 if self.warm_up is None else self.ticks(self.warm_up)
        whole = (
            nanoseconds(f"1{unit}") // _NANOSECONDS[self.unit] for unit in ("d", "h", "m", "s")
        )
        return next((ticks for ticks in whole if ticks and length % ticks == 0), 1)


@spec
class Bins(Spec):
    """A number as a part of a key: rows between the same two edges belong together.

    Parameters
    ----------
    column
        Column of numbers.
    edges
        Ascending; a number on an edge belongs to the bin above. Null and NaN are in no bin.
    """

    column: Name
    _: KW_ONLY
    edges: Annotated[Sequence[Annotated[float, Field(allow_inf_nan=False)]], AfterValidator(tuple)]

    def __post_init__(self) -> None:
        if not self.edges or list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"edges must be ascending, at least one. Found {list(self.edges)}")


KeyPart = Name | Bins
Key = KeyPart | Annotated[Sequence[KeyPart], Field(min_length=1), AfterValidator(tuple)]


class Computed:
    """What all features share that are computed from earlier rows, by `AsOfState`.

    The table must not hold a column of such a feature's name: that is where it is written to.
    """

    name: str
    key: Key

    @property
    def key_parts(self) -> tuple[KeyPart, ...]:
        """The parts of the key; a row in which one of them is null has no key, and no earlier rows."""
        return (self.key,) if isinstance(self.key, str | Bins) else tuple(self.key)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that tell a row's key."""
        return tuple(part if isinstance(part, str) else part.column for part in self.key_parts)

    @property
    def outcome(self) -> str | None:
        """The column known only after the impression that it is computed from, if any."""
        return None

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The columns known at the impression that it is computed from, beside the key's."""
        return ()

    @property
    def source(self) -> str:
        """The column that holds its values."""
        return self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """The column that holds its values."""
        return (self.name,)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of the table that it is computed from."""
        outcome = () if self.outcome is None else (self.outcome,)
        return (*self.key_columns, *self.context_columns, *outcome)


@spec
class AsOf(Computed, Numeric, kind="as_of"):
    """A statistic of earlier rows with the same key: a count, a sum or a smoothed mean.

    Earlier are the rows of earlier periods: with ``period="1d"`` those of the days before, with
    ``period=None`` those of a smaller time. A row never counts itself or one of the same time.

    With `label`, rows whose label is null do not count, and rows being scored count for none of the
    others: their outcomes are not known. Without it they do, in the order of their times.

    The mean is ``(sum + smoothing * prior) / (count + smoothing)``, where the prior is the mean over
    all earlier rows, whatever their key; null where there are none. With ``prior="other"`` it is
    hierarchical: let r = label - other be the residual of an earlier row from *its* value of that
    feature. The mean is ``other + sum(r) / (count + smoothing)``, with the row's own value of
    the other feature, so that keys without rows have that value. Rows for which the other is null
    count for nothing.

    Parameters
    ----------
    key
        Column, `Bins` of a column, or several of them: whose earlier rows are meant.
    label
        Column of an outcome (a number or boolean), of a task or not.
    column
        Column of a number that is known at the impression, in place of a label.
    statistic
        ``"mean"``, ``"sum"``, or ``"count"``: of the rows where label or column is not null; without
        both, of all.
    window
        How far back rows count, a multiple of the period: the periods before the row's own, or
        with ``period=None`` from exactly that long ago on. None: all. The prior has no window.
    period
        Its length; None: each time is its own.
    smoothing
        Rows that the prior counts for, at least 0. With 0 a mean of no rows is null (with `prior`:
        the other's value).
    prior
        Name of the mean of the same label, or column, that this one is shrunk towards.
    residual
        Whether the value is ``sum(r) / (count + smoothing)`` alone, without the other's.
    scaling, num_quantiles, embedding_dim
        As for `Numeric`.

    References
    ----------
    D. Micci-Barreca, "A Preprocessing Scheme for High-Cardinality Categorical Attributes in
    Classification and Prediction Problems", SIGKDD Explorations 2001, section 3, in time.
    """

    _: KW_ONLY
    key: Key
    label: Name | None = None
    statistic: Literal["mean", "count", "sum"] = "mean"
    window: Duration | None = None
    period: Duration | None = "1d"
    smoothing: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 20.0
    prior: Name | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        if self.label is not None and self.column is not None:
            raise ValueError("label and column must not both be given: one statistic is of one")
        if self.label is None and self.column is None and self.statistic != "count":
            raise ValueError(
                f"statistic {self.statistic!r} needs a label or a column. Name one, or choose 'count'"
            )
        if self.prior is not None and self.statistic != "mean":
            raise ValueError(f"prior belongs to a mean. Found statistic {self.statistic!r}")
        if self.residual and self.prior is None:
            raise ValueError("residual=True needs prior: the feature that it is left over from")
        _check_window(self.window, self.period)

    @property
    def outcome(self) -> str | None:
        """The label."""
        return self.label

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The column that stands in place of a label."""
        return () if self.column is None else (self.column,)


@spec
class Recency(Computed, Numeric, kind="recency"):
    """The time since the key's previous row, in units of the time column; null where there is none.

    Previous is the latest row of a smaller time, among those being scored, too.

    Parameters
    ----------
    key
        As for `AsOf`.
    minus
        Column of a number to subtract, the previous row's: with the duration of what was shown (in the
        time's unit) the rest says whether it was watched to its end. Of several previous rows at one
        time the largest number is taken. Null where it is null.
    scaling, num_quantiles, embedding_dim
        As for `Numeric`.
    """

    _: KW_ONLY
    key: Key
    minus: Name | None = None

    def __post_init__(self) -> None:
        _refuse_column(self.column)

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The column to subtract."""
        return () if self.minus is None else (self.minus,)


@spec
class Previous(Computed, Numeric, kind="previous"):
    """A number of the key's previous row; null where there is no such row or it is null there.

    Previous is the latest row of a smaller time, among those being scored, too. Of several at one
    time the largest number is taken.

    Parameters
    ----------
    key
        As for `AsOf`.
    column
        Column of a number that is known at the impression; it must be given.
    scaling, num_quantiles, embedding_dim
        As for `Numeric`.
    """

    _: KW_ONLY
    key: Key

    def __post_init__(self) -> None:
        if self.column is None:
            raise ValueError("column must name the previous row's column that is meant")

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The column of the previous row."""
        return () if self.column is None else (self.column,)


@spec
class AsOfHistory(Computed, History, kind="as_of_history"):
    """The last ids of earlier rows with the same key, oldest first, such as a user's last items.

    Parameters
    ----------
    key
        As for `AsOf`.
    column
        Column of the ids; rows where it is null are left out.
    where_label
        Column of an outcome: only rows count where it is above 0 (true). Rows being scored then
        count for none of the others, as for a label of `AsOf`.
    period
        As for `AsOf`; by default each time is its own. Where outcomes come in once a day, training
        rows see as little as rows being scored with ``"1d"``.
    max_length
        Ids kept. Those of one time stand in ascending order.
    table, num_buckets, embedding_dim, min_count, vocabulary
        As for `IdFeature`: with the table of the item's own id, both share vectors.
    """

    _: KW_ONLY
    key: Key
    where_label: Name | None = None
    period: Duration | None = None
    max_length: Positive = 20

    def __post_init__(self) -> None:
        if self.column is None:
            raise ValueError("column must name the ids of earlier rows, such as 'item_id'")
        if self.separator is not None:
            raise ValueError("separator must be left out: a row has one id")

    @property
    def outcome(self) -> str | None:
        """The label that selects rows."""
        return self.where_label

    @property
    def context_columns(self) -> tuple[str, ...]:
        """The column of the ids."""
        return () if self.column is None else (self.column,)


ComputedFeature = AsOf | Recency | Previous | AsOfHistory
"""The features that are computed from earlier rows."""


def _refuse_column(column: str | None) -> None:
    if column is not None:
        raise ValueError(f"column must be left out: only times count. Found {column!r}")


def _check_window(window: str | None, period: str | None) -> None:
    if window is not None and period is not None and nanoseconds(window) % nanoseconds(period):
        raise ValueError(f"window must be a multiple of period {period!r}. Found {window!r}")
