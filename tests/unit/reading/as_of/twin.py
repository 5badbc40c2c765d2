"""The plain twin of `AsOfState`: a loop over rows that looks at every other row, by the docstrings."""

import math
from typing import Any

from recsys_mtl import AsOf, AsOfHistory, Bins, Previous, Recency, Schema
from recsys_mtl.schema.as_of import nanoseconds

Row = dict[str, Any]


class Twin:
    """Features of rows by definition.

    Parameters
    ----------
    schema
        The features.
    past
        All rows whose outcomes are known.
    beside
        Rows without outcomes that count, too, where no outcome is asked for.
    """

    def __init__(self, schema: Schema, past: list[Row], beside: list[Row] | None = None) -> None:
        self.features = {feature.name: feature for feature in schema.computed}
        self.clock = schema.clock
        self.past, self.beside = past, beside or []
        self.known: dict[tuple[str, int], Any] = {}

    def value(self, name: str, row: Row) -> Any:
        feature = self.features[name]
        if isinstance(feature, AsOf):
            return self._statistic(feature, row)
        if isinstance(feature, AsOfHistory):
            found = self._earlier(feature, row, feature.period, feature.where_label)
            found = [r for r in found if r[feature.column] is not None]
            if feature.where_label is not None:
                found = [r for r in found if (r[feature.where_label] or 0) > 0]
            found.sort(key=lambda r: (r[self.clock.column], r[feature.column]))
            return [r[feature.column] for r in found][-feature.max_length :]
        return self._previous(feature, row)

    def _value_of_past(self, name: str, row: Row) -> Any:
        place = (name, id(row))
        if place not in self.known:
            self.known[place] = self.value(name, row)
        return self.known[place]

    def _previous(self, feature: Recency | Previous, row: Row) -> float | None:
        found = self._earlier(feature, row, None, None)
        if not found:
            return None
        latest = max(r[self.clock.column] for r in found)
        column = feature.minus if isinstance(feature, Recency) else feature.column
        gap = float(row[self.clock.column] - latest)
        if column is None:
            return gap
        numbers = [r[column] for r in found if r[self.clock.column] == latest]
        known = [number for number in numbers if number is not None]
        if not known:
            return None
        return gap - max(known) if isinstance(feature, Recency) else float(max(known))

    def _statistic(self, feature: AsOf, row: Row) -> float | None:
        column = feature.label or feature.column
        found = self._earlier(feature, row, feature.period, feature.label, feature.window)
        if column is None:
            return float(len(found))
        numbers = []
        for other in found:
            number = other[column]
            if number is not None and feature.prior is not None:
                before = self._value_of_past(feature.prior, other)
                number = None if before is None else number - before
            if number is not None:
                numbers.append(number)
        if feature.statistic == "count":
            return float(len(numbers))
        total, weight = math.fsum(numbers), len(numbers) + feature.smoothing
        if feature.statistic == "sum":
            return total
        if feature.prior is not None:
            left = total / weight if weight else 0.0
            prior = self.value(feature.prior, row)
            if feature.residual:
                return left
            return None if prior is None else prior + left
        everyone = self._earlier(feature, row, feature.period, feature.label, everyone=True)
        known = [r[column] for r in everyone if r[column] is not None]
        if not known or not weight:
            return None
        return (total + feature.smoothing * (math.fsum(known) / len(known))) / weight

    def _earlier(
        self,
        feature: Any,
        row: Row,
        period: str | None,
        label: str | None,
        window: str | None = None,
        *,
        everyone: bool = False,
    ) -> list[Row]:
        rows = self.past if label is not None else self.past + self.beside
        mine = self._key(feature, row)
        if mine is None and not everyone:
            return []
        now = self._period(row, period)
        back = None if window is None else self._ticks(window) // self._length(period)
        return [
            other
            for other in rows
            if self._period(other, period) < now
            and (back is None or self._period(other, period) >= now - back)
            and (everyone or self._key(feature, other) == mine)
        ]

    def _key(self, feature: Any, row: Row) -> tuple[Any, ...] | None:
        key = []
        for part in feature.key_parts:
            value = row[part.column] if isinstance(part, Bins) else row[part]
            if value is None:
                return None
            key.append(
                sum(value >= edge for edge in part.edges) if isinstance(part, Bins) else value
            )
        return tuple(key)

    def _period(self, row: Row, period: str | None) -> int:
        return (row[self.clock.column] + self._ticks(self.clock.offset)) // self._length(period)

    def _length(self, period: str | None) -> int:
        return 1 if period is None else self._ticks(period)

    def _ticks(self, duration: str) -> int:
        return nanoseconds(duration) // nanoseconds(f"1{self.clock.unit}")
