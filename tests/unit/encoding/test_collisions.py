"""Counts of shared rows against dictionaries, closed forms and random maps."""

import math
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
import xxhash

from recsys_mtl.encoding import Encoder, collision_report, hash_column, hash_table
from recsys_mtl.errors import EncodingError, NotFittedError
from recsys_mtl.reading import scan
from recsys_mtl.schema import Bag, Binary, Categorical, Numeric, Schema, Side

CTR = Binary("ctr", label="click")
MASK = 2**32 - 1


def context(*features: Any, **settings: Any) -> Schema:
    return Schema(context=features, tasks=[CTR], **settings)


def table(**columns: Any) -> pl.DataFrame:
    return pl.DataFrame(columns).with_columns(click=pl.int_range(pl.len()) % 2)


def report_of(schema: Schema, train: Any, rows: Any = None, **options: Any) -> dict[str, Any]:
    """Fit, and return the report's only row."""
    found = collision_report(Encoder(schema).fit(train), train if rows is None else rows, **options)
    return found.row(0, named=True)


def buckets_of(value: Any, name: str, num_buckets: int, num_hashes: int = 1) -> tuple[int, ...]:
    """Return a value's buckets by the definition, in an order of their own."""
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little", signed=True)
    found = xxhash.xxh64_intdigest(data, xxhash.xxh64_intdigest(name.encode(), 0))
    hashes = [((found >> 32) + j * (found & MASK)) & MASK for j in range(num_hashes)]
    return tuple(sorted(hashed * num_buckets >> 32 for hashed in hashes))


def brute_force(uses: Counter, name: str, num_buckets: int, num_hashes: int = 1):
    """Return the shares of values and of occurrences whose value shares all its buckets."""
    uses = Counter({value: count for value, count in uses.items() if value is not None})
    places = {v: buckets_of(v, name, num_buckets, num_hashes) for v in uses if v != ""}
    guests = Counter(places.values())
    shared = [value for value, place in places.items() if guests[place] > 1]
    return len(shared) / len(places), sum(uses[v] for v in shared) / uses.total()


def draws(num_rows: int, num_values: int, seed: int) -> list[int]:
    """Draw ids, some of them often."""
    rng = np.random.default_rng(seed)
    return (num_values * rng.random(num_rows) ** 3).astype(np.int64).tolist()


@pytest.mark.parametrize("num_hashes", [1, 2])
@pytest.mark.parametrize("num_buckets", [2, 16, 61, 1000])
@pytest.mark.parametrize("text", [True, False])
def test_counts_are_those_of_a_dictionary(num_hashes: int, num_buckets: int, text: bool):
    ids = draws(6_000, 900, seed=num_buckets)
    values: list[Any] = [f"v{i}" if text else i - 400 for i in ids]
    values[::7] = [None] * len(values[::7])
    if text:
        values[1::9] = [""] * len(values[1::9])
    feature = Categorical("x", num_buckets=num_buckets, num_hashes=num_hashes)
    found = report_of(context(feature), table(x=values))
    observed, traffic = brute_force(Counter(values), "x", num_buckets, num_hashes)
    assert found["distinct"] == len({value for value in values if value not in (None, "")})
    assert (found["observed"], found["traffic"]) == (observed, traffic)
    assert (found["buckets"], found["unknown"]) == (num_buckets, 0)


def test_null_and_empty_string_never_collide():
    found = report_of(context(Categorical("x", num_buckets=2)), table(x=[None, "", "", "a", None]))
    assert found["distinct"] == 1
    assert (found["expected"], found["observed"], found["traffic"]) == (0, 0, 0)
    crowd = report_of(context(Categorical("x", num_buckets=2)), table(x=["", "", *"abc"]))
    assert crowd["traffic"] == brute_force(Counter(["", "", *"abc"]), "x", 2)[1] <= 3 / 5


@pytest.mark.parametrize("empty", [{"x": [None, None]}, {"x": pl.Series([], dtype=pl.Int64)}])
def test_shares_of_nothing_are_zero(empty: dict[str, Any]):
    found = report_of(context(Categorical("x")), table(x=[1, 2]), table(**empty))
    assert [found[name] for name in ("distinct", "expected", "observed", "traffic")] == [0] * 4
    assert found["suggested"] == 2


