"""An encoder that goes on from another: what it keeps, what it adds, what it refuses."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from recsys_mtl.encoding import NUM_RESERVED, Encoder, row_origins, with_columns
from recsys_mtl.encoding.maps import BucketMap, RowMap, VocabularyMap
from recsys_mtl.encoding.sources import place_tokens
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    Feature,
    Numeric,
    Regression,
    Schema,
    Side,
    Vector,
)

words = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=30)


def schema(*features: Feature, hash: str = "xxh64"):
    return Schema(context=features, tasks=[Binary("ctr", label="click")], hash=hash)


def table(**columns: list):
    length = len(next(iter(columns.values())))
    return pl.DataFrame(columns | {"click": [0, 1] * (length // 2) + [1] * (length % 2)})


def tokens(found: list[int]):
    return np.array(found, np.uint64), np.ones(len(found), np.int64)


def rows_of(found: RowMap, of: list[int], number: int = 0):
    return place_tokens(tokens(of)[0], found.placement(0, "xxh64", number), num_threads=1)


@given(words, words, st.sampled_from([2, 64, 1000]), st.sampled_from([1, 2]))
def test_a_grown_bucket_map_is_that_of_all_tokens(
    first: list[int], second: list[int], num_buckets: int, num_hashes: int
):
    settings = {"num_hashes": num_hashes}
    before = BucketMap.learn(*tokens(first), num_buckets=num_buckets, **settings)
    grown = before.grown(*tokens(second), **settings)
    whole = BucketMap.learn(*tokens(first + second), num_buckets=num_buckets, **settings)
    assert grown.buckets.tolist() == whole.buckets.tolist()
    origins = grown.origins(before)
    for number in range(num_hashes):
        moved = origins[rows_of(grown, first, number)]
        assert moved.tolist() == rows_of(before, first, number).tolist()
    assert (origins >= 0).sum() == before.num_rows


def test_buckets_seen_too_seldom_are_not_added_and_known_ones_stay():
    before = BucketMap(256, np.array([7]))
    twice, once = 30 << 56, 31 << 56  # the upper bits of a hash are its bucket
    assert before.grown(*tokens([twice, twice, once]), min_count=2).buckets.tolist() == [7, 30]


@given(words, words, st.integers(1, 12))
def test_a_grown_vocabulary_keeps_its_places_and_every_value_knows_its_old_row(
    first: list[int], second: list[int], size: int
):
    before = VocabularyMap.learn(*tokens(first), size=size, num_buckets=4)
    grown = before.grown(*tokens(second), size=size + 2)
    kept, more = before.tokens.tolist(), grown.tokens.tolist()
    assert more[: len(kept)] == kept
    wanted = {word for word in second if word > 1} - set(kept)
    assert len(more) == min(len(kept) + len(wanted), size + 2)
    assert set(more[len(kept) :]) <= wanted
    everything = first + second
    moved = grown.origins(before)[rows_of(grown, everything)]
    assert moved.tolist() == rows_of(before, everything).tolist()


def test_a_vocabulary_that_is_full_stays():
    before = VocabularyMap.learn(*tokens([5, 6, 7]), size=3, num_buckets=4)
    assert before.grown(*tokens([8, 9]), size=2).tokens.tolist() == before.tokens.tolist()


def test_new_ids_get_rows_and_known_ids_keep_their_buckets():
    day1, day2 = table(city=["a", "b", None]), table(city=["b", "c", "d", ""])
    known = Encoder(schema(Categorical("city", num_buckets=2**20))).fit(day1)
    grown = Encoder(schema(Categorical("city"))).fit(day2, known=known)
    buckets = grown.learned.maps["city"]
    assert (buckets.num_buckets, buckets.num_rows) == (2**20, NUM_RESERVED + 4)
    origins = row_origins(grown.learned, known.learned)["city"]
    ids = [encoder.encode(day1).parts[0].block.ids[:, 0] for encoder in (known, grown)]
    assert origins[ids[1]].tolist() == ids[0].tolist()
    fresh = grown.encode(day2).parts[0].block.ids[:, 0]
    assert origins[fresh].tolist() == [ids[0][1], -1, -1, 2]
    assert grown.encode(table(city=["e"])).parts[0].block.ids.tolist() == [[1]]


def test_known_scales_stay_and_new_ones_are_learned():
    features = [Numeric("price", scaling="standard"), Numeric("age", num_quantiles=4)]
    known = Encoder(schema(*features)).fit(table(price=[1.0, 3.0], age=[1.0, 2.0]))
    day2 = table(price=[100.0, 300.0], age=[50.0, 90.0], size=[2.0, 6.0])
    wider = schema(*features, Numeric("size", scaling="standard"))
    batch = Encoder(wider).fit_encode(day2, known=known)
    grown = Encoder(wider).fit(day2, known=known)
    assert (grown.learned.scales["price"].mean, grown.learned.scales["price"].std) == (2.0, 1.0)
    assert grown.learned.scales["age"].edges.tolist() == known.learned.scales["age"].edges.tolist()
    assert (grown.learned.scales["size"].mean, grown.learned.scales["size"].std) == (4.0, 2.0)
    assert batch.parts[0].block.dense[:, 0].tolist() == [5.0, 5.0]
    origins = row_origins(grown.learned, known.learned)
    assert origins["age.quantiles"].tolist() == list(range(known.learned.scales["age"].num_rows))


@pytest.mark.parametrize(
    ("known", "found", "setting"),
    [
        (Categorical("x"), Bag("x", separator=","), "kind"),
        (Categorical("x"), Categorical("x", table="y"), "table"),
        (Categorical("x"), Categorical("x", num_hashes=2), "num_hashes"),
        (Categorical("x", num_buckets=64), Categorical("x", num_buckets=128), "num_buckets"),
        (Categorical("x"), Categorical("x", vocabulary=5), "vocabulary"),
        (Categorical("x", vocabulary=5), Categorical("x"), "vocabulary"),
        (Numeric("x"), Numeric("x", scaling="log"), "scaling"),
        (Numeric("x"), Numeric("x", num_quantiles=8), "num_quantiles"),
        (Vector("x", dim=2), Vector("x", dim=3), "dim"),
        (Bag("x", separator="|"), Bag("x", separator=","), "separator"),
    ],
)
def test_what_would_mean_something_else_is_refused(known: Feature, found: Feature, setting: str):
    values = {Vector: [[1.0, 2.0]], Numeric: [1.0]}.get(type(known), ["a"])
    encoder = Encoder(schema(known)).fit(table(x=values))
    with pytest.raises(SchemaError, match=rf"Feature 'x': {setting} must stay .* Found .* keep it"):
        Encoder(schema(found)).fit(table(x=values), known=encoder)


@pytest.mark.parametrize(
    ("known", "found", "text"),
    [
        (Categorical("x"), Categorical("x", column="y"), "column must stay 'x'.* Found 'y'"),
        (Categorical("x", column="y"), Categorical("x"), "column must stay 'y'.* Found 'x'"),
        (Bag("x", weights="w"), Bag("x", weights="v"), "weights must stay 'w'.* Found 'v'"),
        (Bag("x"), Bag("x", weights="v"), "weights must stay None.* Found 'v'"),
    ],
)
def test_a_feature_that_reads_another_column_is_refused(known: Feature, found: Feature, text: str):
    lists, numbers = [["a"], ["b"]], [[1.0], [2.0]]
    values = lists if isinstance(known, Bag) else ["a", "b"]
    rows = table(x=values, y=values, w=numbers, v=numbers)
    encoder = Encoder(schema(known)).fit(rows)
    with pytest.raises(SchemaError, match=f"Feature 'x': {text}"):
        Encoder(schema(found)).fit(rows, known=encoder)


def test_a_task_that_reads_another_label_is_refused():
    known = Encoder(schema(Categorical("x"))).fit(table(x=["a"]))
    other = replace(known.schema, tasks=[Binary("ctr", label="like")])
    with pytest.raises(SchemaError, match=r"Task 'ctr': label must stay 'click'.* Found 'like'"):
        Encoder(other).fit(table(x=["a"]).rename({"click": "like"}), known=known)


BINNED = Regression("r", label="click", loss="bins", num_bins=3, bounds=(0, 1))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"loss": "mse"}, "loss='bins'.* Found loss='mse': keep it"),
        ({"num_bins": 4}, "num_bins=3, .* Found num_bins=4: keep it"),
        ({"bounds": (0, 2)}, r"bounds=\(0.0, 1.0\), .* Found bounds=\(0.0, 2.0\): keep it"),
    ],
)
def test_bins_that_would_mean_something_else_are_refused(changes: dict, text: str):
    rows = table(x=["a", "b"])
    known = Encoder(Schema(context=[Categorical("x")], tasks=[BINNED])).fit(rows)
    other = Encoder(replace(known.schema, tasks=[replace(BINNED, **changes)]))
    with pytest.raises(SchemaError, match=f"Task 'r' must stay as it was learned: {text}"):
        other.fit(rows, known=known)
    same = replace(known.schema, tasks=[replace(BINNED, weight=2.0)])
    assert Encoder(same).fit(rows, known=known).layout == known.layout


def test_a_schema_reads_its_columns_by_new_names():
    before = Schema(
        user=Side("user", features=[Categorical("city")]),
        context=[Bag("tags", weights="w"), Categorical("hour", column="h")],
        tasks=[Binary("ctr", label="click", sample_weight="w2")],
    )
    new = {"city": "town", "w": "v", "h": "hour", "click": "clicked", "w2": "v2"}
    after = with_columns(before, new)
    assert [feature.columns for feature in after.features] == [("town",), ("tags", "v"), ("hour",)]
    assert [feature.name for feature in after.features] == ["city", "tags", "hour"]
    assert after.label_columns == ("clicked", "v2")
    assert after.user == Side("user", features=[Categorical("city", column="town")])
    with pytest.raises(SchemaError, match=r"columns must be ones that the model reads: .* 'other'"):
        with_columns(before, {"other": "x"})


def test_another_hash_is_refused():
    known = Encoder(schema(Categorical("x"))).fit(table(x=["a"]))
    other = schema(Categorical("x"), hash="murmur3")
    with pytest.raises(SchemaError, match="hash must stay 'xxh64'"):
        Encoder(other).fit(table(x=["a"]), known=known)


def test_ids_of_another_kind_are_refused():
    known = Encoder(schema(Categorical("x"))).fit(table(x=["a"]))
    with pytest.raises(EncodingError, match="'x' was trained on text"):
        Encoder(known.schema).fit(table(x=[5]), known=known)


def test_rows_without_ids_leave_the_kind_of_ids_known():
    known = Encoder(schema(Categorical("x"))).fit(table(x=["a"]))
    grown = Encoder(known.schema).fit(table(x=[None, None]), known=known)
    with pytest.raises(EncodingError, match="'x' was trained on text"):
        grown.encode(table(x=[5]))


def test_settings_that_leave_ids_where_they_are_may_change():
    known = Encoder(schema(Categorical("x", column="raw"))).fit(table(raw=["a", "b"]))
    other = replace(known.schema, context=[Categorical("x", column="raw", min_count=2)])
    grown = Encoder(other).fit(table(raw=["b", "c", "c", "d"]), known=known)
    expected = [*known.learned.maps["x"].buckets, *_buckets(["c"], 65536)]
    assert grown.learned.maps["x"].buckets.tolist() == sorted(expected)


def _buckets(values: list[str], num_buckets: int):
    """The definition of docs/hashing.md, by the reference library."""
    seed = xxhash.xxh64_intdigest(b"x", 0)
    return [(xxhash.xxh64_intdigest(v.encode(), seed) >> 32) * num_buckets >> 32 for v in values]
