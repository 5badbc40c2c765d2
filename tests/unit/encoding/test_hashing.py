import datetime
import math
import os
import random
import subprocess
import sys
from typing import Any

import mmh3
import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import xxhash

from recsys_mtl.encoding import hashing
from recsys_mtl.encoding.hashing import (
    Algorithm,
    hash64,
    hash_column,
    murmur3_32,
    table_seed,
    xxh64,
)
from recsys_mtl.encoding.sources import Placement, id_source, table_rows
from recsys_mtl.errors import EncodingError

FOX = b"The quick brown fox jumps over the lazy dog"
SEED = 77
BUCKETS = 1_000_003
WIDTHS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]


def bucket_column(column: Any, *, num_threads: int | None = None, **options: Any):
    """Place ids as encoders do: three rows are reserved, the empty string has one of them."""
    return table_rows([id_source(column, Placement(**options))], num_threads=num_threads)[:, 0]


def codes(column: pa.Array | pa.ChunkedArray, **options: Any):
    return bucket_column(column, **{"seed": SEED, "num_buckets": BUCKETS} | options).tolist()


def code_of_bytes(key: bytes, seed: int = SEED, num_buckets: int = BUCKETS):
    return 3 + ((xxhash.xxh64_intdigest(key, seed) >> 32) * num_buckets >> 32)


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0),
        (b"", 1, 0x514E28B7),
        (b"", 0xFFFFFFFF, 0x81F16F39),
        (b"\xff\xff\xff\xff", 0, 0x76293B50),
        (b"\x21\x43\x65\x87", 0, 0xF55B516B),
        (b"\x21\x43\x65\x87", 0x5082EDEE, 0x2362F9DE),
        (b"\x21\x43\x65", 0, 0x7E4A8634),
        (b"\x21", 0, 0x72661CF4),
        (b"test", 0, 0xBA6BD213),
        (b"test", 0x9747B28C, 0x704B81DC),
        (b"Hello, world!", 0, 0xC0363E43),
        (b"Hello, world!", 0x9747B28C, 0x24884CBA),
        (FOX, 0, 0x2E4FF723),
        (FOX, 0x9747B28C, 0x2FA826CD),
    ],
)
def test_murmur3_gives_the_published_values(data: bytes, seed: int, expected: int):
    assert murmur3_32(data, seed) == expected


def test_murmur3_seed_is_cut_to_32_bits():
    assert murmur3_32(FOX, 2**32 + 5) == murmur3_32(FOX, 5)


@pytest.mark.parametrize(
    ("data", "seed", "expected"),
    [
        (b"", 0, 0xEF46DB3751D8E999),
        # The example in the documentation of Spark's xxhash64, whose seed is 42.
        (b"ABC", 42, 4105715581806190027),
    ],
)
def test_xxh64_gives_the_published_values(data: bytes, seed: int, expected: int):
    assert xxh64(data, seed) == expected
    assert xxhash.xxh64_intdigest(data, seed) == expected


@pytest.mark.parametrize("seed", [0, 42, 0xDEADBEEF, 2**64 - 1])
def test_scalar_hashes_agree_with_xxhash_and_mmh3_at_every_length(seed: int):
    draw = random.Random(seed)
    for length in range(301):
        data = draw.randbytes(length)
        assert xxh64(data, seed) == xxhash.xxh64_intdigest(data, seed)
        assert murmur3_32(data, seed) == mmh3.hash(data, seed & 0xFFFFFFFF, signed=False)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("longest", [3, 8, 13, 31, 33, 300])
def test_column_hashes_agree_with_xxhash_and_mmh3(kind: pa.DataType, longest: int):
    draw = random.Random(longest)
    keys = [draw.randbytes(draw.randint(0, longest)) for _ in range(600)]
    column = pa.array(keys, kind)
    xx = [xxhash.xxh64_intdigest(key, SEED) for key in keys]
    murmur = [mmh3.hash(key, SEED, signed=False) for key in keys]
    assert hash64(column, seed=SEED).tolist() == xx
    assert hash64(column, seed=SEED, algorithm="murmur3").tolist() == murmur