def test_values_of_shared_tables_collide_across_features():
    schema = context(Categorical("a", table="t", num_buckets=8), Bag("b", table="t", num_buckets=8))
    frame = table(a=[1, 2, 3, None], b=[[4, 5], [], None, [1, 6]])
    found = report_of(schema, frame)
    assert (found["table"], found["features"], found["distinct"]) == ("t", ["a", "b"], 6)
    observed, traffic = brute_force(Counter([1, 2, 3, 4, 5, 1, 6]), "t", 8)
    assert (found["observed"], found["traffic"]) == (observed, traffic)


def test_vocabulary_never_collides_and_the_rest_may():
    values = [f"v{i}" for i in draws(4_000, 400, seed=1)]
    uses = Counter(values)
    feature = Categorical("x", vocabulary=50, num_buckets=32)
    found = report_of(context(feature), table(x=values))
    # By the documented order: most frequent first; ties by hash.
    seed = xxhash.xxh64_intdigest(b"x", 0)
    order = sorted(uses, key=lambda v: (-uses[v], xxhash.xxh64_intdigest(v.encode(), seed)))
    rest = Counter({value: uses[value] for value in order[50:]})
    observed, traffic = brute_force(rest, "x", 32)
    assert found["observed"] == pytest.approx(observed * len(rest) / len(uses), rel=1e-12)
    assert found["traffic"] == pytest.approx(traffic * rest.total() / uses.total(), rel=1e-12)
    expected = (1 - (1 - 1 / 32) ** (len(rest) - 1)) * len(rest) / len(uses)
    assert found["expected"] == pytest.approx(expected, rel=1e-12)
    assert (found["unknown"], found["rows"]) == (0, 3 + 50 + 32)
    whole = report_of(context(Categorical("x", vocabulary=10_000)), table(x=values))
    assert (whole["expected"], whole["observed"], whole["suggested"]) == (0, 0, 2)


def test_unknown_is_the_share_of_occurrences_without_a_row():
    frame = table(x=["a", "a", "b", None, "", "c", "c", "c"])
    rare = report_of(context(Categorical("x", num_buckets=2**20, min_count=2)), frame)
    assert rare["unknown"] == 1 / 7
    unseen = report_of(
        context(Categorical("x", num_buckets=2**20)), frame, table(x=["a", "z", "z"])
    )
    assert unseen["unknown"] == 2 / 3


def test_value_with_one_known_row_of_two_is_not_unknown():
    feature, frame = Categorical("x", num_buckets=8, num_hashes=2), table(x=range(100))
    kept = set(buckets_of(7, "x", 8, 2))
    lost = [kept.isdisjoint(buckets_of(value, "x", 8, 2)) for value in range(100)]
    assert report_of(context(feature), table(x=[7]), frame)["unknown"] == sum(lost) / 100


def test_collisions_are_counted_in_the_hash_range_whatever_was_kept():
    frame = table(x=draws(2_000, 900, seed=2))
    observed, traffic = brute_force(Counter(frame["x"]), "x", 500)
    for min_count in (1, 3, 100):
        feature = Categorical("x", num_buckets=500, min_count=min_count)
        found = report_of(context(feature), frame)
        assert (found["observed"], found["traffic"]) == (observed, traffic)


def test_side_tables_are_weighted_by_the_interactions_that_refer_to_them():
    schema = Schema(
        user=Side("u", features=[Categorical("u", num_buckets=4), Bag("tags", num_buckets=4)]),
        tasks=[CTR],
    )
    users = pl.DataFrame({"u": [1, 2, 3, 4], "tags": [["a", "b"], ["c"], None, ["only here"]]})
    rows = scan(table(u=[1, 1, 1, 2, 3, 77, 77, None]), users=users)
    encoder = Encoder(schema).fit(rows)
    ids, tags = collision_report(encoder, rows).rows(named=True)
    assert (ids["distinct"], tags["distinct"]) == (4, 3)
    expected = brute_force(Counter([1, 1, 1, 2, 3, 77, 77]), "u", 4)
    assert (ids["observed"], ids["traffic"]) == expected
    expected = brute_force(Counter([*"ababab", "c"]), "tags", 4)
    assert (tags["observed"], tags["traffic"]) == expected
    joined = rows.interactions.collect().join(users, on="u", how="left", maintain_order="left")
    assert collision_report(encoder, joined).equals(collision_report(encoder, rows))


