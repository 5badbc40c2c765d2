"""Encoding does not depend on how a table is cut, and blocks add up as tables do."""

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_mtl.encoding import Batch, Block, Encoder
from recsys_mtl.encoding.keys import ABSENT, KeyIndex
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, History, Numeric, Schema, Side, Vector

SCHEMA = Schema(
    user=Side("user", features=[Categorical("user"), Numeric("age")]),
    context=[
        Categorical("word"),
        Bag("tags", weights="strengths"),
        History("seen", table="word", separator="|", max_length=2),
        Numeric("price", scaling="log"),
        Vector("image", dim=2),
    ],
    tasks=[Binary("ctr", label="click"), Binary("cvr", label="buy", within="ctr")],
)
TYPES = {
    "user": pl.Int64,
    "word": pl.String,
    "tags": pl.List(pl.Int64),
    "strengths": pl.List(pl.Float32),
    "seen": pl.String,
    "price": pl.Float64,
    "image": pl.List(pl.Float32),
    "click": pl.Int8,
    "buy": pl.Int8,
}
WORDS = ["", "a", "b", "a word too long for a view", "é"]
USERS = pl.DataFrame({"user": [4, 1, 3], "age": [30.5, None, 50.0]})

small = st.floats(-100, 100, width=32)
bits = st.sampled_from([0, 1, None])
labels = st.one_of(st.none(), st.lists(st.integers(0, 5), max_size=4))
rows = st.fixed_dictionaries(
    {
        "user": st.one_of(st.none(), st.integers(0, 5)),
        "word": st.sampled_from([*WORDS, None]),
        "tags": labels,
        "seen": st.one_of(st.none(), st.lists(st.sampled_from(WORDS), max_size=4).map("|".join)),
        "price": st.one_of(st.none(), small),
        "image": st.one_of(st.none(), st.tuples(small, small).map(list)),
        "click": bits,
        "buy": bits,
    }
)
tables = st.lists(rows, max_size=12).map(
    lambda found: pl.DataFrame(
        [row | {"strengths": row["tags"] and [x + 0.5 for x in row["tags"]]} for row in found],
        schema=TYPES,
    )
)


@pytest.fixture(scope="module")
def encoder():
    train = pl.DataFrame(
        {
            "user": [1, 4, 3, 2],
            "word": ["a", "b", "é", ""],
            "tags": [[1, 2], [3], None, [4]],
            "strengths": [[1, 1], [2], None, [3]],
            "seen": ["a|b", None, "é", ""],
            "price": [1.0, 2.0, None, 50.0],
            "image": [[1.0, 2.0]] * 4,
            "click": [1, 0, 1, 0],
            "buy": [1, 0, 0, 0],
        },
        schema=TYPES,
    )
    return Encoder(SCHEMA).fit(scan(train, users=USERS))


def by_row(batch: Batch):
    """Return what every interaction is encoded as, in plain Python values."""
    blocks = [p.block if p.rows is None else p.block.take(p.rows) for p in batch.parts]
    assert batch.labels is not None
    assert batch.states is not None
    return [
        (
            [block.ids[row].tolist() for block in blocks],
            [lists_of(block, row) for block in blocks],
            [block.dense[row].tolist() for block in blocks],
            batch.labels[row].tolist(),
            batch.states[row].tolist(),
            batch.keys.row(row),
        )
        for row in range(batch.num_rows)
    ]


def lists_of(block: Block, row: int):
    cuts = [(one, one.offsets[row], one.offsets[row + 1]) for one in block.lists]
    return [(one.values[a:b].tolist(), one.weights[a:b].tolist()) for one, a, b in cuts]


def pieces(table: pl.DataFrame, cuts: list[int]):
    """Cut a table at sorted positions."""
    places = sorted({0, table.height, *(cut % (table.height + 1) for cut in cuts)})
    return [table.slice(start, end - start) for start, end in pairwise(places)] or [table]