@pytest.mark.parametrize("width", [1, 7, 8, 16, 31, 32, 40])
def test_fixed_width_bytes_hash_as_bytes(width: int):
    draw = random.Random(width)
    keys = [draw.randbytes(width) for _ in range(300)]
    assert codes(pa.array(keys, pa.binary(width))) == [code_of_bytes(key) for key in keys]


def test_fixed_width_of_zero_is_empty():
    assert codes(pa.array([b"", None], pa.binary(0))) == [2, 0]


def test_murmur3_buckets_use_the_whole_32_bit_hash():
    expected = [3 + (mmh3.hash(key, SEED, signed=False) * BUCKETS >> 32) for key in ("a", "bc")]
    assert codes(pa.array(["a", "bc"]), algorithm="murmur3") == expected


def test_table_seed_is_the_hash_of_the_name():
    assert table_seed("größe") == xxhash.xxh64_intdigest("größe".encode(), 0)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_null_empty_and_value_are_apart(kind: pa.DataType):
    assert codes(pa.array([None, "", "\0", "x"], kind)) == [
        hashing.NULL_ROW,
        hashing.EMPTY_ROW,
        code_of_bytes(b"\0"),
        code_of_bytes(b"x"),
    ]


def test_hashes_of_null_and_empty_are_as_documented():
    expected = [0, xxhash.xxh64_intdigest(b"", SEED)]
    assert hash64(pa.array([None, ""]), seed=SEED).tolist() == expected


@pytest.mark.parametrize("kind", WIDTHS)
def test_an_integer_has_one_bucket_in_every_width(kind: pa.DataType):
    small, large = 5, 2 ** (kind.bit_width - 1) - 1
    expected = [code_of_bytes(number.to_bytes(8, "little")) for number in (small, large)]
    assert codes(pa.array([9, small, None, large], kind).slice(1)) == [expected[0], 0, expected[1]]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64()])
def test_negative_integers_are_sign_extended(kind: pa.DataType):
    lowest = -(2 ** (kind.bit_width - 1))
    expected = [code_of_bytes(n.to_bytes(8, "little", signed=True)) for n in (-1, lowest)]
    assert codes(pa.array([-1, lowest], kind)) == expected


def test_uint64_hashes_its_own_bytes():
    assert codes(pa.array([2**64 - 1], pa.uint64())) == [code_of_bytes(b"\xff" * 8)]


@pytest.mark.parametrize("algorithm", ["xxh64", "murmur3"])
def test_neighbouring_and_extreme_ids_stay_distinct(algorithm: Algorithm):
    ids = [0, -1, 2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1]
    assert len(set(codes(pa.array(ids), algorithm=algorithm, num_buckets=2**32 - 1))) == len(ids)


def test_an_integer_and_its_text_differ():
    assert codes(pa.array([5])) != codes(pa.array(["5"]))


def test_booleans_are_zero_and_one():
    values = [True, None, False, True, *[False] * 9]
    expected = codes(pa.array(values, pa.bool_()).cast(pa.int64()).slice(1))
    assert codes(pa.array(values).slice(1)) == expected


def test_dates_are_days_in_both_widths():
    days = [datetime.date(1969, 12, 31), None, datetime.date(2024, 2, 29)]
    expected = codes(pa.array([-1, None, 19782]))
    assert codes(pa.array(days, pa.date32())) == expected
    assert codes(pa.array(days, pa.date64())) == expected


def test_floats_of_whole_numbers_are_integers():
    expected = codes(pa.array([1, None, None, -3, 2**53 - 1, 0]))
    values = [1.0, math.nan, None, -3.0, 2.0**53 - 1, -0.0]
    assert codes(pa.array(values, from_pandas=False)) == expected
    assert codes(pa.array([9.0, 5.0], pa.float32()).slice(1)) == codes(pa.array([5]))
    assert codes(pa.array(np.array([5, np.nan], np.float16))) == codes(pa.array([5, None]))


