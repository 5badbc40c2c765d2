"""Columns of ids to table rows, against what users have today and against memory.

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

from benchmarks import keys
from benchmarks.measure import (
    Contender,
    Race,
    interleave,
    optional,
    print_machine,
    print_race,
    print_table,
    second_core,
    times_faster,
)
from recsys_mtl.encoding import hash_column, hash_lists, warm

ROWS = 2_000_000
LOOP_ROWS = 200_000
"""Rows of peers that loop in Python: their rate does not depend on the number."""
TABLE = 1_000_003
"""Rows of the table hashed into."""
ROUNDS = 7

Run = Callable[[], object]


def main() -> None:
    print_machine("numba", "numpy", "pyarrow", "polars", "pandas", "scikit-learn", "xxhash")
    warm()
    rng = np.random.default_rng(0)
    text = pl.Series(keys.strings(ROWS, ROWS, rng).to_list())
    ids = pl.Series(rng.integers(0, 2**62, ROWS))
    _strings(text)
    _integers(ids)
    for uniques in (1_000, 100_000):
        _dictionary(uniques, rng)
    _lists(rng)
    _threads({"string_view": text, "int64": ids})


def _ours(column: Any, num_threads: int = 1) -> Run:
    return lambda: hash_column(column, name="key", num_rows=TABLE, num_threads=num_threads)


def _strings(text: pl.Series) -> None:
    few = text.head(LOOP_ROWS).to_list()
    encoded, tokens = [key.encode() for key in few], [[key] for key in few]
    hasher = FeatureHasher(TABLE, input_type="string")
    objects = text.to_numpy()
    key_bytes = int(text.str.len_bytes().sum())
    race = Race(
        f"{ROWS:,} strings, 4 to 20 bytes, mean {key_bytes / ROWS:.1f}",
        {
            "hash_column, string_view": Contender(_ours(text), ROWS),
            "hash_column, string_view, 2 threads": Contender(_ours(text, 2), ROWS),
            "hash_column, string": Contender(_ours(_plain(text)), ROWS),
            "FeatureHasher, tokens ready": Contender(
                lambda: hasher.transform(tokens), LOOP_ROWS, "25x CPU, 50x wall"
            ),
            "xxhash in a loop, bytes ready": Contender(lambda: _loop(encoded), LOOP_ROWS),
            "pandas hash_array": Contender(
                lambda: pd.util.hash_array(objects, categorize=False), ROWS
            ),
            "polars hash % n (no stable hash)": Contender(_polars_modulo(text), ROWS),
        },
        bytes_moved=key_bytes + 16 * ROWS + 4 * ROWS,
    )
    hashed = _polars_hash("key")
    if hashed is not None:
        frame = text.rename("key").to_frame()
        race.contenders["polars-hash xxhash64 % n"] = Contender(
            lambda: frame.select((hashed % TABLE).cast(pl.Int32)).to_series().to_numpy(),
            ROWS,
            "1.4x CPU, 2.5x wall",
        )
        race.contenders["polars-hash xxhash64"] = Contender(
            lambda: frame.select(hashed), ROWS, "1.0x CPU"
        )
    print_race(race, rounds=ROUNDS)


def _integers(ids: pl.Series) -> None:
    values = ids.to_numpy()
    encoded = [int(value).to_bytes(8, "little") for value in values[:LOOP_ROWS]]
    race = Race(
        f"{ROWS:,} int64",
        {
            "hash_column": Contender(_ours(ids), ROWS),
            "hash_column, 2 threads": Contender(_ours(ids, 2), ROWS),
            "polars hash % n (no stable hash)": Contender(_polars_modulo(ids), ROWS, "1.1x CPU"),
            "xxhash in a loop, bytes ready": Contender(lambda: _loop(encoded), LOOP_ROWS),
            "pandas hash_array": Contender(lambda: pd.util.hash_array(values), ROWS),
            "numpy x % n (no hash at all)": Contender(lambda: values % TABLE, ROWS),
        },
        bytes_moved=12 * ROWS,
    )
    print_race(race, rounds=ROUNDS)


def _dictionary(uniques: int, rng: np.random.Generator) -> None:
    codes = rng.integers(0, uniques, ROWS).astype(np.int32)
    values = _plain(keys.vocabulary(uniques, rng))
    column = pa.DictionaryArray.from_arrays(pa.array(codes), values)
    table = np.arange(uniques, dtype=np.int32)
    race = Race(
        f"{ROWS:,} rows of a dictionary of {uniques:,} strings",
        {
            "hash_column, dictionary": Contender(_ours(column), ROWS),
            "hash_column, the same as plain strings": Contender(
                _ours(column.cast(pa.string())), ROWS, "4x CPU" if uniques == 1_000 else "3x CPU"
            ),
            "numpy table[codes] (no hash at all)": Contender(lambda: table[codes], ROWS),
        },
        bytes_moved=8 * ROWS,
    )
    print_race(race, rounds=ROUNDS)


def _lists(rng: np.random.Generator) -> None:
    num_lists, mean = ROWS // 5, 5
    lengths = rng.poisson(mean, num_lists)
    items = keys.strings(int(lengths.sum()), 100_000, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    plain = pa.LargeListArray.from_arrays(pa.array(offsets), _plain(items))
    column = pl.Series("key", plain)
    few = column.head(LOOP_ROWS // mean).to_list()
    hasher = FeatureHasher(TABLE, input_type="string")
    count = len(items)
    race = Race(
        f"{num_lists:,} lists of {mean} strings in the mean",
        {
            "hash_lists": Contender(
                lambda: hash_lists(column, name="key", num_rows=TABLE, num_threads=1), count
            ),
            "FeatureHasher": Contender(
                lambda: hasher.transform(few), sum(map(len, few)), "12x CPU"
            ),
        },
        bytes_moved=int(items.str.len_bytes().sum()) + 20 * count,
    )
    hashed = _polars_hash("key")
    if hashed is not None:
        frame = column.to_frame()
        race.contenders["polars explode, polars-hash, lengths"] = Contender(
            lambda: (
                frame.explode("key").select((hashed % TABLE).cast(pl.Int32)).to_series().to_numpy(),
                column.list.len().cum_sum().to_numpy(),
            ),
            count,
            "1.4x CPU",
        )
    print_race(race, rounds=ROUNDS)


def _plain(text: pl.Series) -> pa.Array:
    return pa.array(text.to_list(), pa.string())


def _polars_hash(name: str) -> Any | None:
    module = optional("polars_hash", "polars-hash")
    return None if module is None else module.col(name).nchash.xxhash64(seed=0)


def _loop(encoded: list[bytes]) -> list[int]:
    digest = xxhash.xxh64_intdigest
    return [digest(key, 0) for key in encoded]


def _polars_modulo(series: pl.Series) -> Run:
    return lambda: (series.hash() % TABLE).cast(pl.Int32).to_numpy()


def _threads(columns: dict[str, pl.Series]) -> None:
    rows = []
    for name, column in columns.items():
        timings = interleave({"one": _ours(column), "two": _ours(column, 2)}, rounds=ROUNDS)
        one, two = timings["one"], timings["two"]
        rows.append(
            [
                name,
                f"{ROWS / one.wall_median / 1e6:.1f}",
                f"{ROWS / two.wall_median / 1e6:.1f}",
                f"{times_faster(two.wall, one.wall):.2f}",
                "1.6",
                f"{second_core():.2f}",
            ]
        )
    header = ["on the clock", "M/s, 1 thread", "M/s, 2 threads", "ratio", "bar", "control loop"]
    print_table("two threads (the control loop says what the second core gave)", header, rows)


if __name__ == "__main__":
    main()
