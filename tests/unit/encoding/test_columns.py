"""Columns as numbers: bags, vectors and numbers, and the errors of bad ones."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl.encoding.columns import (
    read_numbers,
    read_several,
    read_source,
    read_tokens,
    read_vectors,
)
from recsys_mtl.encoding.maps import BucketMap, count_distinct
from recsys_mtl.encoding.sources import table_rows
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    History,
    IdFeature,
    ListFeature,
    Schema,
    Vector,
)

SCHEMA = Schema(context=[Categorical("c")], tasks=[Binary("y", label="y")])
BUCKETS = 1 << 20
ROWS = BucketMap(BUCKETS, np.arange(BUCKETS))
"""Keeps all buckets: a value's row is 3 + its bucket."""
NAN, INF = float("nan"), float("inf")
LISTS = [["a", "b", "c"], None, [], ["a"], ["b", "b", "a value too long for a view"]]


def read_ids(schema: Schema, feature: Categorical, frame: pl.DataFrame):
    return table_rows([read_source(schema, feature, frame[feature.source], ROWS)])[:, 0]


def distinct(frame: pl.DataFrame, feature: IdFeature):
    return count_distinct(read_tokens(SCHEMA, feature, frame)[0])


def code(value: Any, table: str = "x"):
    if value is None:
        return 0
    frame = pl.DataFrame({"v": [value]})
    return int(read_ids(SCHEMA, Categorical("v", table=table), frame)[0])


def read(feature: ListFeature, values: Any, **others: Any):
    """Read a list column as one list of (code, weight) per row."""
    frame = pl.DataFrame({feature.source: values, **others})
    found = read_several(SCHEMA, feature, frame, ROWS)
    pairs = list(zip(found.values.tolist(), found.weights.tolist(), strict=True))
    assert found.offsets.dtype == np.int64
    assert found.weights.dtype == np.float32
    return [pairs[start:end] for start, end in pairwise(found.offsets.tolist())]


def weighed(rows: Any, weight: Any):
    return [[(code(value), weight(row)) for value in row or []] for row in rows]


def mean(row: list[Any]):
    return float(np.float32(1 / len(row)))


@pytest.mark.parametrize(
    "values",
    [
        LISTS,
        pl.Series(LISTS, dtype=pl.List(pl.Categorical)),
        pl.concat([pl.Series(LISTS[:2]), pl.Series(LISTS[2:])], rechunk=False),
        pl.Series([["z"], *LISTS, ["z"]]).slice(1, 5),
    ],
)
def test_bag_is_its_ids_each_weighed_by_one_over_their_number(values: Any):
    assert read(Bag("x"), values) == weighed(LISTS, mean)


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Int8), pl.List(pl.Int64), pl.Array(pl.Int32, 2), pl.List(pl.UInt64)]
)
def test_bag_of_integers_is_the_same_for_every_type(dtype: pl.DataType):
    rows = [[1, 2], None, [3, 1]]
    assert read(Bag("x"), pl.Series(rows, dtype=dtype)) == weighed(rows, mean)


def test_array_of_strings_with_a_null_row_keeps_the_others():
    rows = [["a", "b"], None, ["a value too long for a view", "c"]]
    column = pl.Series(rows, dtype=pl.Array(pl.String, 2))
    assert read(Bag("x"), column) == weighed(rows, mean)


def test_joined_strings_are_the_lists_they_join():
    joined = ["a|b|c", None, "", "a", "b|b|a value too long for a view"]
    for values in (joined, pl.Series(joined, dtype=pl.Categorical)):
        assert read(Bag("x", separator="|"), values) == weighed(LISTS, mean)


def test_empty_pieces_of_joined_strings_are_dropped():
    values = ["|a||b|", "||", "|", "a", None]
    expected = weighed([["a", "b"], [], [], ["a"], []], mean)
    assert read(Bag("x", separator="|"), values) == expected


def test_separator_is_taken_literally_and_may_be_long():
    assert read(Bag("x", separator="."), ["a.b"]) == weighed([["a", "b"]], mean)
    assert read(Bag("x", separator=" and "), ["a and b,c"]) == weighed([["a", "b,c"]], mean)


def test_white_space_around_pieces_is_no_part_of_them():
    values = ["a, b", " b,\ta b\n", " , ", "a,b"]
    expected = weighed([["a", "b"], ["b", "a b"], [], ["a", "b"]], mean)
    assert read(Bag("x", separator=","), values) == expected
    assert distinct(pl.DataFrame({"x": values}), Bag("x", separator=",")) == 3
    assert read(Bag("x", separator=", "), ["a, b,c"]) == weighed([["a", "b,c"]], mean)