@pytest.mark.parametrize("value", [0.5, 2.0**53, -(2.0**53), math.inf, -math.inf])
def test_floats_that_may_have_lost_an_id_are_refused(value: float):
    with pytest.raises(EncodingError, match="Cast the column to a string or an integer"):
        codes(pa.chunked_array([[1.0], [value, None]]))


def test_floats_under_a_null_are_not_looked_at():
    bits, values = pa.py_buffer(b"\x01"), pa.py_buffer(np.array([1.0, 0.5]))
    column = pa.Array.from_buffers(pa.float64(), 2, [bits, values])
    assert codes(column) == codes(pa.array([1, None]))


@pytest.mark.parametrize(
    "kind",
    [
        pa.timestamp("ms"),
        pa.duration("s"),
        pa.time32("s"),
        pa.decimal128(9, 2),
        pa.struct([("a", pa.int64())]),
        pa.list_(pa.string()),
    ],
)
def test_types_that_are_no_ids_are_refused_by_name(kind: pa.DataType):
    with pytest.raises(EncodingError) as error:
        codes(pa.array([None, None], kind))
    assert str(kind) in str(error.value)


@pytest.mark.parametrize(
    "options", [{"num_rows": 1}, {"num_rows": 2**31}, {"num_threads": 0}, {"algorithm": "md5"}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(options))):
        hash_column(pa.array(["a"]), **{"name": "x", "num_rows": 9} | options)


@pytest.mark.parametrize("num_buckets", [1, 2, 2**31 - 4])
def test_codes_stay_in_range_for_any_number_of_buckets(num_buckets: int):
    got = codes(pa.array(range(2000)), num_buckets=num_buckets)
    assert min(got) >= 3
    assert max(got) < 3 + num_buckets


def test_null_column_and_columns_without_rows():
    assert codes(pa.nulls(3)) == [0, 0, 0]
    assert codes(pa.chunked_array([pa.nulls(2), pa.nulls(1)])) == [0, 0, 0]
    for kind in (pa.string(), pa.string_view(), pa.int64(), pa.float64(), pa.null()):
        assert codes(pa.array([], kind)) == []
        assert codes(pa.chunked_array([], kind)) == []
    assert bucket_column(pa.array([], pa.string()), seed=0, num_buckets=9).dtype == np.int32


def test_garbage_views_under_a_null_are_never_followed():
    view = np.array([(9).to_bytes(4, "little") + b"ninebytes" + b"###", b"\xff" * 16], "V16")
    column = pa.Array.from_buffers(
        pa.binary_view(), 2, [pa.py_buffer(b"\x01"), pa.py_buffer(view.tobytes())]
    )
    assert codes(column) == [code_of_bytes(b"ninebytes"), 0]


@pytest.mark.parametrize("kind", WIDTHS)
def test_dictionary_codes_of_every_width(kind: pa.DataType):
    column = pa.DictionaryArray.from_arrays(
        pa.array([1, None, 2, 0, 1], kind), pa.array(["a", "b", None])
    )
    plain = codes(pa.array(["b", None, None, "a", "b"]))
    assert codes(column) == plain
    assert codes(column.slice(1)) == plain[1:]


