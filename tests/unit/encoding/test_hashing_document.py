"""docs/hashing.md states what the code does: its tables of test vectors are read and checked."""

import json
import re
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from recsys_mtl.encoding import HASH_VERSION, hash64, hash_column, table_seed
from recsys_mtl.encoding.maps import BucketMap
from recsys_mtl.encoding.sources import id_source, table_rows

TEXT = (Path(__file__).parents[3] / "docs" / "hashing.md").read_text("utf-8")
SEED = table_seed("user_id")
NUM_BUCKETS = 2**20
TYPES = {"string": pa.string(), "int64": pa.int64(), "bigint": pa.int64()}


def rows_of(heading: str):
    """The rows of the table whose first line is this one, as lists of cells without backticks."""
    lines = takewhile(bool, TEXT.split(heading + "\n")[1].splitlines()[1:])
    cells = [re.findall(r"(?<=\| )(.*?)(?= \|)", line) for line in lines]
    return [[cell.strip("`") for cell in row] for row in cells]


VECTORS = rows_of("| value | type | XXH64 | MurmurHash3 | row | buckets |")
SPARK = rows_of("| value | Spark type | xxhash64 |")


def column_of(value: str, kind: str):
    return pa.array([json.loads(value)], TYPES[kind])


def test_document_has_the_vectors_that_tell_implementations_apart():
    values = {json.loads(row[0]) for row in VECTORS}
    assert values >= {"", 0, -1, 5, 2**24 + 1, 2**31, 2**63 - 1, -(2**63)}
    texts = [value for value in values if isinstance(value, str)]
    assert max(len(text.encode()) for text in texts) > 32
    assert any("\0" in text for text in texts)
    assert any(not text.isascii() for text in texts)
    assert len(SPARK) == 5


def test_seed_in_the_document_is_that_of_the_table():
    assert f"its seed `{SEED:016x}`" in TEXT
    assert xxhash.xxh64_intdigest(b"user_id", 0) == SEED


def test_version_in_the_document_is_that_of_the_code():
    assert f"`HASH_VERSION` is {HASH_VERSION}." in TEXT


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: row[0])
def test_hashes_and_rows_are_those_of_the_document(row: list[str]):
    value, kind, xxh64, murmur3, table_row, _ = row
    column = column_of(value, kind)
    assert f"{hash64(column, seed=SEED)[0]:016x}" == xxh64
    assert f"{hash64(column, seed=SEED, algorithm='murmur3')[0]:08x}" == murmur3
    assert hash_column(column, name="user_id", num_rows=1_000_003).tolist() == [int(table_row)]


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: row[0])
def test_buckets_of_several_hashes_are_those_of_the_document(row: list[str]):
    value, kind, xxh64, _, _, buckets = row
    upper, lower = divmod(int(xxh64, 16), 2**32)
    expected = [(upper + j * lower) % 2**32 * NUM_BUCKETS >> 32 for j in range(2)]
    assert buckets == ", ".join(map(str, expected))
    kept = BucketMap(NUM_BUCKETS, np.arange(NUM_BUCKETS))
    placements = [kept.placement(SEED, "xxh64", number) for number in range(2)]
    found = table_rows([id_source(column_of(value, kind), placement) for placement in placements])
    assert found.tolist() == [[2] * 2 if value == '""' else [3 + bucket for bucket in expected]]


@pytest.mark.parametrize("row", SPARK, ids=lambda row: row[0])
def test_seed_42_gives_the_hashes_of_spark(row: list[str]):
    value, kind, expected = row
    assert hash64(column_of(value, kind), seed=42).view(np.int64).tolist() == [int(expected)]


@pytest.mark.parametrize(
    ("seed", "expected"), [(0, 0xF74CB1451B32B8CF), (2654435761, 0x9C44B77FBCC302C5)]
)
def test_integers_hash_as_in_the_test_suite_of_spark(seed: int, expected: int):
    column = pa.array([0xDD2F535E4B1FFF9E], pa.uint64())
    assert hash64(column, seed=seed).tolist() == [expected]