@pytest.mark.parametrize(("num_hashes", "num_buckets"), [(1, 500_000), (2, 1_000)])
def test_expected_share_is_that_of_random_maps(num_hashes: int, num_buckets: int):
    num_values, repeats = 500_000, 8
    rng = np.random.default_rng(num_hashes)
    shares = []
    for _ in range(repeats):
        high, low = rng.integers(0, 2**32, (2, num_values), dtype=np.uint64)
        hashes = [(high + np.uint64(j) * low) & np.uint64(MASK) for j in range(num_hashes)]
        placed = np.sort([hashed * np.uint64(num_buckets) >> np.uint64(32) for hashed in hashes], 0)
        key = np.uint64(num_buckets) ** np.arange(num_hashes, dtype=np.uint64) @ placed
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        shares.append((counts[inverse] > 1).mean())
    feature = Categorical("x", num_buckets=num_buckets, num_hashes=num_hashes)
    expected = report_of(context(feature), table(x=range(num_values)))["expected"]
    error = np.std(shares, ddof=1) / math.sqrt(repeats)
    leading = 0.0 if num_hashes == 1 else 4 / num_buckets  # the formula is that of many buckets
    assert abs(np.mean(shares) - expected) < 4 * error + leading * expected


@pytest.mark.parametrize("name", ["first", "second", "third"])
@pytest.mark.parametrize("num_buckets", [2**14, 100_003, 2**20])
def test_observed_share_is_within_four_deviations_of_the_expected(name: str, num_buckets: int):
    d, n = 50_000, num_buckets
    found = report_of(context(Categorical(name, num_buckets=n)), table(**{name: range(d)}))
    alone, pair = (1 - 1 / n) ** (d - 1), (1 - 1 / n) * (1 - 2 / n) ** (d - 2)
    variance = d * alone + d * (d - 1) * pair - (d * alone) ** 2
    assert found["expected"] == pytest.approx(1 - alone, rel=1e-9)
    assert abs(found["observed"] - found["expected"]) * d < 4 * math.sqrt(variance)


@pytest.mark.parametrize("tolerance", [0.001, 0.03, 0.5])
@pytest.mark.parametrize("num_values", [2, 3, 100, 5_000])
def test_suggested_size_is_the_smallest_power_of_two_within_tolerance(
    num_values: int, tolerance: float
):
    found = report_of(context(Categorical("x")), table(x=range(num_values)), tolerance=tolerance)
    size = 2
    while 1 - (1 - 1 / size) ** (num_values - 1) > tolerance:
        size *= 2
    assert found["suggested"] == size
    again = context(Categorical("x", num_buckets=size))
    assert report_of(again, table(x=range(num_values)))["expected"] <= tolerance


def test_no_size_is_suggested_where_none_is_large_enough():
    frame = table(x=range(1_000))
    assert report_of(context(Categorical("x")), frame, tolerance=1e-7)["suggested"] is None
    assert report_of(context(Categorical("x")), frame, tolerance=1e-6)["suggested"] == 2**30


def test_memory_is_that_of_the_map_and_of_a_float32_table():
    schema = context(
        Categorical("a", num_buckets=2**16), Categorical("b", embedding_dim=3), Numeric("c")
    )
    frame = table(a=range(100), b=[1] * 100, c=range(100))
    encoder = Encoder(schema).fit(frame)
    first, second = collision_report(encoder, frame, embedding_dim=8).rows(named=True)
    assert (first["table"], second["table"]) == ("a", "b")
    assert first["rows"] == encoder.layout.tables[0].num_rows
    assert first["table_bytes"] == np.zeros((first["rows"], 8), np.float32).nbytes
    assert second["table_bytes"] == np.zeros((4, 3), np.float32).nbytes
    assert first["map_bytes"] == 2**16 // 4 + 16  # 2 bits a bucket, and one more pair of words
    default = collision_report(encoder, frame)["table_bytes"]
    assert default.to_list() == [first["rows"] * 16 * 4, 4 * 3 * 4]


