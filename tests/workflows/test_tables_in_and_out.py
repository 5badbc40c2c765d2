"""Every kind of table comes back as it went in: its kind, its rows, its order, its ids."""

import numpy as np
import pandas as pd
import polars as pl
import polars.testing
import pyarrow as pa
import pytest

from recsys_mtl import Binary, Categorical, MultiTaskRanker, Schema, SharedBottom, Side, scan
from recsys_mtl.errors import EncodingError

SCORES = ["interest", "ctr", "rating"]
LARGEST = 2**63 - 1


@pytest.fixture(scope="module")
def rows(log):
    """Unlabelled rows in no particular order, one of them twice."""
    wanted = log.part("test").select("user_id", "item_id", "hour", "duration_ms").head(257)
    return pl.concat([wanted.sample(fraction=1, shuffle=True, seed=3), wanted.slice(7, 1)])


@pytest.fixture(scope="module")
def scored(ranker, log, rows):
    return ranker.predict(log.rows(rows))


@pytest.fixture(scope="module")
def by_id():
    """Fit a tiny model whose user and item ids are as given; return the ranker."""

    def fitted(users, items):
        table = pl.DataFrame([users.rename("user_id"), items.rename("item_id")])
        table = table.with_columns(label=pl.Series([0, 1] * table.height)[: table.height])
        schema = Schema(
            user=Side("user_id", features=[Categorical("user_id")]),
            item=Side("item_id", features=[Categorical("item_id")]),
            tasks=[Binary("ctr", label="label")],
        )
        made = MultiTaskRanker(
            schema,
            sharing=SharedBottom(dims=(4,)),
            embedding_dim=4,
            max_epochs=1,
            device="cpu",
            random_state=0,
        )
        return made.fit(table)

    return fitted


def test_polars_gives_polars_with_all_rows_in_order(scored, rows):
    assert isinstance(scored, pl.DataFrame)
    assert scored.columns == ["user_id", "item_id", *SCORES]
    assert scored.select("user_id", "item_id").equals(rows.select("user_id", "item_id"))
    assert scored.dtypes[2:] == [pl.Float32] * 3
    assert scored.null_count().sum_horizontal().item() == 0


def test_a_row_that_stands_twice_is_scored_twice(scored, rows):
    places = [place for place, row in enumerate(rows.rows()) if row == rows.row(-1)]
    assert len(places) > 1
    assert scored.row(places[0]) == pytest.approx(scored.row(-1), abs=1e-5)


def test_a_lazy_frame_gives_polars_with_equal_scores(ranker, log, rows, scored):
    assert ranker.predict(log.rows(rows.lazy())).equals(scored)


@pytest.mark.parametrize("form", ["table", "batch", "chunks"])
def test_arrow_gives_arrow_with_equal_scores(ranker, log, rows, scored, form):
    table = rows.to_arrow()
    given = {
        "table": table,
        "batch": table.combine_chunks().to_batches()[0],
        "chunks": pa.concat_tables([table.slice(0, 100), table.slice(100)]),
    }[form]
    found = ranker.predict(log.rows(given))
    assert isinstance(found, pa.Table)
    assert pl.DataFrame(found).equals(scored)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_path_gives_polars_with_equal_scores(ranker, log, rows, scored, tmp_path, as_text):
    file = tmp_path / "rows.parquet"
    rows.write_parquet(file, row_group_size=50)
    found = ranker.predict(log.rows(str(file) if as_text else file))
    assert isinstance(found, pl.DataFrame)
    assert found.select("user_id", "item_id").equals(scored.select("user_id", "item_id"))
    np.testing.assert_allclose(found[SCORES].to_numpy(), scored[SCORES].to_numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "index",
    [
        pd.Index(np.arange(258) * 7 - 3, name="row"),
        pd.MultiIndex.from_product([["a", "b"], range(129)], names=["letter", "number"]),
        pd.Index(["same"] * 258),
    ],
    ids=["numbers", "two levels", "not unique"],
)
def test_pandas_gives_pandas_with_its_index_and_equal_scores(ranker, log, rows, scored, index):
    frame = rows.to_pandas().set_index(index)
    found = ranker.predict(log.rows(frame))
    assert isinstance(found, pd.DataFrame)
    pd.testing.assert_index_equal(found.index, frame.index)
    assert pl.from_pandas(found).equals(scored)


def test_a_filtered_pandas_frame_keeps_the_index_of_the_rows_left(ranker, log, rows):
    frame = rows.to_pandas()
    frame.index = frame.index[::-1] * 10
    found = ranker.predict(log.rows(frame).filter(pl.col("hour") >= 18))
    kept = frame[frame["hour"] >= 18]
    assert 0 < len(kept) < len(frame)
    pd.testing.assert_index_equal(found.index, kept.index)
    pd.testing.assert_series_equal(found["user_id"], kept["user_id"])


def test_a_flat_joined_table_and_side_tables_train_and_score_alike(make, ranker, log, rows, scored):
    """Side tables' rows are multiplied once, so sums differ in their order; the weights are the same."""
    from_flat = ranker.predict(log.flat(rows))
    pl.testing.assert_frame_equal(from_flat, scored, rel_tol=1e-6, abs_tol=1e-6)
    flat = make().fit(log.flat(log.part("train")), valid=log.flat(log.part("valid")))
    assert flat.predict(log.flat(rows)).equals(from_flat)


def test_labels_are_not_needed_and_other_columns_do_not_matter(ranker, log, rows, scored):
    more = rows.with_columns(pl.lit("?").alias("label_ctr"), pl.lit(None).alias("zeta"))
    assert ranker.predict(log.rows(more.select(sorted(more.columns, reverse=True)))).equals(scored)


