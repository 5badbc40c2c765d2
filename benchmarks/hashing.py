"""Ids to buckets: `bucket_column` against what users have today, and against memory.

Usage: ``make bench``, or ``python benchmarks/hashing.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import xxhash
from sklearn.feature_extraction import FeatureHasher

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the scripts are run by path

from benchmarks.measure import (
    Timing,
    interleave,
    optional,
    print_machine,
    print_table,
    second_core,
    times_faster,
)
from recsys_mtl.encoding.hashing import bucket_column

ROWS = 1_000_000
LOOP_ROWS = 100_000
"""Rows of peers that loop in Python: their rate does not depend on the number."""
BUCKETS = 1_000_003
SEED = 123
ROUNDS = 9

Run = Callable[[], object]


def main() -> None:
    print_machine("numba", "numpy", "pyarrow", "polars", "pandas", "scikit-learn", "xxhash")
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(12, 3.2, ROWS).round(), 4, 20).astype(np.int64)
    digits = rng.integers(0, 10**18, ROWS)
    keys = [f"{value:020d}"[-size:] for value, size in zip(digits, lengths, strict=True)]
    ids = pa.array(rng.integers(0, 2**62, ROWS))
    key_bytes = int(lengths.sum())
    strings = {
        "string": pa.array(keys, pa.string()),
        "large_string": pa.array(keys, pa.large_string()),
        "string_view": pa.array(keys, pa.string_view()),
    }
    _compare(
        f"strings, 4 to 20 bytes, mean {key_bytes / ROWS:.1f}",
        strings,
        _string_peers(keys),
        read_bytes=key_bytes + 4 * ROWS,
    )
    _compare("int64", {"int64": ids}, _integer_peers(ids), read_bytes=8 * ROWS)
    for uniques in (1_000, 100_000):
        codes = rng.integers(0, uniques, ROWS).astype(np.int32)
        column = pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(keys[:uniques]))
        _compare(
            f"dictionary of {uniques:,} strings",
            {"dictionary": column, "the same, plain strings": column.cast(pa.string())},
            _dictionary_peers(codes, uniques),
            read_bytes=4 * ROWS,
        )
    _threads({"string_view": strings["string_view"], "int64": ids})


def _bucket(column: pa.Array, num_threads: int = 1) -> Run:
    return lambda: bucket_column(column, seed=SEED, num_buckets=BUCKETS, num_threads=num_threads)


def _string_peers(keys: list[str]) -> dict[str, tuple[Run, int]]:
    """Return peers and the rows each handles."""
    few = keys[:LOOP_ROWS]
    encoded = [key.encode() for key in few]
    tokens = [[key] for key in few]
    hasher = FeatureHasher(BUCKETS, input_type="string")
    series = pl.Series("key", keys)
    objects = np.array(keys, dtype=object)
    peers: dict[str, tuple[Run, int]] = {
        "xxhash in a loop, bytes ready": (lambda: _loop(encoded), LOOP_ROWS),
        "sklearn FeatureHasher, tokens ready": (lambda: hasher.transform(tokens), LOOP_ROWS),
        "pandas hash_array": (lambda: pd.util.hash_array(objects, categorize=False), ROWS),
        "polars hash % n (not stable over versions)": (_polars_modulo(series), ROWS),
    }
    polars_hash = optional("polars_hash", "polars-hash")
    if polars_hash is not None:
        frame, column = series.to_frame(), polars_hash.col("key")
        hashed: Any = column.nchash.xxhash64() % BUCKETS
        peers["polars-hash xxhash64 % n"] = (
            lambda: frame.select(hashed).to_series().to_numpy(),
            ROWS,
        )
    return peers


def _integer_peers(ids: pa.Array) -> dict[str, tuple[Run, int]]:
    values = ids.to_numpy()
    encoded = [int(value).to_bytes(8, "little") for value in values[:LOOP_ROWS]]
    return {
        "xxhash in a loop, bytes ready": (lambda: _loop(encoded), LOOP_ROWS),
        "pandas hash_array": (lambda: pd.util.hash_array(values), ROWS),
        "polars hash % n (not stable over versions)": (_polars_modulo(pl.Series(values)), ROWS),
        "numpy x % n (no hash at all)": (lambda: values % BUCKETS, ROWS),
    }


def _dictionary_peers(codes: np.ndarray[Any, Any], uniques: int) -> dict[str, tuple[Run, int]]:
    table = np.arange(uniques)
    series, positions = pl.Series(table), pl.Series(codes)
    return {
        "numpy table[codes] (no hash at all)": (lambda: table[codes], ROWS),
        "polars gather (no hash at all)": (lambda: series.gather(positions).to_numpy(), ROWS),
    }


def _loop(encoded: list[bytes]) -> list[int]:
    digest = xxhash.xxh64_intdigest
    return [digest(key, SEED) for key in encoded]


def _polars_modulo(series: pl.Series) -> Run:
    def run() -> object:
        return (series.hash() % BUCKETS).to_numpy()

    return run


def _compare(
    title: str,
    columns: dict[str, pa.Array],
    peers: dict[str, tuple[Run, int]],
    *,
    read_bytes: int,
) -> None:
    """Print rates per second of CPU time; the first column is the one peers are compared with."""
    source, target = np.ones((2, 8 * ROWS))  # written to: pages of zeros would share one page
    ours = {f"bucket_column, {name}": (_bucket(column), ROWS) for name, column in columns.items()}
    first = next(iter(ours))
    runs = ours | peers
    contenders = {name: run for name, (run, _) in runs.items()}
    timings = interleave(contenders | {"copy": lambda: np.copyto(target, source)}, rounds=ROUNDS)
    rows = []
    for name, (_, count) in runs.items():
        faster = times_faster(timings[first].cpu, timings[name].cpu, per=count / ROWS)
        rows.append([name, f"{count / timings[name].cpu_median / 1e6:.1f}", f"{faster:.2f}"])
    print_table(f"{title} (one thread)", ["contender", "M/s per CPU", "first is x"], rows)
    moved = read_bytes + 8 * ROWS
    copied = 2 * source.nbytes
    share = times_faster(timings[first].cpu, timings["copy"].cpu, per=copied / moved)
    print(
        f"{moved / timings[first].cpu_median / 1e9:.1f} GB/s read and written:"
        f" {share:.2f} of np.copyto's {copied / timings['copy'].cpu_median / 1e9:.1f} GB/s"
    )


def _threads(columns: dict[str, pa.Array]) -> None:
    rows = []
    for name, column in columns.items():
        timings: dict[str, Timing] = interleave(
            {"one": _bucket(column), "two": _bucket(column, 2)}, rounds=ROUNDS
        )
        one, two = timings["one"], timings["two"]
        rows.append(
            [
                name,
                f"{ROWS / one.wall_median / 1e6:.1f}",
                f"{ROWS / two.wall_median / 1e6:.1f}",
                f"{times_faster(two.wall, one.wall):.2f}",
                f"{second_core():.2f}",
            ]
        )
    header = ["on the clock", "M/s, 1 thread", "M/s, 2 threads", "ratio", "control loop"]
    print_table("two threads (the control loop says what the second core gave)", header, rows)


if __name__ == "__main__":
    main()
