"""Scorer: any table in, the ids and one named column per task out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import torch

from recsys_mtl.encoding import Batch, Encoder, absent_notes
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.network import MultiTaskModel, RowTensors
from recsys_mtl.reading import AsOfState, Rows, scan
from recsys_mtl.recall import narrowed
from recsys_mtl.schema import Multiclass, Schema
from recsys_mtl.serving.forward import Forward, Precision

_log = logging.getLogger(__name__)

CHUNK_ROWS = 1 << 17
"""Rows read and encoded at once: memory is bounded by it, not by the table."""


class Scorer:
    """Score rows with a trained model.

    Parameters
    ----------
    schema
        What the columns mean.
    encoder
        Fitted.
    model
        Trained.
    as_of
        What is known of earlier rows, if the schema has features of them.
    """

    def __init__(
        self,
        schema: Schema,
        encoder: Encoder,
        model: MultiTaskModel,
        as_of: AsOfState | None = None,
    ) -> None:
        self.schema = schema
        self.as_of = as_of
        self.encoder = encoder
        self.model = model.eval()
        self.device = next(model.parameters()).device
        self._columns = [(task.name, _dtype(task)) for task in schema.tasks]
        self._columns += [(name, pl.Float32()) for name in model.outputs.joints]

    def score(self, rows: Any) -> Any:
        """Return a table of the input's kind: the id columns as they came, a column per task.

        Any number of threads may call it at the same time.

        Rows keep their order and number. A binary task's column is a probability, a regression's a
        value on the label's scale, a multiclass one's a list with a probability per class. Joint
        probabilities that tasks name follow in columns of their own.
        """
        opened = scan(rows)
        return opened.restore(pl.concat(list(self.frames(opened))))

    def frames(self, rows: Any, *, chunk_rows: int = CHUNK_ROWS) -> Iterator[pl.DataFrame]:
        """Score in order, `chunk_rows` at a time; an empty table gives one empty frame.

        Rows whose user or item the side table lacks are scored, counted, and logged as a warning.
        Features of earlier rows are computed first, for all rows at once: their columns are then held
        in memory whole.
        """
        absent: Counter[str] = Counter()
        forward = self.forward()
        for batch in self.encoder.batches(self.recalled(rows), chunk_rows=chunk_rows):
            absent.update(batch.absent)
            yield pl.DataFrame([*batch.keys.get_columns(), *self.scores(batch, forward)])
        for note in absent_notes(absent):
            _log.warning("%s", note)

    def labelled(self, rows: Any) -> tuple[Batch, RowTensors]:
        """Encode rows with their labels, to be measured.

        Raises
        ------
        EncodingError
            If there are no rows, or they contradict the schema.
        """
        batch = self.encoder.encode(self.recalled(rows))
        if batch.num_rows == 0:
            raise EncodingError(
                "The interactions must hold rows to evaluate. Found an empty table."
            )
        return batch, RowTensors(batch, self.device)

    def recalled(self, rows: Any, *, keep: Sequence[str] = ()) -> Rows:
        """Open rows, with the features of earlier rows where the schema has any.

        Parameters
        ----------
        rows
            As in `score`.
        keep
            Columns to keep beside those that the schema names.
        """
        opened = scan(rows)
        if self.as_of is None:
            return opened
        found: Rows = self.as_of.apply(narrowed(opened, self.schema, keep))
        return found

    def forward(
        self,
        *,
        precision: Precision = "float32",
        num_pairs: int | None = None,
        num_threads: int | None = None,
    ) -> Forward:
        """Return what scores the batches of one run; the arguments are those of `Forward`."""
        return Forward(
            self.model,
            precision=precision,
            parts=self.parts,
            num_pairs=num_pairs,
            num_threads=num_threads,
        )

    def scores(self, batch: Batch, forward: Forward) -> list[pl.Series]:
        """Score encoded rows; return the columns that `score` adds to the ids."""
        found = forward.start(batch).scores()
        return [
            pl.Series(name, one.to(torch.float32).numpy(), dtype)
            for (name, dtype), one in zip(self._columns, found, strict=True)
        ]

    @property
    def parts(self) -> list[list[str]]:
        """Names of the features of each part of a batch."""
        schema = self.schema
        parts = [side.features for side in (schema.user, schema.item) if side is not None]
        parts += [schema.context] if schema.context else []
        return [[feature.name for feature in part] for part in parts]

    @property
    def score_types(self) -> dict[str, pl.DataType]:
        """Names and types of the score columns."""
        return dict(self._columns)


def check_rows_alone(scorer: Scorer, way: str) -> None:
    """Refuse features of earlier rows where rows are scored without those before them.

    Parameters
    ----------
    scorer
        A fitted model's.
    way
        Where they would be, for the error.

    Raises
    ------
    SchemaError
        If the schema has such features.
    """
    if scorer.schema.computed:
        name = scorer.schema.computed[0].name
        raise SchemaError(
            f"Feature {name!r} is computed from earlier rows, which {way} does not do yet. Score a day's"
            " rows by score_parquet or predict, which see all of them at once."
        )


def _dtype(task: object) -> pl.DataType:
    if isinstance(task, Multiclass):
        return pl.Array(pl.Float32(), task.num_classes)
    return pl.Float32()
