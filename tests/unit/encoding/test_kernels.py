"""Kernels are compiled once, by `warm`, also where nothing can be kept on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import recsys_mtl
from recsys_mtl.encoding import hash_column, kernels

PACKAGE = Path(recsys_mtl.__file__).parent

AFTER_WARM = """
import datetime

import numpy as np
import polars as pl
import pyarrow as pa
from recsys_mtl.encoding import Encoder, digests, hash64, hash_column, hash_table, kernels, warm
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, History, Numeric, Schema, Side

dispatcher = type(kernels.encode_rows)


def compiled():
    return {
        (module.__name__, name): list(kernel.signatures)
        for module in (digests, kernels)
        for name, kernel in vars(module).items()
        if isinstance(kernel, dispatcher)
    }


warm()
before = compiled()
texts = pa.array(["a", None, "", "a text too long for a view, and for the planes", "b"] * 60)
numbers = pa.array([1, None, 3, 2, 1] * 60, pa.int64())
columns = [
    *(texts.cast(kind) for kind in (pa.string(), pa.large_string(), pa.string_view())),
    *(texts.cast(kind) for kind in (pa.binary(), pa.large_binary(), pa.binary_view())),
    *(numbers.cast(kind) for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.float64())),
    numbers.cast(pa.int32()).cast(pa.date32()),
    numbers.cast(pa.int32()).cast(pa.date32()).cast(pa.date64()),
    pa.array([True, None] * 150),
    pa.array([b"abc", None] * 150, pa.binary(3)),
    pa.nulls(300),
    texts.dictionary_encode(),
    texts.cast(pa.string_view()).dictionary_encode().slice(0, 2),
    pa.array(np.frombuffer(np.arange(300).tobytes(), np.int64)),  # read-only
    pl.Series(texts).cast(pl.Categorical),
    numbers.to_pandas(),
]
for column in columns:
    for algorithm in ("xxh64", "murmur3"):
        hash64(column, seed=-1, algorithm=algorithm)
        hash_column(column, name="x", num_rows=9, algorithm=algorithm)
table = pa.table({"a": texts, "b": pa.chunked_array([numbers[:77], numbers[77:]])})
out = np.empty((300, 2), np.int32)
hash_table(table, num_rows=9, out=out, num_threads=2)
hash_table(table, num_rows=9, out=np.empty((400, 2), np.int32)[50:350])
hash_table(table.select(["b"]), num_rows=9)
days = pl.Series([datetime.date(2024, 1, 1)] * 300)
frame = pl.DataFrame(table).with_columns(
    c=pl.Series(texts), d=days, n=pl.int_range(300).cast(pl.Float64),
    bag=pl.Series([["a", "b"]] * 300), seen=pl.Series([[1, 2]] * 300),
    user=pl.int_range(300) % 7, y=pl.int_range(300) % 2,
)
features = [
    Categorical("a"), Categorical("b", num_hashes=2), Categorical("c", vocabulary=2),
    Categorical("d", min_count=2), Numeric("n", num_quantiles=4), Bag("bag"), History("seen"),
]
users = pl.DataFrame({"user": range(5), "age": ["x"] * 5})
side = Side("user", features=[Categorical("user"), Categorical("age")])
schema = Schema(user=side, context=features, tasks=[Binary("y", label="y")])
encoder = Encoder(schema).fit(scan(frame, users=users))
loaded = Encoder.from_state(schema, *encoder.state())
for rows in (frame, frame[:1], frame[:0], frame.to_arrow()):
    loaded.encode(scan(rows, users=users))
for key, signatures in compiled().items():
    assert signatures == before[key], (key, before[key], signatures)
entries = ("encode_rows", "hash_rows", "place_rows", "fill_slots")
print(*(len(before["recsys_mtl.encoding.kernels", name]) for name in entries))
"""

WITHOUT_A_CACHE = """
import polars as pl
import recsys_mtl
from recsys_mtl.encoding import hash_table, kernels, warm

warm()
assert kernels.encode_rows.stats.cache_path is None
print(recsys_mtl.__file__)
print(*hash_table(pl.DataFrame({"x": ["a", None, "", "b"]}), num_rows=1000)[:, 0])
"""


def lines_of(script: str, folder: Path, **environment: str):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nothing_is_compiled_after_warm(tmp_path: Path):
    assert lines_of(AFTER_WARM, tmp_path) == ["1 1 1 1"]


@pytest.mark.slow  # compiles everything
def test_kernels_work_where_no_cache_can_be_written(tmp_path: Path):
    copy = tmp_path / "recsys_mtl"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    # Not a matter of rights, which root would have: what should be folders are files.
    for folder in {path.parent for path in copy.rglob("*.py")}:
        (folder / "__pycache__").touch()
    (nowhere := tmp_path / "file").touch()
    names = ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "NUMBA_CACHE_DIR")
    blocked = dict.fromkeys(names, str(nowhere / "folder"))
    place, rows = lines_of(WITHOUT_A_CACHE, tmp_path, PYTHONPATH=str(tmp_path), **blocked)
    assert Path(place).parent == copy
    column = pl.Series(["a", None, "", "b"])
    assert rows.split() == [*map(str, hash_column(column, name="x", num_rows=1000))]


def test_tests_run_the_kernels_of_these_sources():
    place = Path(kernels.encode_rows.stats.cache_path)
    assert place.is_relative_to(os.environ["NUMBA_CACHE_DIR"])
    assert place.parents[3].name == "build"
