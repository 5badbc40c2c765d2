"""Scores on Spark, by ``mapInArrow``.

What a team runs, by ``spark-submit`` or in a notebook::

    from recsys_mtl import load, score_on_spark

    scorer = load("model", device="cpu").scorer
    pairs = spark.read.parquet("s3://bucket/pairs/")
    score_on_spark(scorer, pairs).write.parquet("s3://bucket/scores/")

The model is broadcast: a Python worker takes it up once and keeps it for its later tasks. Raise
``spark.sql.execution.arrow.maxRecordsPerBatch`` to 131072: its 10,000 rows leave kernels little to
do at a time. Install with ``pip install "recsys_mtl[spark]"``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from recsys_mtl.serving.on_ray import score_arrow, side_frame
from recsys_mtl.serving.scorer import Scorer, check_rows_alone

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def score_on_spark(
    scorer: Scorer, pairs: DataFrame, *, users: Any = None, items: Any = None
) -> DataFrame:
    """Score a Spark frame, lazily; rows keep their order within a partition, and their ids.

    Parameters
    ----------
    scorer
        A fitted model's, on the CPU.
    pairs
        Interactions.
    users, items
        Side tables, if they are kept apart: any that `scan` takes, not Spark's. Every worker gets them
        whole.

    Returns
    -------
    pyspark.sql.DataFrame
        The ids and a column per task.

    Raises
    ------
    SchemaError
        If the schema has features of earlier rows.
    """
    check_rows_alone(scorer, "a cluster, which scores batches of rows apart,")
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import ArrayType, DataType, FloatType, StructField, StructType

    fields = [pairs.schema[key] for key in scorer.schema.keys]
    for name, kind in scorer.score_types.items():
        several = isinstance(kind, pl.Array)
        type_: DataType = ArrayType(FloatType()) if several else FloatType()
        fields.append(StructField(name, type_))
    result = StructType(fields)
    sides = [None if table is None else side_frame(table) for table in (users, items)]
    sent = pairs.sparkSession.sparkContext.broadcast((scorer, *sides))
    types = to_arrow_schema(result)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = score_arrow(sent.value[0], pa.Table.from_batches([batch]), *sent.value[1:])
            yield from found.cast(types).to_batches()

    return pairs.mapInArrow(score, result)
