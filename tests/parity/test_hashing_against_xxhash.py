"""Column hashes against the public xxhash and mmh3 packages, on 100,000 values of every layout."""

import random

import mmh3
import numpy as np
import pyarrow as pa
import pytest
import xxhash

from recsys_mtl.encoding import hash64, table_seed

NUM_VALUES = 100_000
SEED = table_seed("user_id")
ALPHABET = "abcdefghij0123456789_- \0éßжя漢字🙂"


def expected_hashes(keys: list[bytes]):
    xx = np.array([xxhash.xxh64_intdigest(key, SEED) for key in keys], np.uint64)
    murmur = [mmh3.hash(key, SEED % 2**32, signed=False) for key in keys]
    return xx, np.array(murmur, np.uint64)


def check(column: pa.Array, keys: list[bytes]):
    xx, murmur = expected_hashes(keys)
    np.testing.assert_array_equal(hash64(column, seed=SEED), xx)
    np.testing.assert_array_equal(hash64(column, seed=SEED, algorithm="murmur3"), murmur)


def test_texts_of_every_layout_hash_as_xxhash_and_mmh3_say():
    draw = random.Random(1)
    longest = draw.choices([3, 12, 40, 300], [4, 8, 3, 1], k=NUM_VALUES)
    texts = ["".join(draw.choices(ALPHABET, k=draw.randint(0, most))) for most in longest]
    assert "" in texts
    column = pa.array(texts, pa.string())
    keys = [text.encode() for text in texts]
    xx, murmur = expected_hashes(keys)
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        laid_out = column.cast(kind)
        np.testing.assert_array_equal(hash64(laid_out, seed=SEED), xx)
        np.testing.assert_array_equal(hash64(laid_out, seed=SEED, algorithm="murmur3"), murmur)


def test_bytes_hash_as_xxhash_and_mmh3_say():
    draw = random.Random(2)
    keys = [draw.randbytes(draw.randint(0, 70)) for _ in range(NUM_VALUES)]
    check(pa.array(keys, pa.binary()), keys)


@pytest.mark.parametrize("kind", ["<i8", "<u8"])
def test_integers_hash_as_their_eight_bytes(kind: str):
    raw = np.random.default_rng(3).bytes(8 * NUM_VALUES)
    keys = [raw[begin : begin + 8] for begin in range(0, len(raw), 8)]
    check(pa.array(np.frombuffer(raw, kind)), keys)
