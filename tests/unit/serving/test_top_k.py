"""Top-k against a plain loop over scored pairs."""

import numpy as np
import polars as pl
import pytest
import torch
from pyarrow import parquet

from recsys_mtl import (
    Binary,
    Categorical,
    MMoE,
    Multiclass,
    MultiTaskRanker,
    Numeric,
    Schema,
    Side,
    scan,
)
from recsys_mtl.errors import EncodingError, SchemaError
from recsys_mtl.serving import all_pairs, top_k, top_k_to_parquet, topk
from recsys_mtl.serving.all_pairs import from_order_keys, largest, order_keys

USERS, ITEMS = 23, 17


@pytest.fixture(scope="module")
def star():
    users = pl.DataFrame(
        {"user_id": [f"u{n * 7 % USERS}" for n in range(USERS)], "age": range(USERS)}
    )
    items = pl.DataFrame(
        {"item_id": [n * 5 % ITEMS for n in range(ITEMS)], "kind": [n % 3 for n in range(ITEMS)]}
    )
    pairs = pl.DataFrame(
        {
            "user_id": [f"u{n * 7 % USERS}" for n in range(1000)],
            "item_id": [n * 5 % ITEMS for n in range(1000)],
            "hour": [n % 24 for n in range(1000)],
            "click": [n * 7 % 3 % 2 for n in range(1000)],
            "like": [n % 3 for n in range(1000)],
        }
    )
    return pairs, users, items


@pytest.fixture(scope="module")
def ranker(star):
    pairs, users, items = star
    schema = Schema(
        user=Side("user_id", features=[Categorical("user_id"), Numeric("age")]),
        item=Side("item_id", features=[Categorical("item_id"), Categorical("kind")]),
        context=[Categorical("hour")],
        tasks=[Binary("ctr", label="click"), Multiclass("like", label="like", num_classes=3)],
    )
    made = MultiTaskRanker(
        schema,
        sharing=MMoE(2, expert_dims=(8,)),
        embedding_dim=24,
        max_epochs=2,
        batch_size=100,
        device="cpu",
        random_state=0,
    )
    return made.fit(scan(pairs, users=users, items=items)).scorer


def _by_hand(pairs, scores, k, *, by=0, seen=()):
    """The best k of each key by rising key; equal scores by id."""
    best = {}
    for pair, score in zip(pairs, scores, strict=True):
        if pair not in seen:
            mine = best.setdefault(pair[by], {})
            other = pair[1 - by]
            mine[other] = max(score, mine.get(other, -np.inf))
    rows = []
    for key in sorted(best):
        order = sorted(best[key].items(), key=lambda one: (-one[1], one[0]))[:k]
        rows += [(key, other, rank) for rank, (other, _) in enumerate(order, 1)]
    return rows


def _all_scored(ranker, star, hour):
    _, users, items = star
    pairs = users.select("user_id").join(items.select("item_id"), how="cross")
    pairs = pairs.with_columns(pl.lit(hour).alias("hour"))
    scored = ranker.score(scan(pairs, users=users, items=items))
    return pairs.select("user_id", "item_id").rows(), scored