def test_an_empty_table_gives_an_empty_table_of_the_same_columns(ranker, log, rows, scored):
    found = ranker.predict(log.rows(rows.clear()))
    assert found.height == 0
    assert found.schema == scored.schema
    empty = ranker.predict(log.rows(rows.clear().to_pandas()))
    assert list(empty.columns) == scored.columns
    assert len(empty) == 0
    assert [str(empty[name].dtype) for name in SCORES] == ["float32"] * 3
    arrow = ranker.predict(log.rows(rows.clear().to_arrow()))
    assert arrow.schema == scored.to_arrow().schema


@pytest.mark.parametrize("size", [1, 2, 3, 31, 255, 257])
def test_a_score_does_not_depend_on_the_rows_beside_it(ranker, log, rows, scored, size):
    alone = ranker.predict(log.rows(rows.tail(size)))
    expected = scored.tail(size)
    assert alone.select("user_id", "item_id").equals(expected.select("user_id", "item_id"))
    np.testing.assert_allclose(alone[SCORES].to_numpy(), expected[SCORES].to_numpy(), atol=1e-5)


def test_rows_in_another_order_have_the_same_scores(ranker, log, rows, scored):
    found = ranker.predict(log.rows(rows.reverse())).reverse()
    np.testing.assert_allclose(found[SCORES].to_numpy(), scored[SCORES].to_numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "ids",
    [
        pl.Series([LARGEST, LARGEST - 1, 2**24 + 1, 2**24, -(2**63)], dtype=pl.Int64),
        pl.Series([2**64 - 1, 2**64 - 2, 2**63, 0, 1], dtype=pl.UInt64),
        pl.Series(["a", "", "ü", "A", "a "]),
        pl.Series(["x", "y", "x", "z", "y"], dtype=pl.Categorical),
        pl.Series([1, 2, 3, 4, 5], dtype=pl.Int8),
    ],
    ids=["int64", "uint64", "text", "categorical", "int8"],
)
def test_ids_keep_their_type_and_value(by_id, ids, tmp_path):
    from recsys_mtl import score_parquet

    ranker = by_id(ids, ids.reverse())
    table = pl.DataFrame([ids.rename("user_id"), ids.reverse().rename("item_id")])
    found = ranker.predict(table)
    assert found.select("user_id", "item_id").equals(table)
    assert found.select("user_id", "item_id").schema == table.schema
    pandas = ranker.predict(table.to_pandas())
    pd.testing.assert_frame_equal(pandas[["user_id", "item_id"]], table.to_pandas())
    score_parquet(ranker, table, tmp_path / "scores.parquet")
    written = pl.read_parquet(tmp_path / "scores.parquet")
    assert written["user_id"].cast(ids.dtype).to_list() == ids.to_list()
    assert written["ctr"].equals(found["ctr"])


def test_ids_that_differ_only_in_the_last_bit_have_their_own_vectors(by_id):
    users = pl.Series([LARGEST, LARGEST - 1, 2**24, 2**24 + 1] * 8, dtype=pl.Int64)
    ranker = by_id(users, pl.Series([1, 2] * 16))
    asked = pl.DataFrame({"user_id": users[:4], "item_id": [1] * 4})
    assert ranker.predict(asked)["ctr"].n_unique() == 4


def test_unseen_and_null_ids_are_scored_and_kept(ranker, log):
    odd = pl.DataFrame(
        {
            "user_id": [10**12, None, 1, None],
            "item_id": [1, -5, None, None],
            "hour": pl.Series([99, None, 3, None], dtype=pl.Int8),
            "duration_ms": [None, 10, -7, None],
        }
    )
    for table in (log.rows(odd), log.flat(odd)):
        found = ranker.predict(table)
        assert found.select("user_id", "item_id").equals(odd.select("user_id", "item_id"))
        assert np.isfinite(found[SCORES].to_numpy()).all()
    assert ranker.predict(log.rows(odd)).equals(ranker.predict(log.flat(odd)))


def test_all_unseen_users_of_one_kind_have_one_score(ranker, log):
    strangers = pl.DataFrame(
        {
            "user_id": [10**12, -1, 10**9],
            "item_id": [3] * 3,
            "hour": [8] * 3,
            "duration_ms": [9] * 3,
        }
    ).with_columns(pl.col("hour").cast(pl.Int8))
    encoded = ranker.scorer.encoder.encode(log.rows(strangers), labels="none")
    for part in encoded.parts:
        ids = part.block.ids if part.rows is None else part.block.ids[part.rows]
        assert (ids == ids[0]).all()
    # torch.nn.Linear to a width of 1 gives equal rows other last bits, by their place in the batch
    scores = ranker.predict(log.rows(strangers))["ctr"]
    np.testing.assert_allclose(scores, scores[0], rtol=1e-6)


def test_a_missing_column_is_named(ranker, log, rows):
    with pytest.raises(EncodingError, match="must have column 'hour'"):
        ranker.predict(log.rows(rows.drop("hour")))
    with pytest.raises(EncodingError, match="'label_interest'"):
        ranker.evaluate(log.rows(rows))


def test_what_is_no_table_is_refused(ranker):
    with pytest.raises(TypeError, match="must be a polars, pandas or Arrow table"):
        ranker.predict({"user_id": [1]})


def test_predict_leaves_the_tables_as_they_were(ranker, log, rows):
    frame, before = rows.to_pandas(), rows.to_pandas()
    ranker.predict(scan(frame, users=log.users, items=log.items))
    pd.testing.assert_frame_equal(frame, before)
