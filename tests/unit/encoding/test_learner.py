"""What is learned in pieces is what is learned at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl.encoding import Encoder, learner
from recsys_mtl.errors import EncodingError
from recsys_mtl.reading import Rows, scan
from recsys_mtl.schema import Bag, Binary, Categorical, Numeric, Schema, Side

NUM_ROWS = 1000


def _schema() -> Schema:
    return Schema(
        user=Side(
            key="user",
            features=[
                Categorical("user"),
                Numeric("age", scaling="standard"),
                Categorical("home", table="place"),
            ],
        ),
        context=[
            Categorical("here", table="place", min_count=1),
            Categorical("page", vocabulary=20, min_count=2),
            Categorical("rare", min_count=3),
            Categorical("double", num_hashes=2),
            Bag("tags", separator=","),
            Numeric("price", scaling="log"),
            Numeric("hour", scaling="quantile", num_quantiles=7),
        ],
        tasks=[Binary("ctr", label="click")],
    )


def _rows() -> Rows:
    rng = np.random.default_rng(0)
    zipf = rng.zipf(1.5, (5, NUM_ROWS)) % 97
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 60, NUM_ROWS),  # 50 to 59 are not in the table
            "here": zipf[0],
            "page": [f"page {n}" for n in zipf[1]],
            "rare": zipf[2],
            "double": zipf[3],
            "tags": [",".join(map(str, range(n % 5))) or None for n in zipf[4]],
            "price": np.where(rng.random(NUM_ROWS) < 0.1, np.nan, rng.lognormal(size=NUM_ROWS)),
            "hour": rng.integers(0, 24, NUM_ROWS),
            "click": rng.integers(0, 2, NUM_ROWS),
        }
    )
    users = pl.DataFrame(
        {"user": np.arange(50), "age": rng.normal(40, 9, 50), "home": np.arange(50) % 13}
    )
    return scan(frame, users=users)


def _same(one: Encoder, other: Encoder) -> None:
    (values, arrays), (others, other_arrays) = one.state(), other.state()
    for name, numbers in values["numerics"].items():  # sums of several pieces round differently
        for key in ("mean", "std"):
            assert numbers.pop(key) == pytest.approx(others["numerics"][name].pop(key), rel=1e-12)
    assert values == others
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, other_arrays[name], err_msg=name)


@pytest.mark.parametrize("chunk_rows", [1, 7, 333, 999, 5000])
@pytest.mark.parametrize("sampled", [50, 400, 1 << 20])
def test_pieces_of_any_size_teach_the_same(
    chunk_rows: int, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "SAMPLED_NUMBERS", sampled)
    monkeypatch.setattr(learner, "_PENDING_TOKENS", 100)
    schema, rows = _schema(), _rows()
    whole = Encoder(schema)
    whole.fit_encode(rows)
    _same(Encoder(schema).fit(rows, chunk_rows=chunk_rows), whole)


def test_scales_of_many_numbers_are_those_of_every_nth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "SAMPLED_NUMBERS", 100)
    schema, rows = _schema(), _rows()
    values, arrays = Encoder(schema).fit(rows, chunk_rows=64).state()
    frame = rows.interactions.collect()
    every = frame["hour"].gather_every(10).to_numpy()
    edges = np.unique(np.quantile(every, np.linspace(0, 1, 8)[1:-1]))
    np.testing.assert_array_equal(arrays["edges.hour"], edges)
    assert values["numerics"]["hour"]["mean"] == 0
    prices = np.log1p(frame["price"].gather_every(10).drop_nans().to_numpy())
    assert values["numerics"]["price"]["mean"] == pytest.approx(prices.mean())
    # a user's number counts as often as the user does: first those whom the table lacks, which have none
    joined = frame.join(rows.users.source.collect(), "user", "left")  # type: ignore[union-attr]
    repeated = joined.filter(pl.col("age").is_not_null()).sort("user")["age"].to_numpy()
    lost = NUM_ROWS - repeated.size
    assert values["numerics"]["age"]["mean"] == pytest.approx(repeated[-lost % 10 :: 10].mean())


def test_ids_of_two_kinds_are_refused_in_whatever_piece_they_come(tmp_path: Any) -> None:
    schema = Schema(
        context=[Categorical("a", table="t"), Categorical("b", table="t")],
        tasks=[Binary("ctr", label="click")],
    )
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", "y"], "click": [0, 1]})
    with pytest.raises(EncodingError, match="must hold one kind of ids"):
        Encoder(schema).fit(frame, chunk_rows=1)


def test_no_rows_teach_nothing() -> None:
    schema = Schema(context=[Categorical("a")], tasks=[Binary("ctr", label="click")])
    with pytest.raises(EncodingError, match="must hold rows to train on"):
        Encoder(schema).fit(pl.DataFrame(schema={"a": pl.Int64, "click": pl.Int64}))