def test_null_and_empty_bag_encode_alike():
    assert read(Bag("x"), [["a"], None, []])[1:] == [[], []]
    assert read(Bag("x"), pl.Series([None, None])) == [[], []]
    assert read(Bag("x"), pl.Series([[], None], dtype=pl.List(pl.Null))) == [[], []]
    assert read(Bag("x", separator="|"), [None, ""]) == [[], []]


def test_null_inside_a_bag_is_the_null_row():
    assert read(Bag("x"), [["a", None]]) == [[(code("a"), 0.5), (0, 0.5)]]


def test_sum_pooling_weighs_every_id_by_one():
    assert read(Bag("x", pooling="sum"), LISTS) == weighed(LISTS, lambda _: 1.0)


def test_weights_are_divided_by_their_sum_for_the_mean_only():
    values, weights = [["a", "b"], None, ["c"], ["a", "b"]], [[1.0, 3.0], None, [5.0], [0.0, 0.0]]
    found = read(Bag("x", weights="w"), values, w=weights)
    assert [[weight for _, weight in row] for row in found] == [[0.25, 0.75], [], [1.0], [0, 0]]
    summed = read(Bag("x", weights="w", pooling="sum"), values, w=weights)
    assert [[weight for _, weight in row] for row in summed] == [[1, 3], [], [5], [0, 0]]


def test_weights_may_be_integers_and_go_with_joined_strings():
    found = read(Bag("x", separator="|", weights="w"), ["a|b", "", None], w=[[1, 3], [], None])
    assert found == [[(code("a"), 0.25), (code("b"), 0.75)], [], []]


def test_bag_keeps_its_first_ids_and_history_its_last():
    rows = [["a", "b", "c", "d"], None, ["e"], ["a value too long for a view", "f", "g"]]
    first = [row and row[:2] for row in rows]
    last = [row and row[-2:] for row in rows]
    assert read(Bag("x", max_length=2), rows) == weighed(first, mean)
    assert read(History("x", max_length=2), rows) == weighed(last, mean)
    assert read(History("x", max_length=9), rows) == weighed(rows, mean)


def test_cut_bag_pools_the_weights_it_keeps():
    bag = Bag("x", weights="w", max_length=2)
    found = read(bag, [["a", "b", "c"], ["d"]], w=[[1.0, 3.0, 9.0], [2.0]])
    assert [[weight for _, weight in row] for row in found] == [[0.25, 0.75], [1.0]]


def test_no_rows_have_one_offset():
    for feature in (Bag("x"), Bag("x", max_length=1), Bag("x", separator="|")):
        dtype = pl.String if feature.separator else pl.List(pl.String)
        assert read(feature, pl.Series([], dtype=dtype)) == []


@pytest.mark.parametrize(
    ("feature", "columns", "text"),
    [
        (Bag("x"), {"x": ["a|b"]}, "must hold lists. Found String. If it holds joined strings"),
        (Bag("x"), {"x": [1]}, "Feature 'x' reads column 'x', which must hold lists. Found Int64"),
        (Bag("b", column="x"), {"x": [1]}, "Feature 'b' reads column 'x', which must hold lists"),
        (Bag("x", separator="|"), {"x": [["a"]]}, "must hold strings to be split at '|'"),
        (Bag("x"), {"x": [[0.5]]}, "Feature 'x' reads column 'x': Ids held as floats must be"),
        (Bag("x"), {"x": [[[1]]]}, "Feature 'x' reads column 'x': A categorical column must hold"),
        (
            Bag("x", weights="w"),
            {"x": [["a"], ["b"]], "w": [[1.0], [1.0, 2.0]]},
            "column 'w', which must hold one weight per id. Found 2 weights for 1 ids in row 1",
        ),
        (Bag("x", weights="w"), {"x": [["a"]], "w": [None]}, "Found 0 weights for 1 ids in row 0"),
        (Bag("x", weights="w"), {"x": [["a"]], "w": [1.0]}, "lists of numbers. Found Float64"),
        (Bag("x", weights="w"), {"x": [["a"]], "w": [["1"]]}, "lists of numbers. Found List(Str"),
        (
            Bag("x", weights="w"),
            {"x": [["a"], [], ["b", "c"]], "w": [[1.0], [], [1.0, -1.0]]},
            "Feature 'x' reads weights from column 'w', which must hold finite weights of at least"
            " 0. Row 2",
        ),
        (Bag("x", weights="w"), {"x": [["a", "b"]], "w": [[1.0, None]]}, "Row 0 breaks this"),
        (Bag("x", weights="w"), {"x": [["a"]], "w": [[NAN]]}, "finite weights of at least 0"),
        (Bag("x", weights="w"), {"x": [["a"]], "w": [[INF]]}, "finite weights of at least 0"),
    ],
)
def test_bad_list_column_is_named(feature: Any, columns: Any, text: str):
    with pytest.raises(EncodingError, match=re.escape(text)):
        read_several(SCHEMA, feature, pl.DataFrame(columns), ROWS)