def test_report_is_the_same_for_any_order_and_library_of_rows():
    frame = table(x=draws(3_000, 800, seed=4))
    encoder = Encoder(context(Categorical("x", num_buckets=512))).fit(frame)
    report = collision_report(encoder, frame)
    mixed = frame.sample(fraction=1, shuffle=True, seed=1)
    assert all(
        collision_report(encoder, rows).equals(report)
        for rows in (mixed, frame.to_pandas(), frame.to_arrow(), frame.lazy())
    )


def test_murmur3_is_counted_as_it_is_encoded():
    frame = table(x=range(500))
    encoder = Encoder(context(Categorical("x", num_buckets=64), hash="murmur3"))
    rows = encoder.fit_encode(frame).parts[0].block.ids[:, 0]
    found = collision_report(encoder, frame).row(0, named=True)
    assert found["observed"] == (np.bincount(rows)[rows] > 1).mean()


def test_schema_without_ids_gives_an_empty_report():
    frame = table(x=[1.0, 2.0])
    encoder = Encoder(context(Numeric("x"))).fit(frame)
    report = collision_report(encoder, frame)
    assert report.is_empty()
    full = Encoder(context(Categorical("x"))).fit(table(x=[1]))
    assert report.schema == collision_report(full, table(x=[1])).schema


def test_report_needs_a_fitted_encoder_and_the_trained_type_of_ids():
    with pytest.raises(NotFittedError, match="must be fitted first"):
        collision_report(Encoder(context(Categorical("x"))), table(x=[1]))
    with pytest.raises(EncodingError, match="cast the column 'x'"):
        report_of(context(Categorical("x")), table(x=[1]), table(x=["1"]))


@pytest.mark.parametrize("options", [{"embedding_dim": 0}, {"tolerance": 0}, {"tolerance": 1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=next(iter(options))):
        report_of(context(Categorical("x")), table(x=[1]), **options)


IDS = [
    pl.Series(range(100_000)),
    pl.Series(np.arange(100_000) * 2**32),
    pl.Series([f"user_{i:07d}" for i in range(100_000)]),
]


@pytest.mark.parametrize("algorithm", ["xxh64", "murmur3"])
@pytest.mark.parametrize("ids", IDS, ids=["small ids", "high bits", "text"])
def test_hashed_columns_are_uniform_and_collide_as_a_random_map(ids: pl.Series, algorithm: Any):
    d, n = len(ids), 131_071
    rows = hash_column(ids, name="x", num_rows=n + 1, algorithm=algorithm)
    counts = np.bincount(rows, minlength=n + 1)
    assert counts[0] == 0
    alone, pair = (1 - 1 / n) ** (d - 1), (1 - 1 / n) * (1 - 2 / n) ** (d - 2)
    variance = d * alone + d * (d - 1) * pair - (d * alone) ** 2
    assert abs(int((counts == 1).sum()) - d * alone) < 4 * math.sqrt(variance)
    narrow = hash_column(ids, name="x", num_rows=1_025, algorithm=algorithm)
    filled, even = np.bincount(narrow, minlength=1_025)[1:], d / 1_024
    chi_square = float(((filled - even) ** 2 / even).sum())
    assert abs(chi_square - 1_023) < 4 * math.sqrt(2 * 1_023)


def test_hashed_columns_of_other_names_are_unrelated():
    frame = pl.DataFrame({name: range(100_000) for name in ("a", "b")})
    rows = hash_table(frame, num_rows=1_001)
    same, even = int((rows[:, 0] == rows[:, 1]).sum()), 100_000 / 1_000
    assert abs(same - even) < 4 * math.sqrt(even)
