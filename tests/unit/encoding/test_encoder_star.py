"""Users and items kept apart encode as the joined table, in chunks as at once."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
import pytest
import xxhash

from recsys_mtl.encoding import NULL_ROW, Batch, Encoder
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, Numeric, Schema, Side, Vector

CTR = Binary("ctr", label="click")


def table(**columns: Any):
    frame = pl.DataFrame(columns)
    return frame.with_columns(click=pl.int_range(pl.len()) % 2)


def by_row(batch: Batch):
    """Return the encoded features of every interaction, side tables looked up."""
    blocks = [p.block if p.rows is None else p.block.take(p.rows) for p in batch.parts]
    lists = [
        [one.values[a:b].tolist() + one.weights[a:b].tolist() for a, b in pairwise(one.offsets)]
        for block in blocks
        for one in block.lists
    ]
    return (
        np.concatenate([block.ids for block in blocks], axis=1).tolist(),
        lists,
        np.concatenate([block.dense for block in blocks], axis=1).tolist(),
    )


def impressions(num_rows: int = 120, seed: int = 3):
    """Build interactions with users and items of every kind of feature, and rare nulls."""
    rng = np.random.default_rng(seed)

    def holes(values: Any) -> pl.Series:
        return pl.Series(values).set(pl.Series(rng.random(len(values)) < 0.15), None)

    users = pl.DataFrame(
        {
            "user_id": rng.permutation(40),
            "city": holes([f"c{i}" for i in rng.integers(0, 6, 40)]),
            "age": holes(rng.normal(40, 9, 40)),
            "likes": pl.Series([[f"t{k}" for k in range(i % 4)] for i in range(40)]),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in rng.permutation(30)],
            "price": holes(rng.lognormal(1, 1, 30)),
            "tags": holes(["|".join(f"t{k}" for k in range(i % 5)) for i in range(30)]),
            "image": holes(rng.normal(size=(30, 3)).tolist()),
        }
    )
    rows = pl.DataFrame(
        {
            "user_id": holes(rng.integers(0, 45, num_rows)),  # some are not in the table
            "item_id": [f"i{i}" for i in rng.integers(0, 33, num_rows)],
            "hour": holes(rng.integers(0, 24, num_rows)),
            "click": rng.integers(0, 2, num_rows),
        }
    )
    return rows, users, items


SCHEMA = Schema(
    user=Side(
        "user_id",
        features=[
            Categorical("user_id", min_count=2),
            Categorical("city"),
            Numeric("age", scaling="standard"),
            Bag("likes", table="words", max_length=2),
        ],
    ),
    item=Side(
        "item_id",
        features=[
            Categorical("item_id"),
            Numeric("price", num_quantiles=5),
            Numeric("log_price", column="price", scaling="log"),
            Bag("tags", table="words", separator="|", pooling="sum"),
            Vector("image", dim=3),
        ],
    ),
    context=[Categorical("hour")],
    tasks=[CTR],
)


@pytest.mark.parametrize("seed", range(4))
def test_star_encodes_as_the_flat_joined_table(seed: int):
    rows, users, items = impressions(seed=seed)
    by_user = {row["user_id"]: row for row in users.iter_rows(named=True)}
    by_item = {row["item_id"]: row for row in items.iter_rows(named=True)}
    joined = [
        row | by_user.get(row["user_id"], {}) | by_item.get(row["item_id"], {})
        for row in rows.iter_rows(named=True)
    ]
    schema = rows.schema | users.schema | items.schema
    flat = pl.DataFrame(joined, schema=schema).with_columns(rows["user_id"])
    star = Encoder(SCHEMA)
    batch = star.fit_encode(scan(rows, users=users, items=items))
    assert by_row(batch) == by_row(Encoder(SCHEMA).fit_encode(flat))
    for name, found in star.learned.maps.items():
        assert found.num_buckets == Encoder(SCHEMA).fit(flat).learned.maps[name].num_buckets
    for one in star.batches(scan(rows, users=users, items=items), chunk_rows=1000):
        assert by_row(one) == by_row(batch)
    lost = [row["user_id"] not in by_user for row in joined]
    assert batch.absent["user"] == sum(lost) > 0


def test_unused_rows_of_a_side_table_teach_nothing():
    rows, users, items = impressions()
    unused = pl.DataFrame({"user_id": range(1_000, 5_000), "age": 1e6})
    more = unused.with_columns(city=pl.format("z{}", "user_id"), likes=pl.lit(["only here"]))
    one = Encoder(SCHEMA).fit(scan(rows, users=users, items=items))
    other = Encoder(SCHEMA).fit(
        scan(rows, users=pl.concat([users, more], how="diagonal"), items=items)
    )
    assert_same_state(one, other)


def assert_same_state(one: Encoder, other: Encoder):
    values, arrays = one.state()
    its_values, its_arrays = other.state()
    assert values == its_values
    assert arrays.keys() == its_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, its_arrays[name])
        assert array.dtype == its_arrays[name].dtype


def test_statistics_weigh_users_by_their_interactions():
    schema = Schema(
        user=Side("u", features=[Numeric("age", scaling="standard")]), context=[], tasks=[CTR]
    )
    users = pl.DataFrame({"u": [1, 2, 3], "age": [10.0, 20.0, 90.0]})
    encoder = Encoder(schema).fit(scan(table(u=[1, 1, 1, 2]), users=users))
    scale = encoder.learned.scales["age"]
    assert scale.mean == np.mean([10, 10, 10, 20])
    assert scale.std == np.std([10, 10, 10, 20])


def test_key_absent_from_its_table_keeps_its_id_and_nothing_else():
    schema = Schema(
        user=Side(
            "u",
            features=[
                Categorical("u", num_buckets=1 << 20),
                Categorical("city"),
                Numeric("age"),
                Numeric("height", scaling="standard"),
                Bag("tags"),
                Vector("face", dim=2),
            ],
        ),
        tasks=[CTR],
    )
    users = pl.DataFrame(
        {
            "u": [1, 2],
            "city": ["a", "b"],
            "age": [1, 2],
            "height": [1.5, 1.8],
            "tags": [["x"], ["y"]],
            "face": [[1.0, 2.0], [3.0, 4.0]],
        }
    )
    encoder = Encoder(schema)
    batch = encoder.fit_encode(scan(table(u=[1, 7, 2, 7, None, 8]), users=users))
    assert batch.absent == {"user": 4}
    (part,) = batch.parts
    found, lists, dense = by_row(batch)
    assert [row[0] for row in found] == reference_rows_of_table([1, 7, 2, 7, None, 8], "u", 1 << 20)
    for row in (1, 3, 4, 5):
        assert found[row][1:] == [NULL_ROW, NULL_ROW]
        assert lists[0][row] == []
        assert dense[row] == [0, 1, 0, 0]
    assert found[0][1:] != [NULL_ROW, NULL_ROW]
    known = encoder.encode(scan(table(u=[7]), users=users.with_columns(u=pl.Series([7, 2]))))
    assert by_row(known)[0][0][0] == found[1][0]
    assert known.absent == {"user": 0}
    assert len(part.block) == 2 + 4


def reference_rows_of_table(values: list[Any], name: str, num_buckets: int):
    seed = xxhash.xxh64_intdigest(name.encode(), 0)
    buckets = [
        None
        if value is None
        else (xxhash.xxh64_intdigest(value.to_bytes(8, "little"), seed) >> 32) * num_buckets >> 32
        for value in values
    ]
    order = sorted({bucket for bucket in buckets if bucket is not None})
    return [NULL_ROW if bucket is None else 3 + order.index(bucket) for bucket in buckets]


def test_chunk_copies_only_the_side_rows_it_refers_to():
    schema = Schema(user=Side("u", features=[Categorical("u")]), tasks=[CTR])
    users = pl.DataFrame({"u": range(1_000)})
    encoder = Encoder(schema).fit(scan(table(u=[1, 2, 3]), users=users))
    rows = scan(table(u=[1, 1, 5000, 2, 3, 4]), users=users)
    first, second = encoder.batches(rows, chunk_rows=3)
    assert len(first.parts[0].block) == 2  # user 1 and the absent one
    assert (first.absent, second.absent) == ({"user": 1}, {"user": 0})


@pytest.mark.parametrize("chunk_rows", [1, 7, 64, 500])
def test_encoding_in_chunks_is_encoding_at_once(chunk_rows: int):
    rows, users, items = impressions()
    opened = scan(rows, users=users, items=items)
    encoder = Encoder(SCHEMA).fit(opened)
    whole = encoder.encode(opened)
    chunks = list(encoder.batches(opened, chunk_rows=chunk_rows, labels="required"))
    assert [chunk.num_rows for chunk in chunks[:-1]] == [chunk_rows] * (len(chunks) - 1)
    parts = [by_row(chunk) for chunk in chunks]
    assert [row for part in parts for row in part[0]] == by_row(whole)[0]
    for position in range(2):
        assert [r for p in parts for r in p[1][position]] == by_row(whole)[1][position]
    assert [row for part in parts for row in part[2]] == by_row(whole)[2]
    assert whole.labels is not None
    np.testing.assert_array_equal(np.concatenate([c.labels for c in chunks]), whole.labels)  # type: ignore[arg-type,misc]
    assert pl.concat([chunk.keys for chunk in chunks]).equals(whole.keys)
    assert sum(chunk.absent["user"] for chunk in chunks) == whole.absent["user"]


def test_fit_and_encode_is_fit_encode():
    rows, users, items = impressions()
    opened = scan(rows, users=users, items=items)
    both, apart = Encoder(SCHEMA), Encoder(SCHEMA)
    batch = both.fit_encode(opened)
    assert by_row(apart.fit(opened).encode(opened)) == by_row(batch)
    assert_same_state(both, apart)
    np.testing.assert_array_equal(batch.labels, apart.encode(opened).labels)


def test_state_rebuilds_an_encoder_that_encodes_the_same():
    rows, users, items = impressions()
    opened = scan(rows, users=users, items=items)
    encoder = Encoder(SCHEMA)
    batch = encoder.fit_encode(opened)
    values, arrays = encoder.state()
    again = Encoder.from_state(SCHEMA, json.loads(json.dumps(values)), arrays)
    assert by_row(again.encode(opened)) == by_row(batch)
    assert again.layout == encoder.layout
    assert_same_state(encoder, again)


def test_no_rows_encode_to_empty_arrays_of_the_same_widths():
    rows, users, items = impressions()
    encoder = Encoder(SCHEMA).fit(scan(rows, users=users, items=items))
    none = scan(rows.clear(), users=users, items=items)
    flat = Encoder(SCHEMA).fit(rows.join(users, "user_id", "left").join(items, "item_id", "left"))
    flat_none = rows.clear().join(users, "user_id", "left").join(items, "item_id", "left")
    (streamed,) = encoder.batches(none)
    for batch in (encoder.encode(none), streamed, flat.encode(flat_none)):
        found, lists, dense = by_row(batch)
        assert (batch.num_rows, found, lists, dense) == (0, [], [[], []], [])
        assert sum(part.block.ids.shape[1] for part in batch.parts) == 5
        assert sum(part.block.dense.shape[1] for part in batch.parts) == 7
        assert batch.keys.columns == ["user_id", "item_id"]


def test_layout_names_the_columns_of_the_blocks():
    rows, users, items = impressions()
    layout = Encoder(SCHEMA).fit(scan(rows, users=users, items=items)).layout
    assert layout.id_tables == ("user_id", "city", "item_id", "price.quantiles", "hour")
    assert layout.list_tables == ("words", "words")
    assert layout.dense_dim == 2 + 2 + 3
    sizes = {size.name: size.num_rows for size in layout.tables}
    assert set(sizes) == {*layout.id_tables, "words"}
    assert sizes["price.quantiles"] == 3 + 5
    assert sizes["words"] == 3 + 4  # t0 .. t3


def test_keys_come_back_as_they_were():
    rows, users, items = impressions()
    batch = Encoder(SCHEMA).fit_encode(scan(rows, users=users, items=items))
    assert batch.keys.equals(rows.select("user_id", "item_id"))


def test_rows_do_not_depend_on_their_batch():
    rows, users, items = impressions()
    encoder = Encoder(SCHEMA).fit(scan(rows, users=users, items=items))
    whole = by_row(encoder.encode(scan(rows, users=users, items=items)))[0]
    for row in (0, 17, 119):
        one = encoder.encode(scan(rows.slice(row, 1), users=users, items=items))
        assert by_row(one)[0] == [whole[row]]
