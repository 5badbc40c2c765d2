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

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import polars as pl
import pyarrow as pa

from recsys_mtl.serving.batches import BatchScorer, side_frame
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.run import ScoreOptions
from recsys_mtl.serving.scorer import Scorer

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def score_on_spark(
    scorer: Scorer,
    pairs: DataFrame,
    *,
    users: Any = None,
    items: Any = None,
    keep: Sequence[str] = (),
    fuse: Mapping[str, float] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
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
        whole and encodes them once in a task.
    keep, fuse, precision
        As in `score_parquet`.

    Returns
    -------
    pyspark.sql.DataFrame
        The ids, columns carried along and a named column per score.

    Raises
    ------
    SchemaError
        If the schema has features of earlier rows, or a column would have a name twice.
    """
    options = ScoreOptions(
        keep=keep, fuse=None if fuse is None else Fusion(dict(fuse)), precision=precision
    )
    known = BatchScorer(scorer, options)
    from pyspark.sql.pandas.types import to_arrow_schema
    from pyspark.sql.types import ArrayType, DataType, FloatType, StructField, StructType

    fields = [pairs.schema[name] for name in known.columns]
    for name in known.names:
        several = isinstance(scorer.score_types.get(name), pl.Array)
        type_: DataType = ArrayType(FloatType()) if several else FloatType()
        fields.append(StructField(name, type_))
    result = StructType(fields)
    sides = {"users": side_frame(users), "items": side_frame(items)}
    sent = pairs.sparkSession.sparkContext.broadcast((scorer, options, sides))
    types = to_arrow_schema(result)

    def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        taken, how, tables = sent.value
        run = BatchScorer(taken, how, **tables)
        for batch in batches:
            yield from run(pa.Table.from_batches([batch])).cast(types).to_batches()

    return pairs.mapInArrow(score, result)
