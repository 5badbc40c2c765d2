"""Batch scoring: the network, the way from parquet to parquet, and others, a row of one table each.

The model is PERFORMANCE's: MMoE of 8 experts [256, 128], towers [64], vectors of 16, 20 id columns, 8
numbers, 3 tasks, trained for a moment. Ratios are medians over rounds in turn, on the clock; those of CPU
time stand beside them. Usage: ``python benchmarks/scoring.py``; ``--memory`` alone checks 20,000,000 rows
under a budget of 2 GiB, which takes long. Ray and Spark: ``benchmarks/clusters.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from pyarrow import parquet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks import star, table
from benchmarks.contenders.worker import (
    BATCH,
    DIM,
    EXPERT_DIMS,
    NUM_EXPERTS,
    TOWER_DIM,
    Job,
)
from benchmarks.measure import Timing, interleave, print_machine, print_table, times_faster
from benchmarks.training import Products
from benchmarks.workers import ROOT, Worker, peers_python, started, take_turns
from recsys_mtl import MMoE, MultiTaskRanker, Towers, score_parquet
from recsys_mtl.encoding import Batch
from recsys_mtl.network.model import SCORE_ROWS
from recsys_mtl.reading import scan
from recsys_mtl.serving import Forward, Scorer
from recsys_mtl.serving.scorer import CHUNK_ROWS
from recsys_mtl.serving.writing import GROUP_ROWS

TRAIN_ROWS = 32 * BATCH
PEER_ROWS = 100_000
WORKER_FILES = 4
BUDGET_MIB = 2048
DRAWN = 1 << 20
LARGE, LARGE_TIMES = 2048, 4
KEEP = ["id_18", "id_19"]
PEER = "torch-rechub"
NUMBER = "row_number"


@dataclass(frozen=True)
class Found:
    """One row of the table.

    Parameters
    ----------
    work
        What is compared with what.
    rows
        How many rows ours scored in a run.
    ours, other
        Seconds.
    per
        The other's work in units of ours.
    bar
        How many times faster ours has to be.
    note
        What else should be known.
    """

    work: str
    rows: int
    ours: Timing
    other: Timing
    bar: float
    per: float = 1.0
    note: str = ""

    def cells(self) -> list[str]:
        """Return what the table shows."""
        clock = times_faster(self.ours.wall, self.other.wall, per=self.per)
        cpu = "-"
        if self.ours.cpu:
            cpu = f"{times_faster(self.ours.cpu, self.other.cpu, per=self.per):.2f}"
        return [
            self.work,
            f"{self.rows:,}",
            f"{self.rows / self.ours.wall_median:,.0f}",
            f"{clock:.2f}",
            cpu,
            f">= {self.bar:g}",
            "met" if clock >= self.bar else "MISSED",
        ]


class Stage:
    """What all comparisons share: rows in a file, a model, its scorer and the rows encoded."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        self.file, self.model = folder / "rows.parquet", folder / "model"
        rows = table.impressions(args.rows)
        rows.write_parquet(self.file)
        self.ranker = MultiTaskRanker(
            table.schema(),
            sharing=MMoE(NUM_EXPERTS, expert_dims=EXPERT_DIMS),
            heads=Towers((TOWER_DIM,)),
            embedding_dim=DIM,
            batch_size=BATCH,
            max_epochs=1,
            device="cpu",
            progress=False,
            random_state=0,
        ).fit(rows.head(TRAIN_ROWS))
        self.ranker.save(self.model)

    @property
    def scorer(self) -> Scorer:
        """The model, ready to score."""
        return self.ranker.scorer

    def batches(self) -> list[Batch]:
        """Return the file's rows, encoded."""
        return list(self.scorer.encoder.batches(scan(self.file), chunk_rows=CHUNK_ROWS))

    def whole(self) -> None:
        """Score the file to a file."""
        target = self.folder / "scores.parquet"
        score_parquet(self.scorer, self.file, target, keep=KEEP)
        _forget(target)


