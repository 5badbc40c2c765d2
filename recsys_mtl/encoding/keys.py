"""Find keys of interactions in the tables of users and items beside them."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys_mtl.encoding.arrow import as_arrow
from recsys_mtl.encoding.kernels import NUM_RESERVED
from recsys_mtl.encoding.maps import count_distinct, hash_slots
from recsys_mtl.encoding.sources import Placement, Words, column_hashes, id_source, table_rows
from recsys_mtl.errors import EncodingError

ABSENT = -1
"""Row number of a user or item that its side table does not hold."""

_FLOAT_KEYS = 2**53
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_HASHED = (pl.String, pl.Binary, pl.Boolean, pl.Date)
_KEYS = Placement(0, empty_apart=False)


class KeyIndex:
    """Where each key stands in a side table.

    Keys are looked up by their 64-bit hash, so that a call costs its own keys and not the table. The
    hash of an integer is unique; two of n strings share one with a chance of n**2 / 2**65, and then
    the table is joined instead. A string that the table lacks is taken for one that it holds with a
    chance of n / 2**64.

    Parameters
    ----------
    table
        The side table's unique keys, without nulls.

    Examples
    --------
    >>> KeyIndex(pl.Series("user_id", [7, 3, 5])).locate(pl.Series("user_id", [3, 4])).tolist()
    [1, -1]
    """

    def __init__(self, table: pl.Series) -> None:
        if table.dtype in _TEXTS:
            table = table.cast(pl.String)
        elif table.dtype.is_float() and _is_whole(table):
            table = table.cast(pl.Int64)
        self._table = table

    def locate(self, keys: pl.Series) -> npt.NDArray[np.int64]:
        """Find each key's row in the side table.

        Parameters
        ----------
        keys
            Keys of the interactions, of length n; nulls are found nowhere.

        Returns
        -------
        ndarray of int64, shape (n,)
            Row numbers, `ABSENT` where the table lacks the key.

        Raises
        ------
        EncodingError
            If the keys are of another type than the table's. Integers of all widths are one type,
            and so are strings and categories. Floats are taken for the integers they hold, as
            pandas makes floats of integers with a null; NaN is null.
        """
        if pl.Null in (keys.dtype, self._table.dtype):
            return np.full(len(keys), ABSENT, dtype=np.int64)
        alike = self._alike(keys)
        slots = self._slots
        if slots is None:
            return self._join(alike)
        found = table_rows([id_source(as_arrow(alike), replace(_KEYS, slots=slots))])[:, 0]
        return np.where(found < NUM_RESERVED, ABSENT, found.astype(np.int64) - NUM_RESERVED)

    def _alike(self, keys: pl.Series) -> pl.Series:
        """Return the keys in the table's type, null where that type cannot hold them."""
        ours, theirs = self._table.dtype, keys.dtype
        if ours.is_integer() and theirs.is_float():
            keys = keys.fill_nan(None)
            if not _is_whole(keys):
                raise EncodingError(
                    f"Key {keys.name!r} must hold whole numbers below 2**53 to be found among the"
                    f" side table's {ours}. Found {_first_broken(keys)!r} in the interactions'"
                    f" {theirs}: cast it to an integer before it passes through a float."
                )
            return keys.cast(pl.Int64).cast(ours, strict=False)
        texts = ours == pl.String and theirs in _TEXTS
        if not (ours == theirs or texts or (ours.is_integer() and theirs.is_integer())):
            raise EncodingError(
                f"Key {keys.name!r} must have one type in all tables. The interactions hold {theirs},"
                f" the side table {ours}: cast one of them."
            )
        return keys.cast(ours, strict=False)

    @cached_property
    def _slots(self) -> Words | None:
        """The table's keys by hash; None where their type has none, or two keys share one."""
        if not (self._table.dtype.is_integer() or self._table.dtype in _HASHED):
            return None
        tokens = column_hashes(as_arrow(self._table), _KEYS, as_tokens=True)
        return hash_slots(tokens) if count_distinct(tokens) == len(tokens) else None

    def _join(self, keys: pl.Series) -> npt.NDArray[np.int64]:
        table = pl.DataFrame({"key": self._table}).with_row_index("row")
        joined = pl.DataFrame({"key": keys}).join(table, "key", "left", maintain_order="left")
        return joined["row"].cast(pl.Int64).fill_null(ABSENT).to_numpy(writable=True)


def _is_whole(column: pl.Series) -> bool:
    """Tell whether all known floats are integers that a float can hold exactly."""
    return bool(_whole(column).all())


def _first_broken(column: pl.Series) -> float:
    return float(column.filter(~_whole(column).fill_null(True))[0])


def _whole(column: pl.Series) -> pl.Series:
    # NaN and infinity are not below the bound, so they are not whole.
    return (column.abs() < _FLOAT_KEYS) & (column.floor() == column) & column.is_not_nan()
