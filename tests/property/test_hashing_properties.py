"""Hashing equals its pure-Python twin and does not depend on how Arrow holds a column."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_mtl.encoding.hashing import (
    Algorithm,
    hash64,
    hash_column,
    murmur3_32,
    table_seed,
    xxh64,
)
from recsys_mtl.encoding.sources import (
    Placement,
    column_hashes,
    id_source,
    place_tokens,
    table_rows,
)

MASK = 2**64 - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5

OPTIONS = {"seed": 3, "num_buckets": 1_000_003}
TEXT_LAYOUTS = [pa.string(), pa.large_string(), pa.string_view()]
BYTES_LAYOUTS = [pa.binary(), pa.large_binary(), pa.binary_view()]

# Lengths around the limits of inline views, words and stripes.
texts = st.one_of(
    st.none(), st.text(max_size=10), st.text("ab\0", max_size=40), st.text("é", max_size=20)
)
columns = st.lists(texts, max_size=40)
keys_of_bytes = st.lists(st.one_of(st.none(), st.binary(max_size=70)), max_size=30)
seeds = st.integers(0, MASK)


def bucket_column(column: Any, *, num_threads: int | None = None, **options: Any):
    """Place ids as encoders do: three rows are reserved, the empty string has one of them."""
    return table_rows([id_source(column, Placement(**options))], num_threads=num_threads)[:, 0]


def rotate(word: int, left: int, bits: int):
    return ((word << left) | (word >> (bits - left))) & (2**bits - 1)


def xx_round(lane: int, word: int):
    return rotate((lane + word * P2) & MASK, 31, 64) * P1 & MASK


def python_xxh64(data: bytes, seed: int):
    """XXH64 as its specification reads."""
    whole = len(data) - len(data) % 32
    if whole:
        lanes = [(seed + start) & MASK for start in (P1 + P2, P2, 0, -P1)]
        for place in range(0, whole, 8):
            word = int.from_bytes(data[place : place + 8], "little")
            lanes[place // 8 % 4] = xx_round(lanes[place // 8 % 4], word)
        state = sum(
            rotate(lane, left, 64) for lane, left in zip(lanes, (1, 7, 12, 18), strict=True)
        )
        for lane in lanes:
            state = ((state ^ xx_round(0, lane)) * P1 + P4) & MASK
    else:
        state = seed + P5
    state = (state + len(data)) & MASK
    rest = data[whole:]
    while len(rest) >= 8:
        word, rest = int.from_bytes(rest[:8], "little"), rest[8:]
        state = (rotate(state ^ xx_round(0, word), 27, 64) * P1 + P4) & MASK
    if len(rest) >= 4:
        word, rest = int.from_bytes(rest[:4], "little"), rest[4:]
        state = (rotate(state ^ (word * P1 & MASK), 23, 64) * P2 + P3) & MASK
    for byte in rest:
        state = rotate(state ^ (byte * P5 & MASK), 11, 64) * P1 & MASK
    state = (state ^ (state >> 33)) * P2 & MASK
    state = (state ^ (state >> 29)) * P3 & MASK
    return state ^ (state >> 32)


def python_murmur3(data: bytes, seed: int):
    """MurmurHash3_x86_32 as its reference code reads."""
    low = 2**32 - 1

    def mix(word: int) -> int:
        return rotate(word * 0xCC9E2D51 & low, 15, 32) * 0x1B873593 & low

    state = seed & low
    whole = len(data) - len(data) % 4
    for place in range(0, whole, 4):
        state ^= mix(int.from_bytes(data[place : place + 4], "little"))
        state = (rotate(state, 13, 32) * 5 + 0xE6546B64) & low
    state ^= mix(int.from_bytes(data[whole:], "little")) ^ len(data)
    state = (state ^ (state >> 16)) * 0x85EBCA6B & low
    state = (state ^ (state >> 13)) * 0xC2B2AE35 & low
    return state ^ (state >> 16)


def python_token(key: bytes | None, algorithm: str, seed: int, *, empty_apart: bool = True):
    """The token of one value as bytes, as docs/hashing.md defines it."""
    if key is None:
        return 0
    if not key and empty_apart:
        return 1
    if algorithm == "murmur3":
        return python_murmur3(key, seed) << 32 | 2
    found = python_xxh64(key, seed)
    return found + 2 if found < 2 else found


def python_bucket(token: int, num_buckets: int, number: int = 0):
    upper, lower = divmod(token, 2**32)
    return (upper + number * lower) % 2**32 * num_buckets >> 32


def python_code(key: bytes | None, algorithm: str, seed: int, num_buckets: int, number: int = 0):
    """The twin of `bucket_column` for one value as bytes."""
    token = python_token(key, algorithm, seed)
    return {0: 0, 1: 2}.get(token, 3 + python_bucket(token, num_buckets, number))


def integer_of_hash(found: int, seed: int):
    """The one 64-bit integer with this hash: XXH64 of 8 bytes can be undone step by step."""
    inverses = [pow(prime, -1, 2**64) for prime in (P1, P2, P3)]
    found ^= found >> 32
    found = found * inverses[2] & MASK
    found ^= found >> 29 ^ found >> 58
    found = found * inverses[1] & MASK
    found ^= found >> 33
    word = rotate((found - P4) * inverses[0] & MASK, 64 - 27, 64) ^ (seed + P5 + 8) & MASK
    return rotate(word * inverses[0] & MASK, 64 - 31, 64) * inverses[1] & MASK


def as_bytes(values: list[str | None]):
    return [None if value is None else value.encode() for value in values]


def codes(column: pa.Array | pa.ChunkedArray, **options: Any):
    return bucket_column(column, **OPTIONS | options).tolist()


@given(data=st.binary(max_size=300), seed=seeds)
def test_scalar_hashes_equal_their_python_twins(data: bytes, seed: int):
    assert xxh64(data, seed) == python_xxh64(data, seed)
    assert murmur3_32(data, seed) == python_murmur3(data, seed)


@given(
    keys=keys_of_bytes,
    seed=seeds,
    num_buckets=st.integers(1, 2**31 - 4),
    algorithm=st.sampled_from(["xxh64", "murmur3"]),
    layout=st.sampled_from(BYTES_LAYOUTS),
)
def test_codes_equal_their_python_twin(
    keys: list[bytes | None], seed: int, num_buckets: int, algorithm: Algorithm, layout: pa.DataType
):
    got = bucket_column(
        pa.array(keys, layout), seed=seed, num_buckets=num_buckets, algorithm=algorithm
    )
    assert got.tolist() == [python_code(key, algorithm, seed, num_buckets) for key in keys]


@given(keys=st.lists(st.binary(max_size=70), max_size=30), seed=seeds)
def test_hashes_equal_their_python_twins(keys: list[bytes], seed: int):
    column = pa.array(keys, pa.binary())
    murmur = hash64(column, seed=seed, algorithm="murmur3")
    assert hash64(column, seed=seed).tolist() == [python_xxh64(key, seed) for key in keys]
    assert murmur.tolist() == [python_murmur3(key, seed) for key in keys]


@given(
    keys=keys_of_bytes,
    seed=seeds,
    algorithm=st.sampled_from(["xxh64", "murmur3"]),
    empty_apart=st.booleans(),
)
def test_tokens_equal_their_python_twin(
    keys: list[bytes | None], seed: int, algorithm: Algorithm, empty_apart: bool
):
    placement = Placement(seed, algorithm, empty_apart=empty_apart)
    found = column_hashes(pa.array(keys, pa.binary()), placement, as_tokens=True)
    expected = [python_token(key, algorithm, seed, empty_apart=empty_apart) for key in keys]
    assert found.tolist() == expected


@given(
    keys=keys_of_bytes,
    name=st.text(st.characters(codec="utf-8")),
    num_rows=st.integers(2, 2**31 - 1),
    algorithm=st.sampled_from(["xxh64", "murmur3"]),
)
def test_rows_of_hash_column_equal_their_python_twin(
    keys: list[bytes | None], name: str, num_rows: int, algorithm: Algorithm
):
    column = pa.array(keys, pa.binary())
    seed = python_xxh64(name.encode(), 0)
    tokens = [python_token(key, algorithm, seed, empty_apart=False) for key in keys]
    expected = [1 + python_bucket(token, num_rows - 1) if token else 0 for token in tokens]
    found = hash_column(column, name=name, num_rows=num_rows, algorithm=algorithm)
    assert table_seed(name) == seed
    assert found.tolist() == expected


@given(keys=keys_of_bytes, seed=seeds, num_buckets=st.integers(1, 2**31 - 4))
def test_several_hashes_equal_their_python_twin(
    keys: list[bytes | None], seed: int, num_buckets: int
):
    column = pa.array(keys, pa.binary())
    placements = [Placement(seed, num_buckets=num_buckets, hash_number=j) for j in range(2)]
    found = table_rows([id_source(column, placement) for placement in placements])
    expected = [[python_code(key, "xxh64", seed, num_buckets, j) for j in range(2)] for key in keys]
    assert found.tolist() == expected
    tokens = column_hashes(column, placements[0], as_tokens=True)
    for number, placement in enumerate(placements):
        assert place_tokens(tokens, placement).tolist() == found[:, number].tolist()


@given(seed=seeds)
def test_hashes_that_look_like_null_or_empty_are_told_apart(seed: int):
    numbers = [integer_of_hash(found, seed) for found in range(4)]
    column = pa.array([*numbers, None], pa.uint64())
    assert hash64(column, seed=seed).tolist() == [0, 1, 2, 3, 0]
    tokens = column_hashes(column, Placement(seed), as_tokens=True)
    assert tokens.tolist() == [2, 3, 2, 3, 0]
    assert codes(column, seed=seed) == [3, 3, 3, 3, 0]


@given(values=columns)
def test_every_layout_of_text_gives_the_same_codes(values: list[str | None]):
    expected = [python_code(key, "xxh64", **OPTIONS) for key in as_bytes(values)]
    for layout in TEXT_LAYOUTS:
        assert codes(pa.array(values, layout)) == expected
    for layout in BYTES_LAYOUTS:
        assert codes(pa.array(as_bytes(values), layout)) == expected


@given(values=columns, layout=st.sampled_from(TEXT_LAYOUTS), data=st.data())
def test_slices_and_chunks_give_the_codes_of_the_whole(
    values: list[str | None], layout: pa.DataType, data: st.DataObject
):
    array = pa.array(values, layout)
    expected = codes(array)
    begin, end = sorted(data.draw(st.integers(0, len(values))) for _ in range(2))
    assert codes(array.slice(begin, end - begin)) == expected[begin:end]
    chunks = [array.slice(0, begin), array.slice(begin, end - begin), array.slice(end)]
    assert codes(pa.chunked_array(chunks, layout)) == expected


@given(
    values=columns,
    layout=st.sampled_from(TEXT_LAYOUTS),
    width=st.sampled_from([pa.int8(), pa.uint8(), pa.int32(), pa.uint64()]),
    data=st.data(),
)
def test_dictionaries_give_the_codes_of_plain_columns(
    values: list[str | None], layout: pa.DataType, width: pa.DataType, data: st.DataObject
):
    distinct = list(dict.fromkeys([*values, "unused", None]))
    positions = [distinct.index(value) for value in values]
    # A null may stand in the codes or in the dictionary's values.
    hidden = [
        None if v is None and data.draw(st.booleans()) else p
        for v, p in zip(values, positions, strict=True)
    ]
    column = pa.DictionaryArray.from_arrays(pa.array(hidden, width), pa.array(distinct, layout))
    expected = codes(pa.array(values, pa.string()))
    assert codes(column) == expected
    begin = data.draw(st.integers(0, len(values)))
    assert codes(column.slice(begin)) == expected[begin:]
    assert codes(pa.chunked_array([column.slice(0, begin), column.slice(begin)])) == expected


@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 127)), max_size=40),
    layout=st.sampled_from(
        [pa.int8(), pa.uint8(), pa.int16(), pa.uint32(), pa.uint64(), pa.float64()]
    ),
    begin=st.integers(0, 10),
)
def test_every_width_of_integer_gives_the_same_codes(
    values: list[int | None], layout: pa.DataType, begin: int
):
    keys = [None if value is None else value.to_bytes(8, "little") for value in values]
    expected = [python_code(key, "xxh64", **OPTIONS) for key in keys]
    assert codes(pa.array(values, layout).slice(begin)) == expected[begin:]


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40))
def test_signed_integers_hash_as_little_endian_bytes(ids: list[int]):
    keys = [number.to_bytes(8, "little", signed=True) for number in ids]
    for algorithm in ("xxh64", "murmur3"):
        expected = [python_code(key, algorithm, **OPTIONS) for key in keys]
        assert codes(pa.array(ids, pa.int64()), algorithm=algorithm) == expected


@pytest.mark.parametrize("length", range(70))
def test_no_layout_reads_past_the_end_of_a_value(length: int):
    key = bytes(range(1, length + 1))
    neighbours = [b"\xff" * 9, key, b"\xee" * 9]
    expected = python_code(key, "xxh64", **OPTIONS)
    for layout in BYTES_LAYOUTS:
        assert codes(pa.array(neighbours, layout))[1] == expected
        exact = pa.array([key], layout)
        assert codes(exact) == [expected]


@given(rows=st.integers(0, 600), nulls=st.integers(1, 9), begin=st.integers(0, 70))
def test_blocks_and_validity_bits_meet_at_any_row(rows: int, nulls: int, begin: int):
    numbers = np.arange(rows)
    column = pa.array(numbers, mask=numbers % nulls == 0)
    expected = np.where(numbers % nulls == 0, 0, codes(pa.array(numbers)))
    assert codes(column.slice(begin)) == expected[begin:].tolist()