@pytest.mark.parametrize("rows", [2, 100])
def test_garbage_dictionary_codes_under_a_null_are_not_used(rows: int):
    raw = np.full(rows, 77, np.int8)
    raw[0] = 1
    indices = pa.Array.from_buffers(
        pa.int8(), rows, [pa.py_buffer(b"\x01" + bytes(rows // 8)), pa.py_buffer(raw)]
    )
    for kind in (pa.string(), pa.string_view()):
        column = pa.DictionaryArray.from_arrays(
            indices, pa.array(["a", "b", "c"], kind), safe=False
        )
        assert codes(column) == [code_of_bytes(b"b")] + [0] * (rows - 1)


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.int64(), pa.float64()])
def test_short_slice_of_a_long_dictionary(kind: pa.DataType):
    values = [str(i) * 4 for i in range(500)] if "string" in str(kind) else range(500)
    long = pa.DictionaryArray.from_arrays(
        pa.array([*range(499, -1, -1), None]), pa.array(values, kind)
    )
    assert codes(long.slice(495)) == codes(long)[495:]


def test_chunks_may_have_different_dictionaries():
    chunks = [pa.array([*text]).dictionary_encode() for text in ("aba", "bcbb", "aba")]
    assert codes(pa.chunked_array(chunks)) == codes(pa.array([*"ababcbbaba"]))


def test_dataframe_libraries_give_the_codes_of_arrow():
    values = ["a", None, "", "a string kept out of line", "é"]
    expected = codes(pa.array(values))
    plain = polars.Series(values)
    for series in (plain, plain.cast(polars.Categorical), plain.slice(1), plain.append(plain)):
        assert codes(pa.chunked_array(series)) == [expected[values.index(v)] for v in series]
    for dtype in (object, "string", "category"):
        assert codes(pa.Array.from_pandas(pandas.Series(values, dtype=dtype))) == expected
    ids = pandas.Series([5, None, 7])
    assert codes(pa.Array.from_pandas(ids)) == codes(pa.array([5, None, 7]))


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.int64()])
def test_thread_count_does_not_change_codes(kind: pa.DataType):
    rows = 3 * 65_536 + 17
    numbers = pa.array(np.arange(rows)).cast(pa.string()).cast(kind)
    column = pa.chunked_array([numbers.slice(i, 40_000) for i in range(0, rows, 40_000)])
    alone = bucket_column(numbers, seed=1, num_buckets=10**6, num_threads=1)
    for num_threads in (2, 5, None):
        together = bucket_column(column, seed=1, num_buckets=10**6, num_threads=num_threads)
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(range(100_000)),
        pa.array(np.arange(100_000) * 2**32),
        pa.array([f"user_{i:07d}" for i in range(100_000)]),
    ],
    ids=["small ids", "high bits", "text"],
)
def test_share_of_colliding_values_is_that_of_a_random_map(column: pa.Array):
    num_values, num_buckets = len(column), 131_071
    counts = np.bincount(codes(column, num_buckets=num_buckets))
    alone = int((counts == 1).sum())
    one = (1 - 1 / num_buckets) ** (num_values - 1)
    two = (1 - 1 / num_buckets) * (1 - 2 / num_buckets) ** (num_values - 2)
    mean = num_values * one
    variance = mean + num_values * (num_values - 1) * two - mean**2
    assert abs(alone - mean) < 4 * math.sqrt(variance)


@pytest.mark.parametrize("algorithm", ["xxh64", "murmur3"])
def test_buckets_are_uniform_by_chi_square(algorithm: Algorithm):
    num_values, num_buckets = 200_000, 1024
    got = codes(pa.array(range(num_values)), num_buckets=num_buckets, algorithm=algorithm)
    counts = np.bincount(np.array(got) - 3, minlength=num_buckets)
    expected = num_values / num_buckets
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = num_buckets - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_tables_with_different_seeds_are_unrelated():
    column = pa.array(range(100_000))
    first, second = (
        np.array(codes(column, seed=table_seed(name), num_buckets=1000)) for name in ("a", "b")
    )
    assert abs(int((first == second).sum()) - 100) < 40


SCRIPT = """
import os
import pyarrow as pa
from recsys_mtl.encoding import hash_column

column = pa.array([f"item {i}" for i in range(200_000)])
options = {"name": "x", "num_rows": 10**6, "num_threads": 2}
before = hash_column(column, **options)
child = os.fork()
if child == 0:
    same = (hash_column(column, **options) == before).all()
    os._exit(0 if same else 1)
failed = os.waitpid(child, 0)[1]
print(failed, *before[:20].tolist())
"""


def run_script(hash_seed: str):
    # Python 3.12 warns of any fork beside threads; that it works is what is tested here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", SCRIPT]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout.split()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_codes_are_the_same_in_other_processes_and_after_a_fork():
    column = pa.array([f"item {i}" for i in range(20)])
    expected = ["0", *map(str, hash_column(column, name="x", num_rows=10**6).tolist())]
    assert run_script("1") == expected
    assert run_script("2") == expected
