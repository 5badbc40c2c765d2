"""Compiled loops over rows and events: group events by key, count those that are earlier."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recsys_mtl.compiled import compiled

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@compiled
def group_by_code(codes: IntArray, num_codes: int) -> tuple[IntArray, IntArray]:
    """Sort events by code, those of one code in the order they stand in.

    Parameters
    ----------
    codes
        Of the events, shape (n,), below `num_codes`; those below 0 are left out.
    num_codes
        Number of codes.

    Returns
    -------
    order
        Places of the events, one code after another.
    starts
        Where each code begins in `order`, and its end, shape (num_codes + 1,).
    """
    starts = np.zeros(num_codes + 1, np.int64)
    for code in codes:
        if code >= 0:
            starts[code + 1] += 1
    for code in range(num_codes):
        starts[code + 1] += starts[code]
    at = starts[:-1].copy()
    order = np.empty(starts[-1], np.int64)
    for place in range(len(codes)):
        code = codes[place]
        if code >= 0:
            order[at[code]] = place
            at[code] += 1
    return order, starts


@compiled
def find_earlier(
    index: IntArray, starts: IntArray, codes: IntArray, asked: IntArray, reach: int
) -> IntArray:
    """Find for each row where the events of its code cease to be earlier than it.

    Parameters
    ----------
    index
        Periods of the events, ascending within a code.
    starts
        Where each code's events begin, as `group_by_code` returns it.
    codes, asked
        Code and period of each row, shape (n,); periods ascending, at least within a code.
    reach
        How many periods earlier: an event counts as earlier if its period is below ``asked - reach``.

    Returns
    -------
    numpy.ndarray
        For each row the place after the last event that is earlier; 0 for a code below 0.
    """
    found = np.zeros(len(codes), np.int64)
    at = starts[:-1].copy()
    for row in range(len(codes)):
        code = codes[row]
        if code < 0:
            continue
        place = at[code]
        stop = starts[code + 1]
        limit = asked[row] - reach
        while place < stop and index[place] < limit:
            place += 1
        at[code] = place
        found[row] = place
    return found
