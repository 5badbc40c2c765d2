"""What must be kept of the past for a set of features: sums by key and period, and last rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys_mtl.schema import (
    AsOf,
    AsOfHistory,
    ComputedFeature,
    KeyPart,
    Previous,
    Recency,
    Time,
)

Slot = tuple[str, str | None]
"""A number that is summed: a column, or what is left of it over the feature named second."""


@dataclass(frozen=True)
class Ledger:
    """Counts and sums of rows by key and period.

    Parameters
    ----------
    key
        Number of the key.
    period
        Its length in ticks.
    free
        Whether rows being scored count for one another: no outcome is summed.
    slots
        The numbers summed.
    reach
        Periods of the longest window.
    whole
        Whether a statistic has no window.
    """

    key: int
    period: int
    free: bool
    slots: tuple[Slot, ...]
    reach: int
    whole: bool


@dataclass(frozen=True)
class Trail:
    """The last rows of each key.

    Parameters
    ----------
    key, period, free
        As for `Ledger`.
    column
        The column kept of them, if any.
    where
        The outcome that must be above 0, if any.
    ids
        Whether the column holds ids, or else numbers.
    keep
        How many rows.
    """

    key: int
    period: int
    free: bool
    column: str | None
    where: str | None
    ids: bool
    keep: int


class Plan:
    """What must be kept, and which feature reads what.

    Parameters
    ----------
    clock
        The time of an interaction.
    features
        Those to compute.

    Attributes
    ----------
    keys : list of tuple
        The distinct keys; the empty one is that of all rows.
    ledgers, trails : list
        What is kept.
    ordered : list of ComputedFeature
        The features, each after its prior.
    """

    def __init__(self, clock: Time, features: Sequence[ComputedFeature]) -> None:
        self.clock, self.features = clock, tuple(features)
        self.keys: list[tuple[KeyPart, ...]] = []
        self._needs: dict[tuple[int, int, bool], list[tuple[Slot | None, int | None]]] = {}
        sums = [feature for feature in features if isinstance(feature, AsOf)]
        for feature in sums:
            self._add_sums(feature)
        self._places = {group: place for place, group in enumerate(self._needs)}
        self.ledgers = [_ledger(group, needs) for group, needs in self._needs.items()]
        trails = {f.name: t for f in features if (t := self._trail(f)) is not None}
        self.trails = list(dict.fromkeys(trails.values()))
        self._trails = {name: self.trails.index(trail) for name, trail in trails.items()}
        self.ordered = self._sorted(features)
        self.offset, self.slack = clock.ticks(clock.offset), clock.ticks(clock.slack)

    def ledger_of(self, feature: AsOf) -> int:
        """Return the number of the ledger that a feature's own rows are summed in."""
        return self._places[self._group(feature)]

    def prior_ledger_of(self, feature: AsOf) -> int:
        """Return the number of the ledger that the mean over all rows is read from."""
        return self._places[self._group(feature, everyone=True)]

    def trail_of(self, feature: ComputedFeature) -> int:
        """Return the number of a feature's trail."""
        return self._trails[feature.name]

    def chain(self, feature: ComputedFeature) -> list[ComputedFeature]:
        """Return a feature and those it is built on."""
        named = {one.name: one for one in self.features}
        found = [feature]
        while isinstance(last := found[-1], AsOf) and last.prior is not None:
            found.append(named[last.prior])
        return found

    def window(self, feature: AsOf) -> int | None:
        """Return a feature's window in periods."""
        if feature.window is None:
            return None
        return self.clock.ticks(feature.window) // self._period(feature.period)

    def _group(self, feature: AsOf, *, everyone: bool = False) -> tuple[int, int, bool]:
        key = self._key(() if everyone else feature.key_parts)
        return key, self._period(feature.period), feature.outcome is None

    def _add_sums(self, feature: AsOf) -> None:
        slot = slot_of(feature)
        self._needs.setdefault(self._group(feature), []).append((slot, self.window(feature)))
        if slot is not None and feature.statistic == "mean" and feature.prior is None:
            self._needs.setdefault(self._group(feature, everyone=True), []).append((slot, None))

    def _trail(self, feature: ComputedFeature) -> Trail | None:
        if isinstance(feature, AsOfHistory):
            key, period = self._key(feature.key_parts), self._period(feature.period)
            where = feature.where_label
            return Trail(
                key, period, where is None, feature.column, where, ids=True, keep=feature.max_length
            )
        if isinstance(feature, Previous | Recency):
            column = feature.minus if isinstance(feature, Recency) else feature.column
            return Trail(self._key(feature.key_parts), 1, True, column, None, ids=False, keep=1)
        return None

    def _key(self, parts: tuple[KeyPart, ...]) -> int:
        if parts not in self.keys:
            self.keys.append(parts)
        return self.keys.index(parts)

    def _period(self, period: str | None) -> int:
        return 1 if period is None else self.clock.ticks(period)

    def _sorted(self, features: Sequence[ComputedFeature]) -> list[ComputedFeature]:
        depth = {feature.name: len(self.chain(feature)) for feature in features}
        return sorted(features, key=lambda feature: depth[feature.name])


def slot_of(feature: AsOf) -> Slot | None:
    """Return the number that a feature sums; None: it counts all rows."""
    column = feature.label or feature.column
    return None if column is None else (column, feature.prior)


def asked_columns(feature: ComputedFeature) -> tuple[str, ...]:
    """Return the columns that a row to be scored must have for a feature, beside the time."""
    return feature.key_columns + (feature.context_columns if feature.outcome is None else ())


def _ledger(
    group: tuple[int, int, bool], needs: Sequence[tuple[Slot | None, int | None]]
) -> Ledger:
    slots = tuple(dict.fromkeys(slot for slot, _ in needs if slot is not None))
    windows = [window for _, window in needs]
    reach = max((window for window in windows if window is not None), default=0)
    return Ledger(*group, slots=slots, reach=reach, whole=None in windows)
