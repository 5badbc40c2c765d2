"""Counts and sums of earlier rows, exact whatever the order and the pieces they came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from recsys_mtl.reading.as_of.kernels import FloatArray, IntArray, find_earlier, group_by_code
from recsys_mtl.reading.as_of.plan import Ledger, Slot

QUANTUM = 2.0**-30
"""What numbers are rounded to a multiple of, so that their sums are exact, and so the same in any
order: below 2**23 in size, and for whole numbers below 2**53. Beyond it sums round as usual."""

_EMPTY = np.empty(0, np.int64)
_NOTHING = np.empty(0, np.float64)


@dataclass(frozen=True)
class Sums:
    """What a ledger holds: one entry per key and period, by key, then by period.

    Parameters
    ----------
    code, index
        Key and period of each entry, shape (n,). Periods that no later row can tell apart are one
        entry, that of the last of them.
    rows
        Rows of each entry.
    values
        For each slot how many of its numbers are known, and their sum.
    """

    code: IntArray = field(default_factory=_EMPTY.copy)
    index: IntArray = field(default_factory=_EMPTY.copy)
    rows: FloatArray = field(default_factory=_NOTHING.copy)
    values: Mapping[Slot, tuple[FloatArray, FloatArray]] = field(default_factory=dict)


class Tally:
    """The counts and sums that rows of one table see of earlier ones.

    Parameters
    ----------
    ledger, past
        What is summed, and what is known so far.
    codes, periods
        Key and period of each row, shape (n,), in the order of their times.
    num_codes
        Number of keys.
    adds
        Whether these rows are themselves earlier rows of one another.
    """

    def __init__(
        self,
        ledger: Ledger,
        past: Sums,
        codes: IntArray,
        periods: IntArray,
        *,
        num_codes: int,
        adds: bool,
    ) -> None:
        self._ledger, self._past, self._adds = ledger, past, adds
        self._codes, self._asked = codes, periods
        all_codes = np.concatenate([past.code, codes]) if adds else past.code
        index = np.concatenate([past.index, periods]) if adds else past.index
        self._order, self._starts = group_by_code(all_codes, num_codes)
        if adds and past.index.size and periods.size and periods[0] < past.index.max():
            kept = np.lexsort((index, all_codes))
            self._order = kept[all_codes[kept] >= 0]
        self._code, self._index = all_codes[self._order], index[self._order]
        self._last = find_earlier(self._index, self._starts, codes, periods, 0)
        self._firsts: dict[int | None, IntArray] = {}
        self._totals: dict[tuple[Slot | None, int], FloatArray] = {}
        self._numbers: dict[tuple[Slot | None, int], FloatArray] = {}

    def add(self, slot: Slot, values: FloatArray | None) -> None:
        """Take up the rows' numbers of a slot, NaN where there is none; None where rows do not add."""
        counts, sums = self._past.values.get(slot, (_NOTHING, _NOTHING))
        if values is not None and self._adds:
            known = ~np.isnan(values)
            rounded = np.where(known, np.rint(values / QUANTUM) * QUANTUM, 0.0)
            counts = np.concatenate([counts, known.astype(np.float64)])
            sums = np.concatenate([sums, rounded])
        self._take(slot, 0, counts)
        self._take(slot, 1, sums)

    def count(self, slot: Slot | None, window: int | None) -> FloatArray:
        """Return how many earlier rows each row has, or known numbers of a slot in them."""
        if slot is None and (None, 0) not in self._numbers:
            own = np.ones(self._codes.size if self._adds else 0)
            self._take(None, 0, np.concatenate([self._past.rows, own]))
        return self._between(slot, 0, window)

    def sum(self, slot: Slot, window: int | None) -> FloatArray:
        """Return the sum of a slot's numbers in the earlier rows of each row."""
        return self._between(slot, 1, window)

    def sums(self, settled: int) -> Sums:
        """Return what is known after these rows, if no later row is of a period before `settled`."""
        self.count(None, None)
        cutoff = settled - self._ledger.reach
        kept = np.arange(self._code.size) if self._ledger.whole else self._index >= cutoff
        code, index = self._code[kept], self._index[kept]
        if code.size == 0:
            return Sums(values=dict.fromkeys(self._ledger.slots, (_NOTHING, _NOTHING)))
        told = np.maximum(index, cutoff - 1)  # no later row can tell the periods before apart
        begins = np.flatnonzero(np.r_[True, (np.diff(code) != 0) | (np.diff(told) != 0)])
        ends = np.r_[begins[1:], code.size] - 1
        merged = {
            part: np.add.reduceat(numbers[kept], begins) for part, numbers in self._numbers.items()
        }
        values = {slot: (merged[slot, 0], merged[slot, 1]) for slot in self._ledger.slots}
        return Sums(code[begins], index[ends], merged[None, 0], values)

    def _take(self, slot: Slot | None, part: int, numbers: FloatArray) -> None:
        grouped = numbers[self._order]
        self._numbers[slot, part] = grouped
        self._totals[slot, part] = np.concatenate([np.zeros(1), np.cumsum(grouped)])

    def _between(self, slot: Slot | None, part: int, window: int | None) -> FloatArray:
        total = self._totals[slot, part]
        return total[self._last] - total[self._first(window)]

    def _first(self, window: int | None) -> IntArray:
        """Return where each row's window begins."""
        if window not in self._firsts:
            if window is None:
                found = np.where(self._codes >= 0, self._starts[self._codes], 0)
            else:
                found = find_earlier(self._index, self._starts, self._codes, self._asked, window)
            self._firsts[window] = found
        return self._firsts[window]
