"""Scores on local Spark equal direct ones."""

import os
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl.serving import score_on_spark

pyspark = pytest.importorskip("pyspark", reason="needs the extra spark")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Spark's own
]


@pytest.fixture(scope="module")
def spark():
    from pyspark.sql import SparkSession

    root = str(Path(__file__).resolve().parents[3])
    before = dict(os.environ)
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": root}
    made = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "250")
        .config("spark.sql.files.maxPartitionBytes", "1")
        .getOrCreate()
    )
    yield made
    made.stop()
    os.environ.clear()
    os.environ |= before


def _in_batches(scorer, table, sizes):
    """Score the partitions of these sizes in batches of 250."""
    found, start = [], 0
    for size in sizes:
        part = table.slice(start, size)
        found += [scorer.score(part.slice(row, 250)) for row in range(0, size, 250)]
        start += size
    return pl.concat(found)


def test_two_workers_score_as_one_process(spark, scorer, table, tmp_path):
    pairs = spark.createDataFrame(table.to_arrow(compat_level=pl.CompatLevel.oldest()))
    pairs = pairs.repartition(2)
    table = pl.from_arrow(pairs.toArrow())
    found = score_on_spark(scorer, pairs).toArrow()
    assert isinstance(found, pa.Table)
    frame = pl.from_arrow(found)
    key = ["user_id", "item_id"]
    assert frame.select(key).equals(table.select(key))
    # products of other shapes round in another way: compared at the batches of the workers
    sizes = pairs.rdd.glom().map(len).collect()
    direct = _in_batches(scorer, table, sizes)
    for name in direct.columns:
        if name in key:
            continue
        assert frame[name].dtype == pl.Float32
        assert frame[name].equals(direct[name])


def test_a_side_table_goes_to_every_worker(spark, scorer, table):
    users = table.select("user_id").unique()
    pairs = table.to_arrow(compat_level=pl.CompatLevel.oldest())
    found = score_on_spark(scorer, spark.createDataFrame(pairs), users=users).toArrow()
    gap = pl.from_arrow(found)["ctr"] - scorer.score(table)["ctr"]
    assert gap.abs().max() < 1e-6
