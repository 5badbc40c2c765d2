"""Tables to matrices of table rows: from memory, from parquet, as a star; memory and start-up.

Usage: ``make bench``, or ``python benchmarks/encoding.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks import keys
from benchmarks.measure import (
    Contender,
    Race,
    interleave,
    optional,
    print_machine,
    print_race,
    print_table,
)
from recsys_mtl.encoding import Encoder, hash_table, warm
from recsys_mtl.reading import scan
from recsys_mtl.schema import Binary, Categorical, Schema, Side

ROWS = 1_000_000
TABLE = 1_000_003
ROUNDS = 7
PARQUET_GROUP = 122_880
USERS, ITEMS, INTERACTIONS = 24_000, 6_000, 1_000_000
SIDE_COLUMNS = 9
REQUESTS = 200


def main() -> None:
    print_machine("numba", "numpy", "pyarrow", "polars")
    warm()
    frame = keys.table(ROWS)
    _from_memory(frame)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        frame.write_parquet(path, compression="zstd", row_group_size=PARQUET_GROUP)
        _from_parquet(path, frame)
        _peak_memory(path)
    _star()
    _requests(frame)
    _first_call()


def _from_memory(frame: pl.DataFrame) -> None:
    out = np.empty(frame.shape, np.int32)
    race = Race(
        f"table of {ROWS:,} rows, {frame.width} columns -> int32 matrix, M rows",
        {
            "hash_table": Contender(lambda: hash_table(frame, num_rows=TABLE, num_threads=1), ROWS),
            "hash_table, 2 threads": Contender(
                lambda: hash_table(frame, num_rows=TABLE, num_threads=2), ROWS, "1.6x clock"
            ),
            "hash_table, out= used again": Contender(
                lambda: hash_table(frame, num_rows=TABLE, num_threads=1, out=out), ROWS
            ),
            "polars hash % n (no stable hash)": Contender(
                lambda: frame.select((pl.all().hash() % TABLE).cast(pl.Int32)).to_numpy(order="c"),
                ROWS,
                "1.05x, aim 1.4x",
            ),
        },
        bytes_moved=int(frame.estimated_size()) + out.nbytes,
    )
    module = optional("polars_hash", "polars-hash")
    if module is not None:
        hashed = [
            (module.col(name).cast(pl.String).nchash.xxhash64(seed=0) % TABLE).cast(pl.Int32)
            for name in frame.columns
        ]
        race.contenders["polars-hash % n, ints as strings"] = Contender(
            lambda: frame.select(hashed).to_numpy(order="c"), ROWS, "2.8x"
        )
    print_race(race, rounds=ROUNDS)


def _from_parquet(path: Path, frame: pl.DataFrame) -> None:
    out = np.empty(frame.shape, np.int32)
    hashed = (pl.all().hash() % TABLE).cast(pl.Int32)
    race = Race(
        f"zstd parquet of {path.stat().st_size / 1e6:.0f} MB -> int32 matrix, M rows",
        {
            "read_parquet, hash_table": Contender(
                lambda: hash_table(pl.read_parquet(path), num_rows=TABLE, out=out), ROWS
            ),
            "polars.read_parquet alone": Contender(
                lambda: pl.read_parquet(path), ROWS, "0.55x, aim 0.9x"
            ),
            "polars scan, hash % n (no stable hash)": Contender(
                lambda: pl.scan_parquet(path).select(hashed).collect().to_numpy(order="c"),
                ROWS,
                "0.9x clock",
            ),
        },
        bytes_moved=path.stat().st_size + out.nbytes,
    )
    print_race(race, rounds=ROUNDS)


def _star() -> None:
    rng = np.random.default_rng(0)
    sides = {}
    for side, count in (("user", USERS), ("item", ITEMS)):
        columns = {f"{side}_id": pl.Series(np.arange(count))}
        for place in range(SIDE_COLUMNS):
            name = f"{side}_{place}"
            columns[name] = pl.Series(keys.strings(count, 100 * (place + 1), rng).to_list())
        sides[side] = pl.DataFrame(columns)
    pairs = pl.DataFrame(
        {
            "user_id": keys.draw(INTERACTIONS, USERS, rng),
            "item_id": keys.draw(INTERACTIONS, ITEMS, rng),
            "hour": rng.integers(0, 24, INTERACTIONS),
            "click": rng.integers(0, 2, INTERACTIONS),
        }
    )
    flat = pairs.join(sides["user"], "user_id", maintain_order="left").join(
        sides["item"], "item_id", maintain_order="left"
    )
    schema = Schema(
        user=Side("user_id", features=[Categorical(name) for name in sides["user"].columns]),
        item=Side("item_id", features=[Categorical(name) for name in sides["item"].columns]),
        context=[Categorical("hour")],
        tasks=[Binary("ctr", label="click")],
    )
    star = scan(pairs, users=sides["user"], items=sides["item"])
    encoder = Encoder(schema).fit(star)
    race = Race(
        f"{USERS:,} users, {ITEMS:,} items, {INTERACTIONS:,} interactions, M rows",
        {
            "Encoder.encode, a star": Contender(
                lambda: encoder.encode(star, labels="none"), INTERACTIONS
            ),
            "Encoder.encode, one flat table": Contender(
                lambda: encoder.encode(flat, labels="none"), INTERACTIONS, "3x"
            ),
            "a star, then flat by a gather": Contender(
                lambda: encoder.encode(star, labels="none").flat(), INTERACTIONS
            ),
        },
        bytes_moved=int(pairs.estimated_size()) + 3 * 8 * INTERACTIONS,
    )
    print_race(race, rounds=ROUNDS)


def _requests(frame: pl.DataFrame) -> None:
    rows = []
    for count in (1, 100, 1_000):
        small = frame.head(count)
        timings = interleave({"call": partial(_calls, small)}, rounds=ROUNDS)
        rows.append([f"{count:,}", f"{timings['call'].wall_median / REQUESTS * 1e3:.2f}", "1 ms"])
    title = f"hash_table on a warm process, {frame.width} columns"
    print_table(title, ["rows", "ms a call", "bar to 100 rows"], rows)


def _calls(frame: pl.DataFrame) -> None:
    for _ in range(REQUESTS):
        hash_table(frame, num_rows=TABLE)


_MEMORY = """
import sys, numpy as np, polars as pl
from pathlib import Path
from recsys_mtl.encoding import hash_table, warm

