"""What an encoder learns and gives, against a plain Python account of the same rules."""

import itertools
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
import xxhash

from recsys_mtl.encoding import EMPTY_ROW, NULL_ROW, UNKNOWN_ROW, Batch, Encoder, TableSize
from recsys_mtl.errors import EncodingError, NotFittedError
from recsys_mtl.reading import scan
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    Feature,
    History,
    Numeric,
    Schema,
    Side,
)

CTR = Binary("ctr", label="click")
LARGE = [0, -1, 2**24 - 1, 2**24, 2**24 + 1, 2**31 - 1, 2**31, 2**53, 2**53 + 1, 2**63 - 1]
TEXTS = [pl.String, pl.Categorical, pl.Enum(["a", "b", "", "ccc", "a text too long for a view"])]


def plain(*features: Feature):
    return Schema(context=features, tasks=[CTR])


def table(**columns: Any):
    frame = pl.DataFrame(columns)
    return frame.with_columns(click=pl.int_range(pl.len()) % 2)


def ids(batch: Batch, column: int = 0):
    return batch.parts[0].block.ids[:, column].tolist()


def fit_ids(values: Any, feature: Feature):
    return ids(Encoder(plain(feature)).fit_encode(table(x=values)))


def reference_rows(train: list[Any], values: list[Any], num_buckets: int, min_count: int):
    """Give the rows of strings and integers as the documentation says, without our kernels."""
    seed = xxhash.xxh64_intdigest(b"x", 0)

    def bucket(value: Any) -> int:
        key = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
        return (xxhash.xxh64_intdigest(key, seed) >> 32) * num_buckets >> 32

    counts = Counter(bucket(value) for value in train if value not in (None, ""))
    kept = sorted(found for found, count in counts.items() if count >= min_count)
    rows = {found: row for row, found in enumerate(kept, start=3)}
    special = {None: NULL_ROW, "": EMPTY_ROW}
    return [
        special[value] if value in special else rows.get(bucket(value), UNKNOWN_ROW)
        for value in values
    ]


@pytest.mark.parametrize("min_count", [1, 2, 3])
@pytest.mark.parametrize("num_buckets", [None, 7, 50, 1_000_003])
def test_rows_are_those_of_the_documented_rules(num_buckets: int | None, min_count: int):
    rng = np.random.default_rng(1)
    words = ["", None, *(f"w{i}" * (1 + i % 9) for i in range(30))]
    train = [words[i] for i in rng.integers(0, 25, 60)]
    feature = Categorical("x", num_buckets=num_buckets, min_count=min_count)
    encoder = Encoder(plain(feature)).fit(table(x=train))
    expected = reference_rows(train, words, num_buckets or 2**16, min_count)
    assert ids(encoder.encode(table(x=words), labels="none")) == expected
    (size,) = encoder.layout.tables
    assert size == TableSize("x", max(3, *reference_rows(train, train, num_buckets or 2**16, min_count)) + 1, None)  # fmt: skip


def test_integers_follow_the_documented_rules():
    train = [*LARGE, 5, 5]
    expected = reference_rows(train, [*train, 6], 2**16, 1)
    encoder = Encoder(plain(Categorical("x"))).fit(table(x=train))
    assert ids(encoder.encode(table(x=[*train, 6]))) == expected


def test_null_unseen_and_empty_have_rows_of_their_own():
    encoder = Encoder(plain(Categorical("x"))).fit(table(x=["a", "", None, "b"]))
    found = ids(encoder.encode(table(x=[None, "never", "", "a", "b"])))
    assert found[:3] == [NULL_ROW, UNKNOWN_ROW, EMPTY_ROW] == [0, 1, 2]
    assert sorted(found[3:]) == [3, 4]


def test_null_and_empty_have_their_rows_even_if_training_had_none():
    encoder = Encoder(plain(Categorical("x"))).fit(table(x=["a"]))
    assert ids(encoder.encode(table(x=[None, "", "a"]))) == [NULL_ROW, EMPTY_ROW, 3]


def test_values_seen_too_seldom_share_the_unknown_row():
    found = fit_ids(["a", "b", "b", "c", "c", "c"], Categorical("x", min_count=3))
    assert found == [UNKNOWN_ROW] * 3 + [3] * 3


def test_large_ids_stay_distinct():
    encoder = Encoder(plain(Categorical("x", num_buckets=2**22)))
    batch = encoder.fit_encode(table(x=pl.Series(LARGE, dtype=pl.Int64)))
    assert len(set(ids(batch))) == len(LARGE)
    assert ids(encoder.encode(table(x=[2**24 + 2, 2**63 - 2, 2**31 + 1]))) == [UNKNOWN_ROW] * 3


NUMBERS = [pl.Series([5, 6]), pl.Series([5.0, None]), pl.Series([True, False])]
TEXT = [pl.Series(["5", "6"]), pl.Series(["5", "6"], dtype=pl.Categorical), pl.Series([b"5", b"6"])]