@pytest.mark.parametrize("at_once", [7, 40, 1 << 18])
@pytest.mark.parametrize("by", ["user_id", "item_id"])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_all_pairs_give_the_best_of_their_product(ranker, star, k, by, at_once, monkeypatch):
    monkeypatch.setattr(all_pairs, "PAIRS_AT_ONCE", at_once)
    pairs, scored = _all_scored(ranker, star, 3)
    _, users, items = star
    found = top_k(ranker, users=users, items=items, k=k, by=by, score="ctr", context={"hour": 3})
    expected = _by_hand(pairs, scored["ctr"], k, by=int(by == "item_id"))
    assert [row[:2] for row in found.select(pl.exclude("ctr")).rows()] == [r[:2] for r in expected]
    assert found["rank"].to_list() == [rank for _, _, rank in expected]
    known = dict(zip(pairs, scored["ctr"], strict=True))
    again = [known[pair] for pair in found.select("user_id", "item_id").rows()]
    np.testing.assert_allclose(found["ctr"], again, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by", ["user_id", "item_id"])
def test_candidates_give_the_best_of_each_key(ranker, star, by, monkeypatch):
    monkeypatch.setattr(topk, "CHUNK_ROWS", 64)
    pairs, users, items = star
    rows = scan(pairs, users=users, items=items)
    scored = ranker.score(rows)
    expected = _by_hand(
        pairs.select("user_id", "item_id").rows(), scored["ctr"], 4, by=int(by == "item_id")
    )
    found = top_k(ranker, rows, k=4, by=by, score="ctr")
    assert found.drop("ctr").rows() == expected


def test_equal_scores_are_ranked_by_id(ranker, star):
    pairs, users, items = star

    def same(scores):
        return np.zeros(scores.height)

    found = top_k(
        ranker, users=users, items=items, k=3, by="user_id", score=same, context={"hour": 1}
    )
    assert found["item_id"].to_list() == [0, 1, 2] * USERS
    rows = scan(pairs.reverse(), users=users, items=items)
    chosen = top_k(ranker, rows, k=3, by="user_id", score=same)
    held = pairs.unique(["user_id", "item_id"]).sort("user_id", "item_id")
    expected = held.group_by("user_id", maintain_order=True).head(3)
    assert chosen.select("user_id", "item_id").equals(expected.select("user_id", "item_id"))


@pytest.mark.parametrize("given", ["candidates", "all"])
def test_seen_pairs_are_left_out(ranker, star, given, tmp_path):
    pairs, users, items = star
    seen = pairs.filter(pl.col("item_id") % 2 == 0).select("user_id", "item_id", "hour")
    seen = pl.concat([seen, pl.DataFrame({"user_id": ["x"], "item_id": [99], "hour": [0]})])
    seen.write_parquet(tmp_path / "seen.parquet")
    settings = {"k": 100, "by": "user_id", "score": "ctr", "exclude": tmp_path / "seen.parquet"}
    if given == "all":
        settings |= {"users": users, "items": items, "context": {"hour": 5}}
        expected = {(u, i) for u in users["user_id"] for i in items["item_id"]}
    else:
        settings["candidates"] = scan(pairs, users=users, items=items)
        expected = set(pairs.select("user_id", "item_id").rows())
    found = top_k(ranker, **settings)
    expected -= set(seen.select("user_id", "item_id").rows())
    assert set(found.select("user_id", "item_id").rows()) == expected


def test_a_user_who_has_seen_all_has_no_rows(ranker, star):
    _, users, items = star
    seen = items.select("item_id").with_columns(pl.lit("u1").alias("user_id"))
    found = top_k(
        ranker,
        users=users,
        items=items,
        exclude=seen,
        context={"hour": 0},
        k=2,
        by="user_id",
        score="ctr",
    )
    assert set(found["user_id"]) == set(users["user_id"]) - {"u1"}


def test_an_expression_of_scores_ranks(ranker, star):
    _, users, items = star
    settings = {"users": users, "items": items, "k": 3, "by": "user_id", "context": {"hour": 2}}
    plain = top_k(ranker, score="ctr", **settings)
    by_sql = top_k(ranker, score="ln(ctr) * 2", **settings)
    by_polars = top_k(ranker, score=pl.col("ctr").log() * 2, **settings)
    assert by_sql.columns == ["user_id", "item_id", "rank", "score"]
    assert by_sql.equals(by_polars)
    assert by_sql.drop("score").equals(plain.drop("ctr"))


def test_the_file_holds_the_table_and_nothing_else_is_left(ranker, star, tmp_path):
    _, users, items = star
    settings = {"users": users, "items": items, "k": 3, "by": "user_id", "score": "ctr"}
    settings["context"] = {"hour": 2}
    rows = top_k_to_parquet(ranker, tmp_path / "best.parquet", **settings)
    assert rows == 3 * USERS
    assert pl.read_parquet(tmp_path / "best.parquet").equals(top_k(ranker, **settings))
    with pytest.raises(SchemaError):
        top_k_to_parquet(ranker, tmp_path / "other.parquet", **(settings | {"score": "no"}))
    assert [path.name for path in tmp_path.iterdir()] == ["best.parquet"]


def test_a_context_that_nothing_reads_is_refused(ranker, star):
    _, users, items = star
    given = {"users": users, "items": items, "context": {"hour": 1, "day": 3}}
    with pytest.raises(SchemaError, match="Found 'day'"):
        top_k(ranker, k=3, by="user_id", score="ctr", **given)


def test_a_file_that_is_read_is_not_written(ranker, star, tmp_path):
    pairs, users, items = star
    files = {"candidates": pairs, "users": users, "items": items, "exclude": pairs.head(5)}
    for name, frame in files.items():
        frame.write_parquet(tmp_path / f"{name}.parquet")
    sides = {name: tmp_path / f"{name}.parquet" for name in ("users", "items")}
    asked = {"k": 3, "by": "user_id", "score": "ctr", "exclude": tmp_path / "exclude.parquet"}
    candidates = scan(tmp_path / "candidates.parquet", **sides)
    for name in files:
        with pytest.raises(FileExistsError, match="must not be overwritten"):
            top_k_to_parquet(ranker, tmp_path / f"{name}.parquet", candidates, **asked)
    with pytest.raises(FileExistsError, match="read as the items"):
        top_k_to_parquet(ranker, tmp_path / "items.parquet", **sides, context={"hour": 1}, **asked)
    assert all(pl.read_parquet(tmp_path / f"{name}.parquet").equals(files[name]) for name in files)


def test_a_file_has_as_few_row_groups_whatever_is_scored_at_once(
    ranker, star, tmp_path, monkeypatch
):
    monkeypatch.setattr(all_pairs, "PAIRS_AT_ONCE", ITEMS)  # a frame for each user
    _, users, items = star
    given = {"users": users, "items": items, "context": {"hour": 1}}
    file = tmp_path / "best.parquet"
    rows = top_k_to_parquet(ranker, file, k=2, by="user_id", score="ctr", **given)
    assert parquet.read_metadata(file).num_row_groups == 1
    assert rows == 2 * USERS


@pytest.mark.parametrize("empty", ["users", "items", "candidates"])
def test_nothing_to_rank_gives_an_empty_table_of_the_same_columns(ranker, star, empty):
    pairs, users, items = star
    settings = {"k": 3, "by": "user_id", "score": "ctr"}
    whole = top_k(ranker, users=users, items=items, context={"hour": 1}, **settings)
    if empty == "candidates":
        found = top_k(ranker, scan(pairs.clear(), users=users, items=items), **settings)
    else:
        tables = {"users": users, "items": items}
        tables[empty] = tables[empty].clear()
        found = top_k(ranker, **tables, context={"hour": 1}, **settings)
    assert found.height == 0
    assert found.schema == whole.schema


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"by": "age"}, SchemaError, "by must be the key"),
        ({"score": "like"}, SchemaError, "one number for each row"),
        ({"score": "interest"}, SchemaError, "made of the model's scores"),
        ({"score": "ctr +"}, SchemaError, "SQL expression"),
        ({"k": 0}, ValueError, "at least 1"),
        ({"context": {}}, EncodingError, "hour"),
        ({"items": None}, EncodingError, "need users= and items="),
        ({"exclude": pl.DataFrame({"user_id": [1]})}, EncodingError, "item_id"),
        ({"exclude": pl.DataFrame({"user_id": [1], "item_id": [1]})}, EncodingError, "one type"),
    ],
)
def test_what_cannot_be_ranked_is_refused(ranker, star, change, error, match):
    _, users, items = star
    settings = {"users": users, "items": items, "k": 3, "by": "user_id", "score": "ctr"}
    with pytest.raises(error, match=match):
        top_k(ranker, **(settings | {"context": {"hour": 1}} | change))