def peak(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024

frame = pl.read_parquet(sys.argv[1])
warm()
hash_table(frame.head(200_000), num_rows=1_000_003)
Path("/proc/self/clear_refs").write_text("5")
before = peak("VmRSS")
out = hash_table(frame, num_rows=1_000_003)
print(out.nbytes / 2**20, peak("VmHWM") - before, frame["text_0"].n_chunks())
"""


def _peak_memory(path: Path) -> None:
    if not Path("/proc/self/clear_refs").exists():
        print("left out: peak memory (no /proc/self/clear_refs)")
        return
    result, extra, chunks = _run(_MEMORY, str(path)).split()
    row = [f"{float(result):.0f}", f"{float(extra):.0f}", f"{float(result) + 32:.0f}", chunks]
    header = ["", "result, MiB", "extra peak, MiB", "bar, MiB", "chunks"]
    print_table("memory of hash_table", header, [["frame in memory", *row]])


_START = """
import time
start = time.perf_counter()
import numpy, pyarrow, polars
libraries = time.perf_counter()
from recsys_mtl.encoding import warm
imported = time.perf_counter()
warm()
print(libraries - start, imported - libraries, time.perf_counter() - imported)
"""


def _first_call() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, bar in (("no cache", "12 s"), ("cached", "1 s"), ("cached", "1 s")):
            found = _run(_START, NUMBA_CACHE_DIR=folder).split()
            rows.append([name, *(f"{float(one):.2f}" for one in found), bar])
    header = ["first call", "numpy, arrow, polars s", "import s", "warm() s", "bar of warm()"]
    print_table("a new process", header, rows)


def _run(script: str, *arguments: str, **environment: str) -> str:
    found = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout


if __name__ == "__main__":
    main()
