"""`hash_table`: sizes, threads, misaligned chunks, `out` and what it refuses."""

from typing import Any

import numpy as np
import pandas
import polars as pl
import pyarrow as pa
import pytest

from recsys_mtl.encoding import hash_column, hash_table
from recsys_mtl.errors import EncodingError

FRAME = pl.DataFrame({"id": [1, 2, None], "word": ["a", "", "a text too long for a view"]})
CELLS = 131_072
"""More cells than these are shared out to threads."""


def cut(array: pa.Array, lengths: int):
    """Cut an array into chunks of this length, with an empty one in front."""
    pieces = [array.slice(begin, lengths) for begin in range(0, len(array), lengths)]
    return pa.chunked_array([array.slice(0, 0), *pieces], array.type)


def by_column(table: Any, num_rows: int):
    columns = [
        hash_column(table[name], name=name, num_rows=num_rows, num_threads=1)
        for name in ("id", "word", "city", "nothing")
    ]
    return np.stack(columns, axis=1)


@pytest.fixture(scope="module")
def plain():
    rows = CELLS + 17
    numbers = np.arange(rows)
    return pa.table(
        {
            "id": pa.array(numbers * 2**33, mask=numbers % 7 == 3),
            "word": pa.array(numbers).cast(pa.string()).cast(pa.string_view()),
            "city": pa.array((numbers % 50).astype(str)).dictionary_encode(),
            "nothing": pa.nulls(rows),
        }
    )


@pytest.mark.parametrize("num_threads", [1, 2, 5, None])
def test_neither_threads_nor_misaligned_chunks_change_rows(
    plain: pa.Table, num_threads: int | None
):
    lengths = {"id": 40_000, "word": 999, "city": 65_537, "nothing": 100_001}
    chunked = pa.table({n: cut(plain[n].chunk(0), length) for n, length in lengths.items()})
    assert len({chunked[name].num_chunks for name in lengths}) == len(lengths)
    expected = by_column(plain, 10**6)
    assert (expected[:, 3] == 0).all()
    for table in (plain, chunked, pl.from_arrow(chunked, rechunk=False)):
        found = hash_table(table, num_rows=10**6, num_threads=num_threads)
        np.testing.assert_array_equal(found, expected)


def test_thread_count_does_not_change_one_long_column(plain: pa.Table):
    expected = by_column(plain, 1000)[:, 1:2]
    for table in (plain.select(["word"]), pa.table({"word": cut(plain["word"].chunk(0), 1000)})):
        for num_threads in (1, 2, 3):
            found = hash_table(table, num_rows=1000, num_threads=num_threads)
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [0, 1, 7, 255, 256, 257, 511, 512, 513, 1000])
@pytest.mark.parametrize("begin", [0, 3])
def test_tables_of_any_length_give_the_rows_of_the_whole(plain: pa.Table, rows: int, begin: int):
    expected = by_column(plain, 1000)[begin : begin + rows]
    found = hash_table(plain.slice(begin, rows), num_rows=1000)
    assert found.shape == (rows, 4)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "table",
    [
        FRAME.clear(),
        FRAME.clear().to_pandas(),
        FRAME.clear().to_arrow(),
        pa.table({"id": pa.chunked_array([], pa.int64()), "word": pa.chunked_array([], pa.utf8())}),
    ],
)
def test_table_without_rows_gives_none(table: Any):
    assert hash_table(table, num_rows=9).shape == (0, 2)
    assert hash_table(table, num_rows=9, out=np.empty((0, 2), np.int32)).shape == (0, 2)


def test_sizes_choose_and_order_the_columns():
    for table in (FRAME, FRAME.to_pandas(), FRAME.to_arrow(), FRAME.to_arrow().to_batches()[0]):
        found = hash_table(table, num_rows={"word": 50, "id": np.int64(7)})
        assert found[:, 0].tolist() == hash_column(FRAME["word"], name="word", num_rows=50).tolist()
        assert found[:, 1].tolist() == hash_column(FRAME["id"], name="id", num_rows=7).tolist()
        assert hash_table(table, num_rows={"id": 7}).tolist() == found[:, 1:].tolist()


def test_same_value_has_unrelated_rows_in_columns_of_different_names():
    table = pl.DataFrame({"a": range(10_000), "b": range(10_000)})
    found = hash_table(table, num_rows=1001)
    assert abs(int((found[:, 0] == found[:, 1]).sum()) - 10) < 13  # 4 deviations


def test_out_is_overwritten_whole_and_returned():
    expected = hash_table(FRAME, num_rows=99)
    out = np.full((3, 2), -7, np.int32)
    for _ in range(2):
        assert hash_table(FRAME, num_rows=99, out=out) is out
        np.testing.assert_array_equal(out, expected)
    larger = np.full((5, 2), -7, np.int32)
    hash_table(FRAME, num_rows=99, out=larger[1:4])
    np.testing.assert_array_equal(larger[1:4], expected)
    assert (larger[[0, 4]] == -7).all()