@pytest.mark.parametrize("trained", NUMBERS, ids=str)
@pytest.mark.parametrize("scored", TEXT, ids=str)
def test_ids_of_another_kind_than_the_trained_ones_are_refused(
    trained: pl.Series, scored: pl.Series
):
    """5 and "5" are different values, so that every row would silently be unknown."""
    feature = Categorical("x", num_buckets=2**20)
    text = f"Feature 'x' was trained on numbers ({trained.dtype}). Found {scored.dtype}: cast the"
    with pytest.raises(EncodingError, match=re.escape(text)):
        Encoder(plain(feature)).fit(table(x=trained)).encode(table(x=scored))
    text = f"Feature 'x' was trained on text ({scored.dtype}). Found {trained.dtype}: cast the"
    with pytest.raises(EncodingError, match=re.escape(text)):
        Encoder(plain(feature)).fit(table(x=scored)).encode(table(x=trained))


@pytest.mark.parametrize("kind", [NUMBERS, TEXT])
def test_ids_of_one_kind_may_change_their_type(kind: list[pl.Series]):
    for trained, scored in itertools.permutations(kind, 2):
        Encoder(plain(Categorical("x"))).fit(table(x=trained)).encode(table(x=scored))


@pytest.mark.parametrize(
    "nothing",
    [
        [None, None],
        pl.Series([None, None], dtype=pl.String),
        pl.Series([None, None], dtype=pl.Int64),
        [float("nan"), None],
    ],
    ids=str,
)
def test_columns_without_values_are_of_no_kind(nothing: Any):
    for values in ([5, 6], ["a", "b"]):
        encoder = Encoder(plain(Categorical("x"))).fit(table(x=values))
        assert ids(encoder.encode(table(x=nothing))) == [NULL_ROW] * 2
        Encoder(plain(Categorical("x"))).fit(table(x=nothing)).encode(table(x=values))


@pytest.mark.parametrize(
    ("feature", "trained", "scored", "found"),
    [
        (Bag("x"), [[1], [2]], [["1"], []], "List(String)"),
        (Bag("x"), [["1"], None], [[1], []], "List(Int64)"),
        (Bag("x", separator="|"), ["1|2", "3"], None, None),
    ],
)
def test_lists_are_of_the_kind_of_their_ids(feature: Any, trained: Any, scored: Any, found: Any):
    encoder = Encoder(plain(feature)).fit(table(x=trained))
    encoder.encode(table(x=[[], []] if feature.separator is None else [None, None]))
    if found is not None:
        with pytest.raises(EncodingError, match=f"was trained on .*Found {re.escape(found)}: cast"):
            encoder.encode(table(x=scored))


def test_features_of_one_table_must_hold_one_kind_of_ids():
    schema = plain(Categorical("x"), Bag("seen", table="x", separator="|"))
    with pytest.raises(EncodingError) as error:
        Encoder(schema).fit(table(x=[1, 2], seen=["1|2", "2"]))
    assert str(error.value) == (
        "Features of table 'x' must hold one kind of ids. Found numbers (Int64) in 'x' and text"
        " (String) in 'seen': cast one of the columns."
    )
    Encoder(schema).fit(table(x=["1", "2"], seen=["1|2", "2"]))


def test_kind_of_ids_survives_saving():
    schema = plain(Categorical("x"))
    values, arrays = Encoder(schema).fit(table(x=[1, 2])).state()
    loaded = Encoder.from_state(schema, json.loads(json.dumps(values)), arrays)
    assert values["families"] == {"x": {"family": "numbers", "dtype": "Int64"}}
    with pytest.raises(EncodingError, match="was trained on numbers"):
        loaded.encode(table(x=["1", "2"]))


def test_missing_column_of_a_side_tells_how_to_give_its_table():
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id"), Categorical("city")]), tasks=[CTR]
    )
    rows, users = table(user_id=[1, 2]), pl.DataFrame({"user_id": [1, 2], "city": ["a", "b"]})
    text = (
        "The interactions must have column 'city'. Columns found: ['user_id', 'click']. They are"
        " features of the user: give its table, scan(..., users=...), or join the columns."
    )
    with pytest.raises(EncodingError) as error:
        Encoder(schema).fit(rows)
    assert str(error.value) == text
    encoder = Encoder(schema).fit(scan(rows, users=users))
    with pytest.raises(EncodingError) as error:
        encoder.encode(rows)
    assert str(error.value) == text
    with pytest.raises(EncodingError, match=r"must have column 'user_id'.*'city'\]\.$"):
        encoder.encode(rows.rename({"user_id": "uid"}).with_columns(city=pl.lit("a")))


@pytest.mark.parametrize("dtype", TEXTS)
def test_text_has_the_same_row_in_every_type_and_chunking(dtype: pl.DataType):
    values = ["a", None, "", "ccc", "a text too long for a view", "a"]
    encoder = Encoder(plain(Categorical("x"))).fit(table(x=values))
    expected = ids(encoder.encode(table(x=values)))
    column = pl.Series("x", values, dtype=dtype)
    frame = table(x=column)
    chunked = pl.concat([frame.slice(i, 1) for i in range(6)], rechunk=False)
    for one in (frame, chunked, frame.to_arrow(), frame.to_pandas()):
        assert ids(encoder.encode(one)) == expected
        assert ids(Encoder(encoder.schema).fit_encode(one)) == expected