@pytest.mark.parametrize(
    "dtype", [pl.Datetime, pl.Duration, pl.Int128, pl.List(pl.Int64), pl.Decimal(5, 1)]
)
def test_column_that_holds_no_ids_is_named(dtype: pl.DataType):
    values = [[1]] if isinstance(dtype, pl.List) else [1]
    frame = pl.DataFrame({"c": pl.Series(values).cast(dtype)})
    with pytest.raises(EncodingError, match=r"^Feature 'x' reads column 'c': "):
        read_ids(SCHEMA, Categorical("x", column="c"), frame)


def test_table_and_hash_choose_the_code():
    frame = pl.DataFrame({"v": ["a"]})
    murmur = Schema(context=[Categorical("v")], tasks=SCHEMA.tasks, hash="murmur3")
    feature = Categorical("v")
    assert code("a", table="v") != code("a", table="other")
    assert read_ids(murmur, feature, frame)[0] != code("a", table="v")


def test_distinct_values_are_counted_without_null():
    frame = pl.DataFrame(
        {"v": ["a", "b", "a", None, ""], "x": LISTS, "j": ["a|b", "b|", "", "|", None]}
    )
    assert distinct(frame, Categorical("v")) == 3
    assert distinct(frame, Bag("x")) == 4
    assert distinct(frame, Bag("j", separator="|")) == 2
    assert distinct(frame.clear(), Bag("x")) == distinct(frame.clear(), Categorical("v")) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, None, 3], [1, NAN, 3]),
        ([0.5, NAN, None], [0.5, NAN, NAN]),
        ([True, False, None], [1, 0, NAN]),
        (pl.Series(["0.5"]).cast(pl.Decimal(3, 2)), [0.5]),
        ([None, None], [NAN, NAN]),
        (pl.Series([], dtype=pl.Int8), []),
    ],
)
def test_numbers_are_floats_with_nan_for_null(values: Any, expected: list[float]):
    found = read_numbers(pl.Series("x", values), "f")
    np.testing.assert_array_equal(found, np.array(expected))
    assert found.dtype == np.float64


def test_infinite_number_is_named_with_its_row():
    with pytest.raises(
        EncodingError, match=r"'f' reads column 'x'.* Found 2 inf.* first in row 1\."
    ):
        read_numbers(pl.Series("x", [1.0, INF, NAN, -INF]), "f")


@pytest.mark.parametrize("values", [["1"], [[1]], pl.Series([1]).cast(pl.Datetime)])
def test_column_that_holds_no_numbers_is_named(values: Any):
    with pytest.raises(
        EncodingError, match=r"'f' reads column 'x', which must hold numbers\. Found"
    ):
        read_numbers(pl.Series("x", values), "f")


@pytest.mark.parametrize(
    "dtype",
    [pl.List(pl.Float64), pl.List(pl.Float32), pl.Array(pl.Float32, 2), pl.List(pl.Int8)],
)
def test_vectors_are_rows_and_null_is_zeros(dtype: pl.DataType):
    column = pl.Series("x", [[9, 9], [1, 2], None, [3, 4]], dtype=dtype).slice(1)
    found = read_vectors(column, Vector("x", dim=2))
    assert found.tolist() == [[1, 2], [0, 0], [3, 4]]
    assert found.dtype == np.float32
    assert read_vectors(column.clear(), Vector("x", dim=2)).shape == (0, 2)


def test_column_of_nulls_is_zero_vectors():
    assert read_vectors(pl.Series("x", [None]), Vector("x", dim=3)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([[1.0, 2.0], None, [1.0]], "lists of 2 numbers. Found length 1 in row 2"),
        ([[], [1.0, 2.0]], "lists of 2 numbers. Found length 0 in row 0"),
        (pl.Series([[1.0] * 3], dtype=pl.Array(pl.Float64, 3)), "Found length 3 in row 0"),
        ([["a", "b"]], "lists of 2 numbers. Found List(String)"),
        ([1.0], "lists of 2 numbers. Found Float64"),
        ([[0.0, 1.0], [NAN, 1.0]], "Found null, NaN or infinity inside the list in row 1"),
        ([None, [0.0, None]], "Found null, NaN or infinity inside the list in row 1"),
        ([[0.0, 1e39]], "Found null, NaN or infinity inside the list in row 0"),
    ],
)
def test_bad_vector_is_named(values: Any, text: str):
    with pytest.raises(EncodingError, match=f"'v' reads column 'x', .*{re.escape(text)}"):
        read_vectors(pl.Series("x", values), Vector("v", column="x", dim=2))
