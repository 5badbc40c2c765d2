"""A key index finds what a Python dictionary finds."""

import re

import numpy as np
import polars as pl
import pytest

from recsys_mtl.encoding.keys import ABSENT, KeyIndex
from recsys_mtl.errors import EncodingError

INTEGERS = [pl.Int16, pl.UInt16, pl.Int32, pl.UInt32, pl.Int64, pl.UInt64]
BIG = [2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]


def expected(keys: pl.Series, table: pl.Series):
    places = {key: row for row, key in enumerate(table.to_list())}
    return [places.get(key, ABSENT) for key in keys.to_list()]


def check(keys: pl.Series, table: pl.Series):
    """Compare with a dictionary, for few keys and for many."""
    assert KeyIndex(table).locate(keys).tolist() == expected(keys, table)
    index = KeyIndex(table)
    for key in range(len(keys)):
        one = keys.slice(key, 1)
        assert index.locate(one).tolist() == expected(one, table)
    many = pl.concat([keys] * (len(table) + 1))
    found = index.locate(many)
    assert found.tolist() == expected(many, table)
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("keys", "table"),
    [
        (pl.Series([3, 7, None, 5, 3]), pl.Series([7, 3, 4])),
        (pl.Series(["b", None, "", "zz", "a"]), pl.Series(["a", "b", ""])),
        (pl.Series([b"b", None, b"", b"\0"]), pl.Series([b"\0", b"b"])),
        (pl.Series([True, None, False]), pl.Series([False])),
        (pl.Series([1, 2, None]).cast(pl.Date), pl.Series([2, 9]).cast(pl.Date)),
        (pl.Series([*BIG, 5, -(2**63)]), pl.Series(BIG[::-1])),
    ],
)
def test_keys_are_found_as_a_dictionary_finds_them(keys: pl.Series, table: pl.Series):
    check(keys, table)


def test_many_random_keys_are_found():
    rng = np.random.default_rng(2)
    table = pl.Series(rng.permutation(5_000)[:3_000])
    keys = pl.Series(rng.integers(0, 5_000, 2_900))
    assert KeyIndex(table).locate(keys).tolist() == expected(keys, table)
    texts = KeyIndex(table.cast(pl.String)).locate(keys.cast(pl.String))
    assert texts.tolist() == expected(keys, table)


@pytest.mark.parametrize("ours", INTEGERS)
@pytest.mark.parametrize("theirs", INTEGERS)
def test_integers_meet_whatever_their_width(ours: pl.DataType, theirs: pl.DataType):
    check(pl.Series([300, 5, 7, None], dtype=theirs), pl.Series([7, 300, 12], dtype=ours))


def test_integer_outside_the_other_type_is_absent_not_wrapped():
    check(pl.Series([-1, 5], dtype=pl.Int64), pl.Series([2**64 - 1, 5], dtype=pl.UInt64))
    check(pl.Series([2**64 - 1, 5], dtype=pl.UInt64), pl.Series([-1, 5], dtype=pl.Int64))
    check(pl.Series([256, 300], dtype=pl.Int64), pl.Series([0, 44], dtype=pl.UInt8))


@pytest.mark.parametrize("ours", [pl.String, pl.Categorical, pl.Enum(["a", "b", "c"])])
@pytest.mark.parametrize("theirs", [pl.String, pl.Categorical, pl.Enum(["c", "b", "x"])])
def test_strings_and_categories_meet_by_their_text(ours: pl.DataType, theirs: pl.DataType):
    check(pl.Series(["c", None, "x", "b"], dtype=theirs), pl.Series(["a", "b", "c"], dtype=ours))


def test_keys_without_a_type_and_tables_without_rows_are_absent():
    assert KeyIndex(pl.Series([1, 2, 3])).locate(pl.Series([None, None])).tolist() == [-1, -1]
    assert KeyIndex(pl.Series([], dtype=pl.Int64)).locate(pl.Series([1])).tolist() == [-1]
    assert KeyIndex(pl.Series([], dtype=pl.Null)).locate(pl.Series([1])).tolist() == [-1]
    assert KeyIndex(pl.Series([1])).locate(pl.Series([], dtype=pl.Int8)).tolist() == []


@pytest.mark.parametrize(
    ("keys", "table", "text"),
    [
        ([1], ["1"], "interactions hold Int64, the side table String"),
        (["1"], [1], "interactions hold String, the side table Int64"),
        ([1.0], ["1"], "interactions hold Float64, the side table String"),
        ([1], [1.5], "interactions hold Int64, the side table Float64"),
        ([True], [1], "interactions hold Boolean, the side table Int64"),
    ],
)
def test_keys_of_another_type_are_refused(keys: list[object], table: list[object], text: str):
    with pytest.raises(EncodingError, match=f"Key 'user_id' must have one type.*{re.escape(text)}"):
        KeyIndex(pl.Series("user_id", table)).locate(pl.Series("user_id", keys))


@pytest.mark.parametrize("dtype", INTEGERS)
def test_floats_that_pandas_made_of_integers_meet_integers(dtype: pl.DataType):
    floats = pl.Series([7.0, float("nan"), 300.0, 5.0, None])
    whole, table = pl.Series([7, None, 300, 5, None]), pl.Series([300, 12, 7], dtype=dtype)
    check(whole, table)
    for many in (1, 4):
        found = KeyIndex(table).locate(pl.concat([floats] * many))
        assert found.tolist() == expected(whole, table) * many
    for keys in (table, table.cast(pl.Float64)):
        found = KeyIndex(pl.Series([5.0, 300.0, 7.0, 2.0**53 - 1])).locate(keys)
        assert found.tolist() == [1, ABSENT, 2]


def test_float_outside_the_tables_type_is_absent():
    keys = pl.Series([-1.0, 300.0, 5.0])
    assert KeyIndex(pl.Series([255, 44, 5], dtype=pl.UInt8)).locate(keys).tolist() == [-1, -1, 2]


@pytest.mark.parametrize("wrong", [1.5, 2.0**53, -(2.0**53), float("inf")])
def test_float_that_is_no_integer_key_is_named(wrong: float):
    keys = pl.Series("user_id", [1.0, None, float("nan"), wrong])
    text = f"Key 'user_id' must hold whole numbers below 2**53 .* Found {wrong!r} in"
    with pytest.raises(EncodingError, match=text.replace("**", r"\*\*").replace("+", r"\+")):
        KeyIndex(pl.Series([1, 2])).locate(keys)
