"""A value has one row whatever library, type, layout, chunks or dictionary it comes from."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow as pa
import pytest
import xxhash
from hypothesis import example, given
from hypothesis import strategies as st

from recsys_mtl.encoding import hash64, hash_column, hash_table, table_seed
from recsys_mtl.errors import EncodingError

NUM_ROWS = 1_000_003
EDGES = [0, -1, 5, 2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1]
LIMITS = [2**63 - 1, -(2**63)]
WIDTHS = [getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)]

texts = st.lists(
    st.one_of(
        st.none(),
        st.sampled_from(
            ["", "\0", "a\0", "a", "é", "用户", "x" * 12, "x" * 13, "x" * 32, "x" * 99]
        ),
        st.text(st.characters(codec="utf-8"), max_size=20),
    ),
    max_size=30,
)
integers = st.lists(
    st.one_of(st.none(), st.sampled_from(EDGES + LIMITS), st.integers(-(2**63), 2**63 - 1)),
    max_size=30,
)


def row_of(value: Any, name: str = "x", num_rows: int = NUM_ROWS):
    """The definition, by the public xxhash."""
    if value is None:
        return 0
    key = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    found = xxhash.xxh64_intdigest(key, xxhash.xxh64_intdigest(name.encode(), 0))
    return 1 + ((found >> 32) * (num_rows - 1) >> 32)


def rows(column: Any, **options: Any):
    return hash_column(column, **{"name": "x", "num_rows": NUM_ROWS} | options).tolist()


def pandas_texts(values: list[str | None]):
    yield pandas.Series(values, dtype=object)
    yield pandas.Series(values, dtype="str")
    yield pandas.Series(values, dtype="category")
    yield pandas.Series(values, dtype=pandas.StringDtype("python"))
    yield pandas.Series(values, dtype=pandas.StringDtype("pyarrow"))
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield pandas.Series(pandas.arrays.ArrowExtensionArray(pa.array(values, kind)))
    yield pandas.Series([None if v is None else v.encode() for v in values], dtype=object)


def polars_texts(values: list[str | None]):
    plain = polars.Series("x", values, polars.String)
    distinct = [value for value in dict.fromkeys(values) if value is not None]
    yield from (plain, plain.cast(polars.Binary), plain.cast(polars.Categorical))
    yield plain.cast(polars.Enum([*distinct, "\x01 is in no row"]))


@given(values=texts)
@example(values=["a", None, "", "x" * 40])
def test_text_has_one_row_from_every_library_and_type(values: list[str | None]):
    expected = [row_of(value) for value in values]
    for series in polars_texts(values):
        assert rows(series) == expected
        assert rows(series.to_arrow()) == expected
    for series in pandas_texts(values):
        assert rows(series) == expected


@given(values=integers)
@example(values=[*EDGES, *LIMITS, None])
def test_integer_has_one_row_from_every_library_and_type(values: list[int | None]):
    expected = [row_of(value) for value in values]
    arrow = pa.array(values, pa.int64())
    origins = [
        arrow,
        arrow.dictionary_encode(),
        polars.Series(values, dtype=polars.Int64),
        pandas.Series(values, dtype="Int64"),
        pandas.Series(values, dtype="Int64").astype("category"),
        pandas.Series(pandas.arrays.ArrowExtensionArray(arrow)),
    ]
    if any(value is not None for value in values):  # else a column without a type
        origins.append(pandas.Series(values, dtype=object))
    if None not in values:
        origins.append(pandas.Series(values, dtype=np.int64))
    for column in origins:
        assert rows(column) == expected


@given(values=st.lists(st.one_of(st.none(), st.integers(1 - 2**53, 2**53 - 1)), max_size=30))
def test_whole_floats_have_the_rows_of_their_integers(values: list[int | None]):
    expected = [row_of(value) for value in values]
    floats = [None if value is None else float(value) for value in values]
    assert rows(pandas.Series(floats, dtype=np.float64)) == expected  # None is NaN there
    assert rows(pandas.Series(floats, dtype="Float64")) == expected
    nan = [float("nan") if value is None else value for value in floats]
    assert rows(polars.Series(nan, dtype=polars.Float64)) == expected
    assert rows(polars.Series(floats, dtype=polars.Float64)) == expected


@given(
    values=st.one_of(texts, integers),
    width=st.sampled_from(WIDTHS),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    data=st.data(),
)
def test_dictionaries_chunks_and_slices_do_not_change_rows(
    values: list[Any], width: pa.DataType, cuts: list[int], data: st.DataObject
):
    expected = [row_of(value) for value in values]
    # A null may stand in the indices or in the dictionary, which holds values twice and unused ones.
    distinct = [*dict.fromkeys(values), None, *dict.fromkeys(values)]
    indices = [
        None
        if value is None and data.draw(st.booleans())
        else data.draw(st.sampled_from([i for i, known in enumerate(distinct) if known == value]))
        for value in values
    ]
    kind = pa.int64() if any(isinstance(value, int) for value in values) else pa.string()
    encoded = pa.DictionaryArray.from_arrays(pa.array(indices, width), pa.array(distinct, kind))
    borders = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for whole in (pa.array(values, kind), encoded):
        pieces = [whole.slice(a, b - a) for a, b in pairwise(borders)]
        assert rows(whole) == expected
        assert [row for piece in pieces for row in rows(piece)] == expected
        assert rows(pa.chunked_array(pieces, whole.type)) == expected


@given(
    left=st.lists(st.one_of(st.none(), st.integers(-9, 9)), min_size=1, max_size=30),
    cuts=st.tuples(*[st.lists(st.integers(0, 30), max_size=3)] * 2),
)
def test_table_is_its_columns_however_each_is_cut(left: list[int | None], cuts: Any):
    plain = {
        "id": pa.array(left, pa.int64()),
        "word": pa.array([None if v is None else f"{v} as a text" for v in left], pa.string()),
    }
    cut = {}
    for (name, array), places in zip(plain.items(), cuts, strict=True):
        borders = [0, *sorted(min(place, len(left)) for place in places), len(left)]
        pieces = [array.slice(a, b - a) for a, b in pairwise(borders)]
        cut[name] = pa.chunked_array(pieces, array.type)
    table = pa.table(cut)
    expected = [
        [row_of(value, "id", 99), row_of(word, "word", 99)]
        for value, word in zip(left, plain["word"].to_pylist(), strict=True)
    ]
    assert hash_table(table, num_rows=99).tolist() == expected
    assert hash_table(pa.table(plain).to_batches()[0], num_rows=99).tolist() == expected
    assert hash_table(polars.DataFrame(table), num_rows=99).tolist() == expected
    assert hash_table(table.to_pandas(), num_rows=99).tolist() == expected


@pytest.mark.parametrize("value", ["x" * 2**20, "\0" * 1000, "é" * 2**19])
def test_texts_of_a_megabyte_and_of_nul_bytes_hash_whole(value: str):
    values = [value, value + "\0", "", None, value[:-1]]
    for series in polars_texts(values):
        assert rows(series) == [row_of(v) for v in values]
    for series in pandas_texts(values):
        assert rows(series) == [row_of(v) for v in values]


def test_dictionary_of_a_dictionary_gives_its_values():
    inner = pa.DictionaryArray.from_arrays(pa.array([1, 0]), pa.array(["a", "b"]))
    outer = pa.DictionaryArray.from_arrays(pa.array([0, 1, 1, None]), inner)
    expected = [row_of(value) for value in ("b", "a", "a", None)]
    assert rows(outer) == expected
    assert rows(outer.slice(0, 1)) == expected[:1]


# What is no id is refused by one kind of error, whichever library holds it.


@pytest.mark.parametrize("value", ["\ud800", "text \udfff"])
def test_lone_surrogates_are_refused(value: str):
    column = pandas.Series(["a", value], dtype=object)
    with pytest.raises(EncodingError, match="surrogates not allowed"):
        rows(column)
    with pytest.raises(EncodingError, match=r"Column 'x': .*surrogates not allowed"):
        hash_table(pandas.DataFrame({"x": column}), num_rows=9)


@pytest.mark.parametrize(
    "column",
    [
        polars.Series([object()], dtype=polars.Object),
        pandas.Series([object()]),
        pandas.Series([1, "a"], dtype=object),
        pandas.Series([1j]),
        pandas.Series([2**64], dtype=object),
        polars.Series([1], dtype=polars.Int128),
    ],
    ids=["polars objects", "pandas objects", "mixed", "complex", "2**64", "128 bits"],
)
def test_values_without_an_arrow_type_are_refused(column: Any):
    with pytest.raises(EncodingError, match="Arrow has no type for the column's values"):
        rows(column)


@pytest.mark.parametrize(
    "column", [[1], np.array([1]), "a", None, pandas.DataFrame({"a": [1]}), polars.DataFrame()]
)
def test_what_is_no_column_is_refused(column: Any):
    with pytest.raises(TypeError, match="must be a polars or pandas series or an Arrow array"):
        rows(column)


@pytest.mark.parametrize("seed", [-1, np.int64(-1), 2**64 - 1, np.uint64(2**64 - 1), 2**65 - 1])
def test_low_64_bits_of_any_integer_are_the_seed(seed: Any):
    expected = [xxhash.xxh64_intdigest(b"a", 2**64 - 1)]
    assert hash64(polars.Series(["a"]), seed=seed).tolist() == expected
    with pytest.raises(TypeError, match="integer"):
        hash64(polars.Series(["a"]), seed=1.5)


def test_name_is_hashed_as_text():
    column = pa.array(["a"])
    assert table_seed("größe") == xxhash.xxh64_intdigest("größe".encode(), 0)
    assert rows(column, name="größe") == [row_of("a", "größe")]
