"""Tables of users and items while interactions that refer to them are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recsys_mtl.encoding.batch import Block
from recsys_mtl.encoding.keys import ABSENT, KeyIndex
from recsys_mtl.encoding.learning import Sample
from recsys_mtl.schema import Side


@dataclass(frozen=True)
class EncodedSide:
    """A side table as it is, its keys, and its rows encoded."""

    frame: pl.DataFrame
    index: KeyIndex
    block: Block


class UsedSide:
    """A side table, and how many interactions refer to each of its rows.

    Parameters
    ----------
    side
        What its columns mean.
    frame
        The table.
    """

    def __init__(self, side: Side, frame: pl.DataFrame) -> None:
        self.features = side.features
        self._frame, self._index = frame, KeyIndex(frame[side.key])
        self._uses = np.zeros(frame.height, np.int64)

    def count(self, keys: pl.Series) -> pl.DataFrame:
        """Count the rows that keys refer to; return rows for those that the table lacks."""
        places = self._index.locate(keys)
        found = places != ABSENT
        self._uses += np.bincount(places[found], minlength=self._frame.height)
        return only_keys(self._frame, keys.filter(~found))

    def sample(self) -> Sample:
        """Return the rows that are used."""
        return Sample(self._frame.filter(self._uses > 0), self._uses[self._uses > 0])


def only_keys(known: pl.DataFrame, keys: pl.Series) -> pl.DataFrame:
    """Return rows for keys that the side table lacks: the key itself, all else null."""
    frame = known.clear(keys.len())
    return frame.with_columns(keys)