positions = st.lists(st.integers(0, 100), max_size=4)


@given(table=tables, cuts=positions)
def test_chunks_of_a_table_do_not_matter(encoder: Encoder, table: pl.DataFrame, cuts: list[int]):
    chunked = pl.concat(pieces(table, cuts), rechunk=False)
    whole = encoder.encode(scan(table, users=USERS))
    assert by_row(encoder.encode(scan(chunked, users=USERS))) == by_row(whole)
    arrow: Any = chunked.to_arrow()
    assert by_row(encoder.encode(scan(arrow, users=USERS))) == by_row(whole)


@given(table=tables, start=st.integers(0, 12), length=st.integers(0, 12))
def test_slice_of_a_table_encodes_as_the_slice_of_its_encoding(
    encoder: Encoder, table: pl.DataFrame, start: int, length: int
):
    whole = by_row(encoder.encode(scan(table, users=USERS)))
    expected = whole[start : start + length]
    assert by_row(encoder.encode(scan(table.slice(start, length), users=USERS))) == expected
    sliced = table.to_arrow().slice(start, length)
    assert by_row(encoder.encode(scan(sliced, users=USERS))) == expected


@given(table=tables, chunk_rows=st.integers(1, 13))
def test_streamed_batches_add_up_to_the_whole(
    encoder: Encoder, table: pl.DataFrame, chunk_rows: int
):
    opened = scan(table, users=USERS)
    streamed = list(encoder.batches(opened, chunk_rows=chunk_rows, labels="required"))
    whole = encoder.encode(opened)
    assert [row for batch in streamed for row in by_row(batch)] == by_row(whole)
    assert sum(batch.absent["user"] for batch in streamed) == whole.absent["user"]


@given(table=tables, cuts=positions)
def test_blocks_of_pieces_add_up_to_the_block_of_the_table(
    encoder: Encoder, table: pl.DataFrame, cuts: list[int]
):
    parts = [encoder.encode(scan(piece, users=USERS)).parts[1] for piece in pieces(table, cuts)]
    joined = Block.concat([part.block for part in parts])
    whole = encoder.encode(scan(table, users=USERS)).parts[1].block
    np.testing.assert_array_equal(joined.ids, whole.ids)
    np.testing.assert_array_equal(joined.dense, whole.dense)
    for mine, its in zip(joined.lists, whole.lists, strict=True):
        np.testing.assert_array_equal(mine.values, its.values)
        np.testing.assert_array_equal(mine.offsets, its.offsets)
        np.testing.assert_array_equal(mine.weights, its.weights)


@given(table=tables, data=st.data())
def test_taking_rows_of_a_block_is_encoding_those_rows(
    encoder: Encoder, table: pl.DataFrame, data: st.DataObject
):
    chosen = data.draw(
        st.lists(st.integers(0, table.height - 1), max_size=15) if table.height else st.just([])
    )
    taken = encoder.encode(scan(table, users=USERS)).parts[1].block.take(np.array(chosen, np.int64))
    again = encoder.encode(scan(table[chosen], users=USERS)).parts[1].block
    assert taken.ids.tolist() == again.ids.tolist()
    assert taken.dense.tolist() == again.dense.tolist()
    for row in range(len(chosen)):
        assert lists_of(taken, row) == lists_of(again, row)


@given(
    known=st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, max_size=20),
    keys=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), max_size=30),
    data=st.data(),
)
def test_keys_are_found_where_the_table_holds_them(
    known: list[int], keys: list[int | None], data: st.DataObject
):
    keys += data.draw(st.lists(st.sampled_from(known), max_size=5)) if known else []
    index = KeyIndex(pl.Series("k", known, dtype=pl.Int64))
    found = index.locate(pl.Series("k", keys, dtype=pl.Int64)).tolist()
    assert found == [known.index(key) if key in known else ABSENT for key in keys]
