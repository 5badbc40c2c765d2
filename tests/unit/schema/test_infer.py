"""What `Schema.infer` proposes, by the kind of column and by the tables given."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from recsys_mtl.encoding import Encoder
from recsys_mtl.errors import SchemaError
from recsys_mtl.reading import scan
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    Feature,
    Multiclass,
    Numeric,
    Regression,
    Schema,
    Side,
    Vector,
)

ROWS = 400


def impressions():
    """400 impressions of 20 users and 10 items; `city` is the user's, `price` the item's."""
    rng = np.random.default_rng(5)
    user, item = rng.integers(0, 20, ROWS), rng.integers(0, 10, ROWS)
    return pl.DataFrame(
        {
            "user_id": user,
            "item_id": [f"i{number}" for number in item],
            "city": [f"c{number % 5}" for number in user],
            "price": item * 1.5,
            "hour": rng.integers(0, 24, ROWS),
            "click": rng.integers(0, 2, ROWS),
            "label_rating": np.where(rng.random(ROWS) < 0.5, np.nan, rng.integers(1, 6, ROWS)),
        }
    )


def inferred(columns: dict[str, Any]) -> dict[str, Feature]:
    """Infer the features of columns; beside them a label."""
    frame = pl.DataFrame(columns)
    frame = frame.with_columns(y=pl.int_range(pl.len()) % 2)
    return {f.name: f for f in Schema.infer(frame, tasks=["y"], exclude=[]).context}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", "b", "a", None], Categorical("x")),
        (pl.Series(["a", "b", "a", "b"], dtype=pl.Categorical), Categorical("x")),
        ([True, False, True, None], Categorical("x")),
        (pl.Series([1, 2, 3, 4]).cast(pl.Date), Categorical("x")),
        ([b"a", b"b", b"c", b"d"], Categorical("x")),
        ([1, 2, 3, None], Categorical("x")),
        ([0.5, 1.0, 2.0, None], Numeric("x")),
        (pl.Series(["0.5", "1.0", "2", "3"]).cast(pl.Decimal(4, 1)), Numeric("x")),
        ([["a"], ["b", "c"], [], None], Bag("x")),
        ([[1], [2, 3], [], None], Bag("x")),
        (pl.Series([[1, 2]] * 4, dtype=pl.Array(pl.Int64, 2)), Bag("x")),
        (pl.Series([[1, 2]] * 4, dtype=pl.Array(pl.Float32, 2)), Vector("x", dim=2)),
        ([[1.0, 2.0], [3.0, 4.0], None, [5.0, 6.0]], Vector("x", dim=2)),
        (["a|b", "b|c", "c|a", "a|b|c"], Bag("x", separator="|")),
        (["a,b", "b,c", "c,a", "a,b,c"], Bag("x", separator=",")),
        (["[1,10)", "[10,20)", "[20,30)", "[1,10)"], Categorical("x")),
        (["x y", "z y", "x z", "y"], Categorical("x")),
    ],
)
def test_column_becomes_the_feature_its_values_suit(values: Any, expected: Feature):
    assert inferred({"x": values}) == {"x": expected}


@pytest.mark.parametrize(
    "values",
    [
        ["same", "same", "same", "same"],
        [None, None, None, None],
        pl.Series([1, 2, 3, 4]).cast(pl.Datetime),
        pl.Series([1, 2, 3, 4]).cast(pl.Duration),
        [{"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}],
        [[1.0], [2.0, 3.0], [4.0], [5.0]],
        [[[1]], [[2]], [[3]], [[4]]],
    ],
)
def test_column_without_use_is_left_out(values: Any):
    assert inferred({"x": values, "kept": [1, 2, 3, 4]}) == {"kept": Categorical("kept")}


def test_integers_are_ids_by_name_or_by_few_values():
    many, few = list(range(65)) * 2, list(range(64)) * 2 + [0, 1]
    proposed = inferred({"many": many, "few": few, "shop_id": many, "clickId": many})
    assert proposed == {
        "many": Numeric("many"),
        "few": Categorical("few"),
        "shop_id": Categorical("shop_id"),
        "clickId": Categorical("clickId"),
    }


def test_ids_that_pandas_made_floats_stay_ids():
    proposed = inferred({"shop_id": [1.0, 2.0, None, 3.0], "grid": [0.5, 1.0, 2.0, 3.0]})
    assert proposed == {"shop_id": Categorical("shop_id"), "grid": Numeric("grid")}


def test_flat_table_is_split_by_what_never_varies_within_a_key():
    schema = Schema.infer(
        impressions(), user="user_id", item="item_id", tasks=["click", "label_rating"]
    )
    assert schema.user == Side("user_id", features=[Categorical("user_id"), Categorical("city")])
    assert schema.item == Side("item_id", features=[Categorical("item_id"), Numeric("price")])
    assert schema.context == (Categorical("hour"),)
    assert schema.tasks == (
        Binary("click", label="click"),
        Regression("rating", label="label_rating"),
    )


def test_key_that_never_repeats_owns_nothing():
    frame = pl.DataFrame({"u": [1, 2, 3, 4], "x": ["a", "b", "a", "b"], "y": [0, 1, 1, 0]})
    schema = Schema.infer(frame, user="u", tasks=["y"])
    assert schema.context == (Categorical("x"),)


def test_table_of_any_library_gives_the_same_schema(tmp_path: Path):
    frame = impressions()
    frame.write_parquet(tmp_path / "rows.parquet")
    tables = [frame, frame.lazy(), frame.to_pandas(), frame.to_arrow(), tmp_path / "rows.parquet"]
    schemas = [
        Schema.infer(table, user="user_id", item="item_id", tasks=["click", "label_rating"])
        for table in tables
    ]
    assert all(schema == schemas[0] for schema in schemas)


def star():
    flat = impressions()
    users = flat.select("user_id", "city").unique().with_columns(age=pl.col("user_id") * 1.5)
    items = flat.select("item_id", "price").unique().with_columns(city=pl.col("item_id"))
    return flat.drop("city", "price"), users, items


def test_side_tables_give_their_columns_to_their_side():
    rows, users, items = star()
    schema = Schema.infer(
        rows, user="user_id", item="item_id", tasks=["click"], users=users, items=items,
        exclude=["label_rating"],
    )  # fmt: skip
    assert schema.user is not None
    assert schema.item is not None
    assert [f.name for f in schema.user.features] == ["user_id", "city", "age"]
    assert schema.context == (Categorical("hour"),)
    # both tables have a city: neither is dropped
    assert schema.item.features == (
        Categorical("item_id"),
        Numeric("price"),
        Categorical("item_city", column="city"),
    )


def test_column_that_a_side_table_has_is_read_from_there():
    rows, users, _ = star()
    rows = rows.with_columns(city=pl.lit("elsewhere"))
    schema = Schema.infer(rows, user="user_id", tasks=["click"], users=users)
    assert schema.user is not None
    assert "city" in {feature.name for feature in schema.user.features}
    assert "city" not in {feature.name for feature in schema.context}


def test_label_and_weight_columns_are_never_features():
    tasks = [Binary("ctr", label="click", sample_weight="hour"), "label_rating"]
    schema = Schema.infer(impressions(), tasks=tasks)
    read = {column for feature in schema.features for column in feature.columns}
    assert read == {"user_id", "item_id", "city", "price"}


def test_tasks_given_whole_are_kept():
    task = Multiclass("stars", label="click", num_classes=5)
    assert Schema.infer(impressions(), tasks=[task]).tasks == (task,)


def test_excluded_columns_are_no_features():
    schema = Schema.infer(impressions(), tasks=["click"], exclude=["hour", "label_rating"])
    assert "hour" not in {feature.name for feature in schema.features}


def test_outcomes_and_the_split_are_never_proposed(caplog: pytest.LogCaptureFixture):
    outcomes = {"split": ["train", "test"] * 200, "oracle_ctr": [0.5, 0.25] * 200}
    users = pl.DataFrame({"user_id": range(20), "age": range(20), "label_churn": [0, 1] * 10})
    with caplog.at_level("INFO"):
        schema = Schema.infer(
            impressions().with_columns(**{name: pl.Series(x) for name, x in outcomes.items()}),
            user="user_id",
            tasks=["click"],
            users=users,
        )
    read = {column for feature in schema.features for column in feature.columns}
    assert read == {"user_id", "age", "item_id", "city", "price", "hour"}
    assert "['label_churn', 'label_rating', 'oracle_ctr', 'split']" in caplog.text


@pytest.mark.parametrize("options", [{"tasks": "click"}, {"tasks": ["click"], "exclude": "hour"}])
def test_one_name_is_no_list_of_names(options: dict[str, Any]):
    name, given = next((k, v) for k, v in options.items() if isinstance(v, str))
    with pytest.raises(SchemaError, match=f"^{name} must be a list of names. Found '{given}'"):
        Schema.infer(impressions(), **options)


def test_pieces_of_joined_strings_are_compared_without_white_space():
    values = ["a, b", "b, a", "a,b", "b,a"]
    assert inferred({"x": values}) == {"x": Bag("x", separator=",")}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tasks": ["clicks"]}, "must have column 'clicks'. Columns found:"),
        ({"tasks": ["click"], "user": "uid"}, "must have column 'uid'"),
        ({"tasks": ["city"]}, "Label column 'city' must hold numbers. Found String. Make it 0 and 1, such as (pl.col('city') == 'yes').cast(pl.Int8)."),
        ({"tasks": ["click"], "exclude": ["hours"]}, "exclude must name columns of the tables. Found 'hours'"),
    ],
)  # fmt: skip
def test_column_that_is_not_there_is_named(options: dict[str, Any], text: str):
    with pytest.raises(SchemaError) as error:
        Schema.infer(impressions(), **options)
    assert text in str(error.value)


def test_empty_table_is_refused():
    with pytest.raises(SchemaError, match="users table must hold rows"):
        Schema.infer(
            impressions(), user="user_id", tasks=["click"], users=pl.DataFrame({"user_id": []})
        )


@pytest.mark.parametrize("as_pandas", [False, True])
def test_inferred_schema_encodes_its_own_table(as_pandas: bool):
    rows, users, items = star()
    users = users.with_columns(tags=pl.Series([["a"], ["a", "b"], None, [], ["c"]] * 4))
    items = items.with_columns(
        words=pl.Series(["p|q", "q|p", None, "", "p|q|p"] * 2),
        image=pl.Series(np.ones((10, 3), np.float32)),
    )
    tables: list[Any] = [rows, users, items]
    if as_pandas:
        tables = [pd.DataFrame(table.to_pandas()) for table in tables]
    schema = Schema.infer(
        tables[0], user="user_id", item="item_id", tasks=["click", "label_rating"],
        users=tables[1], items=tables[2],
    )  # fmt: skip
    kinds = {feature.name: feature.kind for feature in schema.features}
    assert (kinds["tags"], kinds["words"], kinds["image"]) == ("bag", "bag", "vector")
    batch = Encoder(schema).fit_encode(scan(tables[0], users=tables[1], items=tables[2]))
    assert batch.num_rows == ROWS
    assert batch.absent == {"user": 0, "item": 0}
