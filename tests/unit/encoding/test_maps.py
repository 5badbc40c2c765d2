"""Maps from tokens to table rows against plain dictionaries, alone and through the encoder."""

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from recsys_mtl.encoding import EMPTY_ROW, NULL_ROW, NUM_RESERVED, UNKNOWN_ROW, Encoder, TableSize
from recsys_mtl.encoding.maps import BucketMap, RowMap, VocabularyMap, map_from_state
from recsys_mtl.encoding.sources import place_tokens
from recsys_mtl.errors import SchemaError
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, Feature, History, Schema, Side

MASK = 2**32 - 1
CTR = Binary("ctr", label="click")

words = st.integers(0, 2**64 - 1)
# Few different ones, so that some repeat; 0 is null and 1 the empty string.
tokens_and_uses = st.lists(
    st.tuples(st.one_of(st.integers(0, 5), words), st.integers(1, 4)), max_size=30
)


def bucket_of(token: int, num_buckets: int, number: int = 0):
    return ((token >> 32) + number * (token & MASK)) % 2**32 * num_buckets >> 32


def place(found: RowMap, tokens: list[int], number: int = 0):
    return place_tokens(
        np.array(tokens, np.uint64), found.placement(0, "xxh64", number), num_threads=1
    ).tolist()


def arrays(pairs: list[tuple[int, int]]):
    return np.array([t for t, _ in pairs], np.uint64), np.array([n for _, n in pairs], np.int64)


def rebuilt(found: RowMap):
    return map_from_state(*found.state())


@given(
    train=tokens_and_uses,
    others=st.lists(words, max_size=10),
    num_buckets=st.sampled_from([2, 63, 64, 65, 128, 1000, 2**16]),
    num_hashes=st.integers(1, 2),
    min_count=st.integers(1, 4),
)
def test_bucket_map_is_a_dictionary_of_the_buckets_used_enough(
    train: list[tuple[int, int]],
    others: list[int],
    num_buckets: int,
    num_hashes: int,
    min_count: int,
):
    counts: Counter[int] = Counter()
    for token, uses in train:
        for number in range(num_hashes if token > 1 else 0):
            counts[bucket_of(token, num_buckets, number)] += uses
    kept = sorted(bucket for bucket, uses in counts.items() if uses >= min_count)
    rows = {bucket: row for row, bucket in enumerate(kept, start=NUM_RESERVED)}
    tokens, uses = arrays(train)
    found = BucketMap.learn(
        tokens, uses, num_buckets=num_buckets, num_hashes=num_hashes, min_count=min_count
    )
    assert found.num_rows == NUM_RESERVED + len(rows)
    asked = [0, 1, *tokens.tolist(), *others]
    for number in range(num_hashes):
        expected = [
            {0: NULL_ROW, 1: EMPTY_ROW}.get(
                token, rows.get(bucket_of(token, num_buckets, number), UNKNOWN_ROW)
            )
            for token in asked
        ]
        assert place(found, asked, number) == expected
        assert place(rebuilt(found), asked, number) == expected


