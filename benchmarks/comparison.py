"""Training against torch-rechub and deepctr-torch: the same rows, a process each, rounds in turn.

The model is PERFORMANCE's: MMoE of 8 experts [256, 128], towers [64], vectors of 16, batches of 4096,
20 id columns, 8 numbers, 3 tasks. Peers run as they are documented, in an environment of their own
that the first run makes. Bars are for ratios of CPU time, which other work on the machine distorts
less than the clock; with ``--threads 2``, which wants idle cores, for the clock. Usage: ``make bench``
for speed and memory on 16 batches; ``make bench-peers`` for 1,000,000 rows from parquet to AUC, which
takes long.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks import peer_table
from benchmarks.contenders.worker import BATCH, BINARY_LABELS, Job
from benchmarks.measure import Timing, print_machine, print_table, second_core, times_faster
from benchmarks.workers import ROOT, Worker, peers_python, started, take_turns

OURS, HALF, LOOKING = "recsys_mtl", "recsys_mtl, bfloat16", "recsys_mtl, with its looks"
COMPILED = "recsys_mtl, bfloat16, compiled"
RECHUB, DEEPCTR = "torch-rechub", "deepctr-torch"
PRODUCTS = "fp32 matrix products alone"
HALF_PRODUCTS = "bf16 matrix products alone"
COMPILE = {"precision": "bfloat16", "compile": True}
NO_LOOKS = {"observe_every": 0}  # a look, four an epoch, costs a few backward passes
ROWS, QUALITY_ROWS = 16 * BATCH, 100_000
TEST_SHARE, LEAST_TEST = 0.2, 50_000
SIZE_STEPS, SIZE_ROUNDS = 12, 3
SMALL, LARGE = 1_000_000, 10_000_000

FASTER = {
    (OURS, RECHUB): 1.9,
    (HALF, RECHUB): 3.5,
    (HALF, DEEPCTR): 2.2,
    (COMPILED, RECHUB): 7.0,
}
GEMM_SHARES = {OURS: 0.60, COMPILED: 0.50}
RAW_FASTER, MEMORY_SHARE, GROWTH = 5.0, 0.7, 1.2
AUC_MARGIN = 0.002
MEMORY_HEADER = ("peak MB", f"of {RECHUB}", "bar")


@dataclass(frozen=True)
class Setup:
    """What all parts of the comparison share: the rows, and who can run."""

    folder: Path
    job: Job
    peers: Path | None

    def workers(self, stack: ExitStack, wanted: Mapping[str, tuple[str, Job]]) -> dict[str, Worker]:
        """Start workers, scripts and jobs by name; they end with the stack."""
        workers: dict[str, Worker] = {}
        for name, (script, job) in wanted.items():
            ours = script in {"ours.py", "products.py"}
            python = Path(sys.executable) if ours else self.peers
            if python is not None:
                workers[name] = stack.enter_context(Worker(python, script, job))
        return started(workers)


def main() -> None:
    options = _options()
    print_machine("torch", "polars", "numpy")
    if not _has_amx():
        print("no AMX here: the bars of bfloat16 are meant for CPUs that have it")
    print(f"torch threads of each contender: {options.threads}")
    peers = peers_python(options.peers_venv.resolve())
    with tempfile.TemporaryDirectory() as name:
        setup = Setup(Path(name), _write(Path(name), options), peers)
        if not options.quality:
            _speed(setup, options.rows, options.rounds)
            _table_size(setup)
        _from_parquet(setup, options.rows, options.seeds, judged=options.quality)
    print(f"second core right after: {second_core(rounds=1):.2f} (idle: 2.0)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare training with peers.")
    parser.add_argument("--rows", type=int, help="training rows")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each that are timed")
    parser.add_argument("--seeds", type=int, default=3, help="models of each, from parquet")
    parser.add_argument("--threads", type=int, default=1, help="of each contender")
    parser.add_argument("--quality", action="store_true", help="from parquet alone, with AUC")
    parser.add_argument(
        "--peers-venv",
        type=Path,
        default=ROOT / "build" / "peers-venv",
        help="environment of peers",
    )
    options = parser.parse_args()
    if options.rows is None:
        options.rows = QUALITY_ROWS if options.quality else ROWS
    return options


def _write(folder: Path, options: argparse.Namespace) -> Job:
    """Write the rows that all contenders read."""
    num_test = max(LEAST_TEST, int(TEST_SHARE * options.rows))
    rows = peer_table.impressions(options.rows + num_test)
    train, test = rows.head(options.rows), rows.tail(num_test)
    oracle = pl.selectors.starts_with("oracle_")
    train.drop(oracle).write_parquet(folder / "train.parquet")
    rows.head(SIZE_STEPS * BATCH).drop(oracle).write_parquet(folder / "few.parquet")
    test.write_parquet(folder / "test.parquet")
    print(f"{options.rows:,} rows to train on, {num_test:,} held out")
    return Job(str(folder / "train.parquet"), str(folder / "test.parquet"), options.threads)


def _speed(setup: Setup, num_rows: int, rounds: int) -> None:
    """Compare epochs over prepared rows, and the memory of those who made them."""
    job = setup.job
    wanted = {
        OURS: ("ours.py", replace(job, options=NO_LOOKS)),
        HALF: ("ours.py", replace(job, options=NO_LOOKS | {"precision": "bfloat16"})),
        COMPILED: ("ours.py", replace(job, options=NO_LOOKS | COMPILE)),
        LOOKING: ("ours.py", job),
        RECHUB: ("rechub.py", job),
        DEEPCTR: ("deepctr.py", job),
        PRODUCTS: ("products.py", job),
        HALF_PRODUCTS: ("products.py", replace(job, options={"precision": "bfloat16"})),
    }
    with ExitStack() as stack:
        workers = setup.workers(stack, wanted)
        for worker in workers.values():
            worker.ask("prepare")
        timings = take_turns(workers, [{"do": "epoch"}] * (rounds + 1), warm=1)
        peaks = {name: worker.peak_mb for name, worker in workers.items() if "products" not in name}
    title = f"training, batch {BATCH}, median of {rounds} epochs"
    _print_speed(title, timings, num_rows, clock=_by_clock(job))
    _print_memory(peaks)


def _by_clock(job: Job) -> bool:
    return job.threads is not None and job.threads > 1


def _print_speed(title: str, timings: Mapping[str, Timing], num_rows: int, *, clock: bool) -> None:
    rows = []
    for name, found in timings.items():
        row = [name, f"{num_rows / found.wall_median:,.0f}", f"{num_rows / found.cpu_median:,.0f}"]
        for peer in (RECHUB, DEEPCTR):
            row += _ratios(found, timings.get(peer), FASTER.get((name, peer)), clock=clock)
        products = HALF_PRODUCTS if "bf" in name else PRODUCTS
        alone = timings[products]
        by_clock, by_cpu = (
            times_faster(found.wall, alone.wall),
            times_faster(found.cpu, alone.cpu),
        )
        share = by_clock if clock else by_cpu
        row += [f"{share:.2f}", _verdict(share, GEMM_SHARES.get(name))]
        rows.append(row)
    header = ["contender", "rows/s", "per CPU s"]
    for peer in (RECHUB, DEEPCTR):
        header += [f"x {peer}", "x CPU", "bar"]
    print_table(title, [*header, "of its products", "bar"], rows)


def _ratios(ours: Timing, peer: Timing | None, bar: float | None, *, clock: bool) -> list[str]:
    """Return how much faster we are on the clock and by CPU time, and whether the bar is kept."""
    if peer is None:
        return ["-", "-", ""]
    by_clock, by_cpu = times_faster(ours.wall, peer.wall), times_faster(ours.cpu, peer.cpu)
    return [f"{by_clock:.2f}", f"{by_cpu:.2f}", _verdict(by_clock if clock else by_cpu, bar)]


def _print_memory(peaks: Mapping[str, float]) -> None:
    rows = [[name, *_memory(name, peaks)] for name in peaks]
    title = "peak resident memory, imports and preparation included"
    print_table(title, ["contender", *MEMORY_HEADER], rows)


def _table_size(setup: Setup) -> None:
    """Compare epochs whose largest table is declared ten times larger; the data are the same."""
    few = replace(setup.job, train=str(setup.folder / "few.parquet"))
    jobs = {
        OURS: ("ours.py", replace(few, options=NO_LOOKS)),
        RECHUB: ("rechub.py", few),
    }
    rows = []
    for name, (script, job) in jobs.items():
        wanted = {
            f"{name}, {size:,}": (script, replace(job, largest=size)) for size in (SMALL, LARGE)
        }
        with ExitStack() as stack:
            workers = setup.workers(stack, wanted)
            if len(workers) < len(wanted):
                continue
            for worker in workers.values():
                worker.ask("prepare")
            timings = take_turns(workers, [{"do": "epoch"}] * (SIZE_ROUNDS + 1), warm=1)
            small, large = timings.values()
            peak = list(workers.values())[-1].peak_mb
        growth = times_faster(small.cpu, large.cpu)
        milliseconds = [f"{1e3 * one.cpu_median / SIZE_STEPS:.0f}" for one in (small, large)]
        bar = GROWTH if name == OURS else None
        rows.append(
            [name, *milliseconds, f"{growth:.2f}", _verdict(growth, bar, most=True), f"{peak:,.0f}"]
        )
    header = ["contender", "1M: CPU ms a step", "10M", "10M / 1M", "bar", "MB at 10M"]
    title = f"epochs of {SIZE_STEPS} steps by the rows declared for the largest table"
    print_table(title, header, rows)


def _from_parquet(setup: Setup, num_rows: int, num_seeds: int, *, judged: bool) -> None:
    """Compare the way from a parquet file to a trained epoch, and how well the models rank then."""
    job = setup.job
    half = {"precision": "bfloat16"}
    wanted = {
        OURS: ("ours.py", job),
        HALF: ("ours.py", replace(job, options=half)),
        RECHUB: ("rechub.py", job),
        DEEPCTR: ("deepctr.py", job),
    }
    timings = {name: Timing() for name in wanted}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in wanted}
    peaks: dict[str, float] = {}
    with ExitStack() as stack:
        workers = setup.workers(stack, wanted)
        for seed in range(num_seeds):
            for name, worker in workers.items():
                took = take_turns({name: worker}, [{"do": "raw", "seed": seed}], warm=0)[name]
                timings[name].wall += took.wall
                timings[name].cpu += took.cpu
                peaks.setdefault(name, worker.peak_mb)
                if judged:
                    found[name].append(worker.ask("judge")["result"])
    timings = {name: timings[name] for name in workers}
    title = f"parquet to a trained epoch of {num_rows:,} rows"
    _print_raw(title, timings, peaks, clock=_by_clock(job))
    if judged:
        _print_auc({name: found[name] for name in workers}, job)


def _print_raw(
    title: str, timings: Mapping[str, Timing], peaks: Mapping[str, float], *, clock: bool
) -> None:
    rows = []
    for name, one in timings.items():
        ours = name in {OURS, HALF}
        row = [name, f"{one.wall_median:.2f}", f"{one.cpu_median:.2f}"]
        row += _ratios(one, timings.get(RECHUB), RAW_FASTER if ours else None, clock=clock)
        rows.append([*row, *_memory(name, peaks)])
    header = ["contender", "s", "CPU s", f"x {RECHUB}", "x CPU", "bar"]
    print_table(title, [*header, *MEMORY_HEADER], rows)


def _memory(name: str, peaks: Mapping[str, float]) -> list[str]:
    share = peaks[name] / peaks[RECHUB] if RECHUB in peaks else None
    bar = MEMORY_SHARE if name in {OURS, HALF} else None
    shown = "-" if share is None else f"{share:.2f}"
    return [f"{peaks[name]:,.0f}", shown, _verdict(share, bar, most=True)]


def _print_auc(found: Mapping[str, Sequence[dict[str, float]]], job: Job) -> None:
    test = pl.read_parquet(job.test)
    rows = []
    for label in BINARY_LABELS:
        best = float(roc_auc_score(test[label], test[f"oracle_{label}"]))
        rows.append([label, "oracle", f"{best:.4f}", "", "", ""])
        peer = [one[label] for one in found.get(RECHUB, ())]
        for name, judged in found.items():
            values = [one[label] for one in judged]
            mean = statistics.fmean(values)
            lead = mean - statistics.fmean(peer) if peer else None
            bar = -AUC_MARGIN if name in {OURS, HALF} else None
            spread = f"{min(values):.4f} to {max(values):.4f}"
            ahead = "-" if lead is None else f"{lead:+.4f}"
            rows.append([label, name, f"{mean:.4f}", spread, ahead, _verdict(lead, bar)])
    count = max(len(judged) for judged in found.values())
    header = ["label", "contender", "AUC", "range", f"ahead of {RECHUB}", "bar"]
    print_table(f"AUC on rows held out, mean of {count} seeds", header, rows)


def _verdict(value: float | None, bar: float | None, *, most: bool = False) -> str:
    """Return the bar and whether the value keeps it."""
    if value is None or bar is None:
        return ""
    kept = value <= bar if most else value >= bar
    return f"{'<=' if most else '>='} {bar:g}: {'met' if kept else 'MISSED'}"


def _has_amx() -> bool:
    place = Path("/proc/cpuinfo")
    return place.exists() and "amx_bf16" in place.read_text()


if __name__ == "__main__":
    main()