@pytest.mark.parametrize("dtype", [pl.Int16, pl.UInt32, pl.Int64, pl.UInt64, pl.Float64])
def test_integer_has_the_same_row_in_every_width(dtype: pl.DataType):
    values = [3, 700, None, 3]
    encoder = Encoder(plain(Categorical("x"))).fit(table(x=values))
    assert ids(encoder.encode(table(x=pl.Series(values, dtype=dtype)))) == fit_ids(
        values, Categorical("x")
    )


def test_features_that_share_a_table_share_rows_and_counts():
    item, seen = Categorical("x", min_count=2), History("seen", table="x", min_count=2)
    encoder = Encoder(plain(item, seen))
    batch = encoder.fit_encode(table(x=["a", "b", "c"], seen=[["b", "c"], ["d"], []]))
    assert ids(batch)[0] == UNKNOWN_ROW  # once in both columns together
    found = batch.parts[0].block.lists[0].values.tolist()
    assert found == [*ids(batch)[1:], UNKNOWN_ROW]
    assert encoder.layout.tables == (TableSize("x", 5, None),)
    assert encoder.layout.id_tables == encoder.layout.list_tables == ("x",)


def test_default_range_counts_the_distinct_values_of_all_sharing_features():
    lists = [[f"l{i}", "same"] for i in range(1_500)]
    frame = table(x=[f"v{i}" for i in range(1_500)], seen=lists)
    encoder = Encoder(plain(Categorical("x"), History("seen", table="x"))).fit(frame)
    assert encoder.learned.maps["x"].num_buckets == 2**17  # 32 * 3001, rounded up
    alone = Encoder(plain(Categorical("x"))).fit(frame)
    assert alone.learned.maps["x"].num_buckets == 2**16


def test_error_in_a_chunk_says_where_the_chunk_begins():
    encoder = Encoder(plain(Numeric("x"))).fit(table(x=[1.0]))
    bad = table(x=[0.0] * 7 + [float("inf")])
    chunks = encoder.batches(bad, chunk_rows=3)
    assert [next(chunks).num_rows, next(chunks).num_rows] == [3, 3]
    with pytest.raises(EncodingError, match=r"^In the chunk that begins at row 6: .* row 1\.$"):
        next(chunks)


def test_unfitted_encoder_says_so():
    for ask in (lambda e: e.encode(table(x=[1])), lambda e: e.layout, lambda e: e.state()):
        with pytest.raises(NotFittedError, match="must be fitted first"):
            ask(Encoder(plain(Categorical("x"))))


@pytest.mark.parametrize("learn", [Encoder.fit, Encoder.fit_encode])
def test_training_needs_rows(learn: Any):
    with pytest.raises(EncodingError, match=r"must hold rows to train on\. Found an empty table"):
        learn(Encoder(plain(Categorical("x"))), table(x=[1]).clear())


def ranked(group: str | None = None, user: Side | None = None):
    task = Binary("ctr", label="click", ranking="pairwise", group=group)
    return Schema(user=user, context=[Categorical("x")], tasks=[task])


def rows_together(batch: Batch):
    assert batch.groups is not None
    return [batch.groups.tolist().index(group) for group in batch.groups]


def test_groups_are_read_with_the_labels_only():
    rows = table(x=[1, 2, 3, 4], visit=["b", "a", None, "b"])
    encoder = Encoder(ranked("visit"))
    assert rows_together(encoder.fit_encode(rows)) == [0, 1, 2, 0]
    assert rows_together(encoder.encode(rows)) == [0, 1, 2, 0]
    assert encoder.encode(rows.drop("visit", "click"), labels="none").groups is None
    assert Encoder(plain(Categorical("x"))).fit_encode(rows).groups is None


@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_groups_of_chunks_are_those_of_all_rows(chunk_rows: int):
    rows = table(x=[1] * 7, visit=["b", "a", None, "b", None, "a", "b"])
    encoder = Encoder(ranked("visit")).fit(rows)
    parts = encoder.batches(rows, chunk_rows=chunk_rows, labels="required")
    found = np.concatenate([part.groups for part in parts if part.groups is not None])
    np.testing.assert_array_equal(found, encoder.encode(rows).groups)


def test_user_key_groups_rows_with_a_users_table_or_without():
    rows = table(x=[1, 2, 3, 4], user=[5, 6, None, 5], age=[30.0, 40.0, None, 30.0])
    encoder = Encoder(ranked(user=Side("user", features=[Numeric("age")])))
    assert rows_together(encoder.fit_encode(rows)) == [0, 1, 2, 0]
    users = pl.DataFrame({"user": [6, 5], "age": [40.0, 30.0]})
    star = Encoder(ranked(user=Side("user", features=[Numeric("age")])))
    assert rows_together(star.fit_encode(scan(rows.drop("age"), users=users))) == [0, 1, 2, 0]


def test_missing_group_column_is_named():
    with pytest.raises(EncodingError, match="'visit'"):
        Encoder(ranked("visit")).fit_encode(table(x=[1, 2]))