def test_candidates_refuse_pairs_to_exclude_of_another_type(ranker, star):
    pairs, users, items = star
    seen = pl.DataFrame({"user_id": [1], "item_id": [1]})
    rows = scan(pairs, users=users, items=items)
    with pytest.raises(EncodingError, match="one type"):
        top_k(ranker, rows, k=3, by="user_id", score="ctr", exclude=seen)


def test_keys_order_scores_and_give_them_back():
    scores = np.array([[-np.inf, -1.5, -0.0, 0.0, 1e-45, 2.5, np.inf, np.nan, -1e-45]], np.float32)
    keys = order_keys(scores, 5)
    ordered = largest(keys, 9)
    found, places = from_order_keys(ordered[0])
    assert places.tolist() == [11, 10, 9, 7, 8, 13, 6, 5, 12]
    np.testing.assert_array_equal(found, scores[0, places - 5])


def test_the_largest_are_those_of_a_stable_sort():
    chance = np.random.default_rng(0)
    scores = chance.integers(0, 4, size=(50, 300)).astype(np.float32)
    _, places = from_order_keys(largest(order_keys(scores, 0), 20))
    expected = torch.sort(torch.from_numpy(scores), descending=True, stable=True).indices[:, :20]
    assert np.array_equal(places, expected.numpy())
