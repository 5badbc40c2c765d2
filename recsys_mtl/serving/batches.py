"""Batches: Arrow tables of one run scored one after the other, as a worker of a cluster gets them."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_mtl.encoding.sides import EncodedSide
from recsys_mtl.reading import require, scan
from recsys_mtl.serving.run import ScoreOptions, score_names, score_table
from recsys_mtl.serving.scorer import CHUNK_ROWS, Scorer, check_rows_alone
from recsys_mtl.tables import lazy_frame


class BatchScorer:
    """Score batches: a batch's scores depend neither on those before it nor on the worker.

    Side tables are read and encoded with the first batch, and the first layer's part of a user or item
    is computed when a batch first refers to it. One thread at a time may call it.

    Parameters
    ----------
    scorer
        A fitted model's.
    options
        What is written, and how it is computed.
    users, items
        Side tables, if they are kept apart.

    Raises
    ------
    SchemaError
        If the schema has features of earlier rows, or a column of the result would have a name twice.
    """

    def __init__(
        self, scorer: Scorer, options: ScoreOptions, *, users: Any = None, items: Any = None
    ) -> None:
        check_rows_alone(scorer, "a cluster, which scores batches of rows apart,")
        self.names = score_names(scorer, options)
        self._scorer, self._options = scorer, options
        self._users, self._items = users, items
        self._sides: dict[str, EncodedSide] = {}
        # However long the run is: with a length, nothing depends on the batches before.
        self._forward = scorer.forward(precision=options.precision, num_pairs=sys.maxsize)

    @property
    def columns(self) -> list[str]:
        """Columns of a batch that the result carries along: the ids first."""
        return list(dict.fromkeys((*self._scorer.schema.keys, *self._options.keep)))

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return ids, carried columns and scores.

        Probabilities of classes are lists, which every engine knows.
        """
        require(batch.column_names, self.columns, "interactions")
        rows = scan(batch, users=self._users, items=self._items)
        encoded = self._scorer.encoder.batches(rows, chunk_rows=CHUNK_ROWS, sides=self._sides)
        chunks = [self._forward.start(chunk).scores() for chunk in encoded]
        found = [np.concatenate([one.numpy() for one in of]) for of in zip(*chunks, strict=True)]
        kept = rows.interactions.select(self.columns).collect()
        return _with_lists(score_table(kept, found, self.names, self._options))


def side_frame(table: Any) -> pl.DataFrame | None:
    """Read a side table into memory, if there is one."""
    return None if table is None else lazy_frame(table, what="side table").collect()


def _with_lists(table: pa.Table) -> pa.Table:
    for place, field in enumerate(table.schema):
        if pa.types.is_fixed_size_list(field.type):
            lists = table.column(place).cast(pa.list_(field.type.value_type))
            table = table.set_column(place, field.name, lists)
    return table