@pytest.mark.parametrize("num_buckets", [1, 63, 64, 65, 128, 129, 200])
@pytest.mark.parametrize("step", [1, 2, 63, 64])
def test_rows_are_right_where_words_of_64_buckets_meet(num_buckets: int, step: int):
    kept = np.unique(np.append(np.arange(0, num_buckets, step), num_buckets - 1))
    found = BucketMap(num_buckets, kept)
    # The first and the last token of every bucket.
    firsts = [(-(-(bucket << 32) // num_buckets)) << 32 for bucket in range(num_buckets + 1)]
    tokens = [max(first, 2) for first in firsts[:-1]] + [first - 1 for first in firsts[1:]]
    rows = {bucket: row for row, bucket in enumerate(kept.tolist(), start=NUM_RESERVED)}
    expected = [rows.get(bucket, UNKNOWN_ROW) for bucket in range(num_buckets)]
    assert place(found, tokens) == expected + expected


def test_map_that_keeps_nothing_knows_nothing():
    for found in (
        BucketMap(100, np.empty(0, np.int64)),
        BucketMap.learn(np.zeros(3, np.uint64), np.ones(3, np.int64), num_buckets=100),
    ):
        assert found.num_rows == NUM_RESERVED
        assert place(found, [0, 1, 2, 2**64 - 1]) == [0, 2, 1, 1]


@given(
    train=tokens_and_uses,
    others=st.lists(words, max_size=10),
    size=st.integers(1, 8),
    num_buckets=st.integers(2, 1000),
    min_count=st.integers(1, 4),
)
def test_vocabulary_is_the_most_used_and_the_rest_is_hashed_behind_it(
    train: list[tuple[int, int]],
    others: list[int],
    size: int,
    num_buckets: int,
    min_count: int,
):
    counts: Counter[int] = Counter()
    for token, uses in train:
        counts[token] += uses if token > 1 else 0
    often = [token for token, uses in counts.items() if uses >= min_count]
    order = sorted(often, key=lambda token: (-counts[token], token))[:size]
    rows = {token: row for row, token in enumerate(order, start=NUM_RESERVED)}
    tokens, uses = arrays(train)
    found = VocabularyMap.learn(
        tokens, uses, size=size, num_buckets=num_buckets, min_count=min_count
    )
    assert found.tokens.tolist() == order
    assert found.num_rows == NUM_RESERVED + len(order) + num_buckets
    asked = [0, 1, *tokens.tolist(), *others]
    rest = NUM_RESERVED + len(order)
    expected = [
        {0: NULL_ROW, 1: EMPTY_ROW}.get(
            token, rows.get(token, rest + bucket_of(token, num_buckets))
        )
        for token in asked
    ]
    assert place(found, asked) == expected
    assert place(rebuilt(found), asked) == expected


def test_vocabulary_does_not_depend_on_the_order_of_rows():
    tokens = np.random.default_rng(0).integers(2, 2**63, 500).astype(np.uint64)
    once = np.ones(500, np.int64)
    first = VocabularyMap.learn(tokens, once, size=100, num_buckets=None)
    other = VocabularyMap.learn(tokens[::-1].copy(), once, size=100, num_buckets=None)
    assert first.tokens.tolist() == sorted(tokens.tolist())[:100]
    assert other.tokens.tolist() == first.tokens.tolist()


def test_vocabulary_finds_tokens_that_fall_into_one_slot():
    # A slot is given by the lowest bits: these tokens all want the same one, the last of the table.
    tokens = np.array([(number << 40) + MASK for number in range(1, 60)], np.uint64)
    found = VocabularyMap(7, tokens)
    assert place(found, tokens.tolist()) == list(range(3, 62))
    stranger = (99 << 40) + MASK
    assert place(found, [stranger]) == [62 + bucket_of(stranger, 7)]


@pytest.mark.parametrize(("size", "buckets"), [(1, 1024), (8192, 1024), (8193, 2048)])
def test_vocabulary_leaves_an_eighth_of_its_size_to_the_rest(size: int, buckets: int):
    tokens = np.arange(2, size + 2, dtype=np.uint64)
    learned = VocabularyMap.learn(tokens, np.ones(size, np.int64), size=size, num_buckets=None)
    assert learned.num_buckets == buckets


# Through the encoder.


def schema_of(*features: Feature, **settings: Any):
    return Schema(context=features, tasks=[CTR], **settings)


def table(**columns: Any):
    frame = pl.DataFrame(columns)
    return frame.with_columns(click=pl.int_range(pl.len()) % 2)


def token_of(value: str | None, name: str = "x"):
    if not value:
        return 0 if value is None else 1
    return xxhash.xxh64_intdigest(value.encode(), xxhash.xxh64_intdigest(name.encode(), 0))


def same_after_saving(encoder: Encoder, frame: pl.DataFrame):
    again = Encoder.from_state(encoder.schema, *encoder.state())
    first, second = encoder.encode(frame).parts[0].block, again.encode(frame).parts[0].block
    np.testing.assert_array_equal(first.ids, second.ids)
    for ragged, other in zip(first.lists, second.lists, strict=True):
        np.testing.assert_array_equal(ragged.values, other.values)
        np.testing.assert_array_equal(ragged.weights, other.weights)
    return again.layout == encoder.layout


def test_vocabulary_column_gives_its_most_frequent_values_the_first_rows():
    train = table(x=["c", "a", "b", "a", "", None, "a", "b", "once", "", "", ""])
    encoder = Encoder(schema_of(Categorical("x", vocabulary=2, num_buckets=50, min_count=2)))
    rows = encoder.fit_encode(train).parts[0].block.ids[:, 0].tolist()
    rest = [5 + bucket_of(token_of(value), 50) for value in ("c", "once")]
    assert rows == [rest[0], 3, 4, 3, 2, 0, 3, 4, rest[1], 2, 2, 2]
    unseen = encoder.encode(table(x=["new", "b", None])).parts[0].block.ids[:, 0].tolist()
    assert unseen == [5 + bucket_of(token_of("new"), 50), 4, 0]
    assert encoder.layout.tables == (TableSize("x", 3 + 2 + 50, None),)
    assert same_after_saving(encoder, train)


def test_vocabulary_of_a_side_table_is_ordered_by_training_rows():
    users = pl.DataFrame({"u": [1, 2, 3, 4], "city": ["rare", "rare", "often", "unused"]})
    schema = Schema(user=Side("u", features=[Categorical("city", vocabulary=5)]), tasks=[CTR])
    encoder = Encoder(schema).fit(scan(table(u=[3, 1, 3, 3, 2]), users=users))
    order = [token_of("often", "city"), token_of("rare", "city")]
    assert encoder.learned.maps["city"].state()[1].tolist() == order


def rows_by_hand(values: list[str | None], num_buckets: int, num_hashes: int):
    """The rows of each value, all of them trained on, one per hash."""
    marks = {0: [NULL_ROW] * num_hashes, 1: [EMPTY_ROW] * num_hashes}
    buckets = {
        value: [bucket_of(token_of(value), num_buckets, number) for number in range(num_hashes)]
        for value in values
        if value
    }
    kept = sorted({bucket for found in buckets.values() for bucket in found})
    return [
        [NUM_RESERVED + kept.index(bucket) for bucket in buckets[value]]
        if value
        else marks[token_of(value)]
        for value in values
    ]


def test_value_of_two_hashes_has_their_rows_each_with_its_share():
    num_hashes = 2
    values = ["a", None, "", "b", "a", "a value too long for a view"]
    feature = Categorical("x", num_hashes=num_hashes, num_buckets=20)
    encoder = Encoder(schema_of(feature))
    block = encoder.fit_encode(table(x=values)).parts[0].block
    assert block.ids.shape == (len(values), 0)
    (found,) = block.lists
    assert found.values.reshape(-1, num_hashes).tolist() == rows_by_hand(values, 20, num_hashes)
    assert found.offsets.tolist() == list(range(0, num_hashes * len(values) + 1, num_hashes))
    assert found.weights.tolist() == [float(np.float32(1 / num_hashes))] * found.weights.size
    assert encoder.layout.list_tables == ("x",)
    assert same_after_saving(encoder, table(x=values))


def test_bag_of_several_hashes_splits_each_weight_among_them():
    bags = [["a", "b"], None, [], ["b", "c", "a"], ["a", None, ""]]
    strengths = [[1.0, 3.0], None, [], [2.0, 0.0, 2.0], [1.0, 1.0, 2.0]]
    feature = Bag("x", weights="w", num_hashes=2, num_buckets=1000)
    encoder = Encoder(schema_of(feature))
    frame = table(x=bags, w=strengths)
    (found,) = encoder.fit_encode(frame).parts[0].block.lists
    flat = [value for bag in bags for value in bag or []]
    assert found.values.reshape(-1, 2).tolist() == rows_by_hand(flat, 1000, 2)
    assert found.offsets.tolist() == [0, 4, 4, 4, 10, 16]
    shares = [0.25, 0.75, 0.5, 0.0, 0.5, 0.25, 0.25, 0.5]
    expected = np.repeat(np.array(shares) / 2, 2)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-6)
    assert same_after_saving(encoder, frame)


def test_vocabulary_and_several_hashes_go_together():
    values = ["a", "a", "b", "c", None, ""]
    feature = Categorical("x", vocabulary=1, num_buckets=40, num_hashes=2)
    (found,) = Encoder(schema_of(feature)).fit_encode(table(x=values)).parts[0].block.lists
    b, c = ([4 + bucket_of(token_of(v), 40, number) for number in (0, 1)] for v in ("b", "c"))
    assert found.values.reshape(-1, 2).tolist() == [[3, 3], [3, 3], b, c, [0, 0], [2, 2]]


def test_features_of_one_table_share_its_vocabulary():
    features = [
        Categorical("x", vocabulary=1, num_buckets=9),
        Bag("tags", table="x", vocabulary=1, num_buckets=9),
    ]
    frame = table(x=["a", "b", "a"], tags=[["b", "b"], ["b"], []])
    block = Encoder(schema_of(*features)).fit_encode(frame).parts[0].block
    a = 4 + bucket_of(token_of("a"), 9)
    assert block.ids[:, 0].tolist() == [a, 3, a]
    assert block.lists[0].values.tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    "feature",
    [Categorical("x", vocabulary=9), Categorical("x", num_hashes=2), Bag("x", num_hashes=2)],
)
def test_murmur3_has_too_few_bits_for_vocabulary_and_several_hashes(feature: Feature):
    with pytest.raises(SchemaError, match="'x': num_hashes and vocabulary need the 64 bits"):
        schema_of(feature, hash="murmur3")
    assert schema_of(feature).features == (feature,)


@pytest.mark.parametrize(
    ("other", "setting"),
    [
        (Categorical("y", table="x", vocabulary=9), "vocabulary"),
        (Bag("y", table="x", num_hashes=2), "num_hashes"),
        (History("y", table="x", num_buckets=77), "num_buckets"),
        (Categorical("y", table="x", min_count=3), "min_count"),
    ],
)
def test_features_of_one_table_must_agree(other: Feature, setting: str):
    with pytest.raises(
        SchemaError, match=f"'x' and 'y' share table 'x' and must agree on {setting}"
    ):
        schema_of(Categorical("x"), other)


@pytest.mark.parametrize("num_hashes", [0, 3])
def test_number_of_hashes_is_one_or_two(num_hashes: int):
    with pytest.raises(SchemaError, match="num_hashes"):
        Categorical("x", num_hashes=num_hashes)
