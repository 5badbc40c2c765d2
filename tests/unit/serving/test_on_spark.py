"""Scores on local Spark equal direct ones."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

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
        SparkSession.builder.master("local[2, 4]")  # a task may fail three times
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
    given = {"users": users, "keep": ["click"], "fuse": {"ctr": 2.0}}
    found = pl.from_arrow(score_on_spark(scorer, spark.createDataFrame(pairs), **given).toArrow())
    assert found.columns == ["user_id", "item_id", "click", "ctr", "fused"]
    assert found["click"].equals(table["click"])
    gap = found["ctr"] - scorer.score(table)["ctr"]
    assert gap.abs().max() < 1e-6
    assert (found["fused"] - 2 * found["ctr"].log()).abs().max() < 1e-5


def _python_workers():
    """Processes that Spark's daemon has forked to run Python, below this one."""
    titles, parents = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            titles[int(entry.name)] = (entry / "cmdline").read_bytes()
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            parents[int(entry.name)] = int(status[1])
    daemons = {pid for pid, title in titles.items() if b"pyspark.daemon" in title}
    return [pid for pid in daemons if parents[pid] in daemons]


def test_a_run_with_a_killed_worker_gives_all_rows_once(spark, scorer, table, tmp_path):
    wide = pl.concat([table] * 40).with_row_index("number")
    wide = wide.with_columns(item_id=pl.col("number").cast(pl.Int64)).drop("number")
    pairs = spark.createDataFrame(wide.to_arrow(compat_level=pl.CompatLevel.oldest()))
    scored = score_on_spark(scorer, pairs.repartition(20))
    killed = []

    def late(batches):
        for batch in batches:
            time.sleep(0.1)
            yield batch

    def kill():
        while not killed:
            time.sleep(0.5)
            for pid in _python_workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    killer = Thread(target=kill, daemon=True)
    killer.start()
    scored.mapInArrow(late, scored.schema).write.parquet(str(tmp_path / "scores"))
    killer.join(5)
    assert killed
    found = pl.read_parquet(tmp_path / "scores" / "*.parquet").sort("item_id")
    assert found["item_id"].equals(wide["item_id"])
    assert found["user_id"].equals(wide["user_id"])
    assert found["ctr"].null_count() == 0