def network(stage: Stage) -> Iterator[Found]:
    """Compare the network with bare products, half precision with it, and it with the whole way."""
    count, scorer, batches = stage.args.rows, stage.scorer, stage.batches()
    single, half = scorer.forward(), scorer.forward(precision="bfloat16")
    threads, blocks = single.num_threads, -(-count // SCORE_ROWS)
    products = Products(scorer.model, SCORE_ROWS, training=False)
    factor, *made = (torch.randn(LARGE, LARGE) for _ in range(threads + 1))
    timings = interleave(
        {
            "products": _pooled(lambda _: products.run(), blocks, threads),
            "large": _pooled(
                lambda number: torch.mm(factor, factor, out=made[number % threads]),
                LARGE_TIMES * threads,
                threads,
            ),
            "network": lambda: _scores(single, batches),
            "half": lambda: _scores(half, batches),
            "whole": stage.whole,
        },
        rounds=stage.args.rounds,
    )
    own, flops = timings["network"], products.flops * count / SCORE_ROWS
    per = {
        "products": blocks * products.flops / flops,
        "large": LARGE_TIMES * threads * 2 * LARGE**3 / flops,
    }
    for name, what in (("products", "its products"), ("large", f"a product of {LARGE} x {LARGE}")):
        yield Found(f"network, of the FLOPs in {what}", count, own, timings[name], 0.55, per[name])
    note = f"rank correlation of a task's scores {_ranks(single, half, batches[0]):.6f} or more"
    yield Found("bfloat16, of float32", count, timings["half"], own, 1.8, note=note)
    yield Found("parquet to parquet, of network alone", count, timings["whole"], own, 0.85)


def _forget(target: Path) -> None:
    """Remove scores, so that the next run computes them."""
    target.with_name(f"{target.name}.manifest.json").unlink()
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()


def _pooled(run: Callable[[int], object], times: int, threads: int) -> Callable[[], object]:
    """Return what runs it so many times, by number, on threads that compute alone."""
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    return lambda: deque(pool.map(run, range(times)), maxlen=0)


def _scores(forward: Forward, batches: list[Batch]) -> list[list[torch.Tensor]]:
    return [one.scores() for one in [forward.start(batch) for batch in batches]]


def _ranks(single: Forward, half: Forward, batch: Batch) -> float:
    """Return the least rank correlation of a score between the two."""
    found = (one.start(batch).scores() for one in (single, half))
    frames = [pl.DataFrame([pl.Series(score.numpy().ravel()) for score in one]) for one in found]
    names = frames[0].columns
    both = pl.concat([frames[0], frames[1].rename(lambda name: f"half {name}")], how="horizontal")
    pairs = (pl.corr(name, f"half {name}", method="spearman").alias(name) for name in names)
    return float(min(both.select(pairs).row(0)))


def side_tables(stage: Stage) -> Iterator[Found]:
    """Compare pairs with side tables and the rows joined to them."""
    pairs = stage.args.pairs
    found = star.star_against_flat(pairs, rounds=stage.args.rounds)
    note = f"{star.USERS:,} users, {star.ITEMS:,} items; scores differ by {found.gap:.0e} at most"
    own = found.timings["star"], found.timings["flat"]
    yield Found("star input, of the flat table", pairs, *own, star.BAR, note=note)


def peer(stage: Stage) -> Iterator[Found]:
    """Compare with torch-rechub, each in a process, from a file on; ours writes one, it does not."""
    args = stage.args
    python = peers_python(args.peers_venv.resolve())
    if python is None:
        return
    some, rows = stage.folder / "some.parquet", min(args.rows, PEER_ROWS)
    pl.read_parquet(stage.file).head(rows).write_parquet(some)
    ours, given = Path(sys.executable), {"keep": KEEP}
    own = Job(str(stage.model), str(some), args.threads, given)
    half = replace(own, options=given | {"precision": "bfloat16"})
    its = replace(own, train=str(some))
    with ExitStack() as stack:
        workers = started(
            {
                "": stack.enter_context(Worker(ours, "ours_scores.py", own)),
                " in bfloat16": stack.enter_context(Worker(ours, "ours_scores.py", half)),
                PEER: stack.enter_context(Worker(python, "rechub_scores.py", its)),
            }
        )
        if PEER not in workers:
            return
        for worker in workers.values():
            worker.ask("prepare")
        request = {"do": "score", "output": str(stage.folder / "ours.parquet")}
        timings = take_turns(workers, [request] * (args.rounds + 1), warm=1)
    for name in ("", " in bfloat16"):
        yield Found(f"parquet to parquet{name}, of {PEER}", rows, timings[name], timings[PEER], 5)


def processes(stage: Stage) -> Iterator[Found]:
    """Compare two worker processes with one, start-up included: a part is scored by one process."""
    if stage.args.threads < 2:
        print("left out: two worker processes (they need two CPUs)")
        return
    rows = [pl.read_parquet(stage.file)] * WORKER_FILES
    pl.concat(rows).write_parquet(stage.folder / "more.parquet", row_group_size=1 << 15)
    count = WORKER_FILES * stage.args.rows

    def run(part_rows: int) -> None:
        target = stage.folder / "workers"
        source = stage.folder / "more.parquet"
        score_parquet(stage.model, source, target, part_rows=part_rows, workers=2, keep=KEEP)
        _forget(target)

    timings = interleave(
        {"one": lambda: run(count), "two": lambda: run(-(-count // 16))}, rounds=stage.args.rounds
    )
    # a worker's CPU time is not this process's
    one, two = (Timing(timings[name].wall) for name in ("one", "two"))
    yield Found("two worker processes, of one", count, two, one, 1.5, note="start-up included")


def memory(stage: Stage) -> None:
    """Score many rows within a budget; compare their keys with the input's, in order."""
    count = stage.args.memory
    source, target = stage.folder / "many.parquet", stage.folder / "many scores.parquet"
    _write_many(source, count)
    given = {"keep": [NUMBER, *KEEP], "memory_mib": BUDGET_MIB}
    job = Job(str(stage.model), str(source), stage.args.threads, given)
    with Worker(Path(sys.executable), "ours_scores.py", job) as worker:
        worker.wait_until_ready()
        worker.ask("prepare")
        answer = worker.ask("score", output=str(target))
    more, seconds = answer["result"]["more_mb"], answer["wall"]
    verdict = "met" if more <= BUDGET_MIB else "MISSED"
    print(
        f"\n{count:,} rows, memory_mib={BUDGET_MIB}: {seconds:.0f} s, {count / seconds:,.0f} rows/s"
    )
    print(f"peak RSS above that with the model loaded: {more:,.0f} MiB, <= {BUDGET_MIB}: {verdict}")
    wanted, written = _digest(source), _digest(target)
    verdict = "the same" if wanted == written else "MISSED"
    print(f"rows and hash of keys in order: read {wanted}, written {written}: {verdict}")


def _write_many(target: Path, count: int) -> None:
    """Write rows that have a number each; beyond `DRAWN` their other columns come again."""
    drawn = table.impressions(min(count, DRAWN)).to_arrow(compat_level=pl.CompatLevel.oldest())
    schema = drawn.schema.insert(0, pa.field(NUMBER, pa.int64()))
    with parquet.ParquetWriter(target, schema) as writer:
        for start in range(0, count, DRAWN):
            stop = min(start + DRAWN, count)
            numbers = pa.array(np.arange(start, stop))
            some = drawn.slice(0, stop - start).add_column(0, NUMBER, numbers)
            writer.write_table(some, row_group_size=GROUP_ROWS)


def _digest(file: Path) -> tuple[int, str]:
    """Count rows and hash their keys, in order."""
    rows, digest = 0, hashlib.sha256()
    with parquet.ParquetFile(file) as opened:
        for batch in opened.iter_batches(GROUP_ROWS, columns=[NUMBER, *KEEP]):
            hashes = pl.DataFrame(pa.Table.from_batches([batch])).hash_rows(seed=0)
            digest.update(hashes.to_numpy().tobytes())
            rows += batch.num_rows
    return rows, digest.hexdigest()[:16]


COMPARISONS: dict[str, Callable[[Stage], Iterator[Found]]] = {
    "network": network,
    "star": side_tables,
    "rechub": peer,
    "workers": processes,
}


def main() -> None:
    args = _options()
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cpus[: args.threads])  # workers inherit it
    torch.set_num_threads(args.threads)
    print_machine("torch", "polars", "pyarrow")
    print(f"threads for the network: {args.threads}")
    with tempfile.TemporaryDirectory() as name:
        stage = Stage(Path(name), args)
        if args.memory is not None:
            memory(stage)
            return
        found = [row for one in args.only for row in COMPARISONS[one](stage)]
    header = ["ours, of other", "rows", "rows/s", "x clock", "x CPU", "bar", ""]
    title = f"batch scoring, medians of {args.rounds} rounds"
    print_table(title, header, [one.cells() for one in found])
    for one in found:
        if one.note:
            print(f"{one.work}: {one.note}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare batch scoring.")
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--pairs", type=int, default=2_000_000, help="of the star")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="CPUs to use; by default all")
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument(
        "--memory",
        type=int,
        nargs="?",
        const=20_000_000,
        help="score so many rows under a budget, and nothing else",
    )
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=ROOT / "build" / "peers-venv",
        help="environment of peers",
    )
    args = parser.parse_args()
    available = len(os.sched_getaffinity(0))
    args.threads = min(args.threads or available, available)
    return args


if __name__ == "__main__":
    main()