def read_only():
    out = np.zeros((3, 2), np.int32)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((3, 3), np.int32),
        np.zeros((2, 2), np.int32),
        np.zeros(6, np.int32),
        np.zeros((3, 2), np.int64),
        np.zeros((3, 2), np.uint32),
        np.zeros((3, 2), ">i4"),
        np.zeros((3, 2), np.int32, order="F"),
        np.zeros((3, 4), np.int32)[:, ::2],
        np.zeros(25, np.uint8)[1:].view(np.int32).reshape(3, 2),
        read_only(),
    ],
    ids=["wide", "short", "flat", "int64", "uint32", "big endian", "F", "strided", "odd", "locked"],
)
def test_out_that_does_not_fit_is_refused_and_left_alone(out: np.ndarray):
    with pytest.raises(
        ValueError, match=r"out must be a writable, C-contiguous int32 array .*3, 2"
    ):
        hash_table(FRAME, num_rows=9, out=out)
    assert not out.any()


@pytest.mark.parametrize(
    "table",
    [FRAME, FRAME.to_pandas(), FRAME.to_arrow(), FRAME.to_arrow().to_batches()[0]],
    ids=["polars", "pandas", "table", "batch"],
)
def test_missing_column_is_named_with_those_there_are(table: Any):
    with pytest.raises(
        EncodingError, match=r"one column 'Id'\. Found 0; columns: \['id', 'word'\]"
    ):
        hash_table(table, num_rows={"id": 5, "Id": 7})


def test_column_that_is_there_twice_is_refused():
    twice = pa.table([pa.array([1]), pa.array([2])], names=["a", "a"])
    for table in (twice, pandas.DataFrame([[1, 2]], columns=["a", "a"])):
        with pytest.raises(EncodingError, match=r"one column 'a'. Found 2"):
            hash_table(table, num_rows=5)


def test_column_of_another_type_is_named():
    with pytest.raises(EncodingError, match=r"Column 'when': .*got timestamp"):
        hash_table(pl.DataFrame({"when": [None]}, {"when": pl.Datetime}), num_rows=5)


@pytest.mark.parametrize(
    "table",
    [[1], {"a": [1]}, "a.parquet", FRAME.lazy(), FRAME["id"]],
    ids=lambda t: type(t).__name__,
)
def test_what_is_no_table_is_refused(table: Any):
    with pytest.raises(TypeError, match=f"A table must be .* Found {type(table).__name__}"):
        hash_table(table, num_rows=5)


def test_series_of_pandas_is_no_table():
    with pytest.raises(TypeError, match=r"A table must be .* Found Series"):
        hash_table(pandas.Series([1]), num_rows=5)


def test_names_that_are_no_text_are_refused():
    with pytest.raises(TypeError, match=r"must be strings, which are hashed. Found 0"):
        hash_table(pandas.DataFrame([[1, 2]]), num_rows=5)


@pytest.mark.parametrize("num_rows", [1, 0, -5, 2**31, {"id": 1}])
def test_sizes_out_of_range_are_refused(num_rows: Any):
    with pytest.raises(ValueError, match="num_rows must be between 2 and 2147483647"):
        hash_table(FRAME, num_rows=num_rows)


def test_sizes_that_are_no_integers_are_refused():
    with pytest.raises(TypeError, match="integer"):
        hash_table(FRAME, num_rows=5.5)


@pytest.mark.parametrize(("table", "num_rows"), [(pl.DataFrame(), 5), (FRAME, {})])
def test_no_column_at_all_is_refused(table: pl.DataFrame, num_rows: Any):
    with pytest.raises(ValueError, match="at least one column"):
        hash_table(table, num_rows=num_rows)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 9, 20])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 511, 512, 513, 1_031])
def test_any_number_of_columns_and_rows_is_hashed_as_by_column(width, rows):
    columns: list[Any] = [
        np.arange(rows) * (place + 1)
        if place % 2
        else [f"{place} and {row}" for row in range(rows)]
        for place in range(width)
    ]
    kinds = [pl.Int64 if place % 2 else pl.String for place in range(width)]
    frame = pl.DataFrame(
        [
            pl.Series(str(place), column, kind)
            for place, (column, kind) in enumerate(zip(columns, kinds, strict=True))
        ]
    )
    around = np.full((rows + 2, width), -7, np.int32)
    found = hash_table(frame, num_rows=1_003, num_threads=1, out=around[1:-1])
    expected = [hash_column(frame[name], name=name, num_rows=1_003) for name in frame.columns]
    np.testing.assert_array_equal(found, np.stack(expected, axis=1))
    assert (around[[0, -1]] == -7).all()


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.uint32(), pa.int64()])
@pytest.mark.parametrize("missing", [False, True])
def test_dictionary_codes_of_any_width_give_what_plain_strings_give(kind, missing):
    codes = np.random.default_rng(0).integers(0, 100, 1_300)
    mask = (codes % 7 == 0) if missing else None
    words = pa.array([None if one == 5 else f"word {one}" for one in range(100)])
    column = pa.DictionaryArray.from_arrays(pa.array(codes, kind, mask=mask), words)
    for part in (column, column.slice(3, 1_029)):
        plain = part.cast(pa.string())
        found = hash_column(part, name="word", num_rows=1_003)
        np.testing.assert_array_equal(found, hash_column(plain, name="word", num_rows=1_003))
