"""Ray and Spark on two local workers against two processes of our own, start-up included.

Work: one folder of parquet files, each scored to a parquet file; MMoE as in ``benchmarks/star.py``, 20
categorical columns and 8 numbers. Each engine is started and stopped anew. Usage:
``python benchmarks/clusters.py --rows 5000000``; needs the extras ray and spark for those engines.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks.measure import optional, print_machine, print_table
from benchmarks.star import fitted, schema, tables
from benchmarks.workers import ROOT
from recsys_mtl import score_parquet
from recsys_mtl.reading import scan
from recsys_mtl.serving import Scorer, score_on_ray, score_on_spark

FILES = 8
BAR = 1.4
Engine = Callable[[Scorer, Path, Path], None]

_SCORER: list[Scorer] = []


def _take(scorer: Scorer) -> None:
    torch.set_num_threads(1)
    _SCORER.append(scorer)


def _score_file(source: str, target: str) -> int:
    return score_parquet(_SCORER[0], source, target).rows_out


def own_pool(scorer: Scorer, source: Path, target: Path) -> None:
    """Score with two spawned processes, a file at a time."""
    files = sorted(source.glob("*.parquet"))
    with ProcessPoolExecutor(2, get_context("spawn"), _take, (scorer,)) as pool:
        list(pool.map(_score_file, map(str, files), [str(target / one.name) for one in files]))


def on_ray(scorer: Scorer, source: Path, target: Path) -> None:
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    score_on_ray(scorer, ray.data.read_parquet(str(source))).write_parquet(str(target))
    ray.shutdown()


def on_spark(scorer: Scorer, source: Path, target: Path) -> None:
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "4g")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "131072")
        .getOrCreate()
    )
    score_on_spark(scorer, spark.read.parquet(str(source))).write.parquet(str(target / "out"))
    spark.stop()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args(arguments)
    os.environ["PYTHONPATH"] = str(ROOT)  # for the workers
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    print_machine("torch", "polars")
    engines: dict[str, Engine] = {"two processes": own_pool}
    if optional("ray", "Ray") is not None:
        engines["Ray, 2 actors"] = on_ray
    if optional("pyspark", "Spark") is not None:
        engines["Spark, local[2]"] = on_spark
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "pairs"
        source.mkdir()
        scorer = _prepare(args.rows, source)
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(args.rounds):
            for name, engine in engines.items():
                target = Path(folder) / f"{number} {name.split(',')[0]}"
                target.mkdir()
                start = time.perf_counter()
                engine(scorer, source, target)
                taken[name].append(time.perf_counter() - start)
                written = pl.scan_parquet(target / "**/*.parquet").select(pl.len()).collect()
                if written.item() != args.rows:
                    raise RuntimeError(f"{name} wrote {written.item():,} of {args.rows:,} rows.")
    own = min(taken["two processes"])
    rows = [
        [name, f"{min(found):.1f}", f"{args.rows / min(found):,.0f}", f"{min(found) / own:.2f}"]
        for name, found in taken.items()
    ]
    title = (
        f"{args.rows:,} rows in {FILES} files, start-up included (bar for Ray: {BAR} x the time)"
    )
    print_table(title, ["engine", "s", "rows/s", "x the time"], rows)


def _prepare(num_rows: int, source: Path) -> Scorer:
    """Write the pairs, joined with users and items, and return a scorer."""
    pairs, users, items = tables(num_rows)
    each = -(-num_rows // FILES)
    for number in range(FILES):
        piece = pairs.slice(number * each, each)
        piece = piece.join(users, on="user_id", how="left", maintain_order="left")
        piece = piece.join(items, on="item_id", how="left", maintain_order="left")
        piece.write_parquet(source / f"{number}.parquet")
    return fitted(scan(source), schema())


if __name__ == "__main__":
    main()
