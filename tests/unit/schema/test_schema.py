"""A schema that contradicts itself is refused, and says why."""

from typing import Any

import pytest

from recsys_mtl.errors import SchemaError
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    History,
    Multiclass,
    Numeric,
    Regression,
    Schema,
    Side,
)

CTR = Binary("ctr", label="click")


def test_sides_context_and_tasks_are_listed_in_order():
    schema = Schema(
        user=Side("u", features=[Categorical("u"), Numeric("age")]),
        item=Side("i", features=[Bag("tags", weights="strengths")]),
        context=[Categorical("hour")],
        tasks=[CTR, Regression("stars", label="rating", sample_weight="trust")],
    )
    assert schema.keys == ("u", "i")
    assert [feature.name for feature in schema.features] == ["u", "age", "tags", "hour"]
    assert schema.label_columns == ("click", "rating", "trust")
    assert schema.task("stars").label == "rating"
    assert schema.features[2].columns == ("tags", "strengths")


def test_plain_table_needs_neither_user_nor_item():
    schema = Schema(context=[Numeric("x")], tasks=[CTR])
    assert schema.keys == ()
    assert [feature.name for feature in schema.features] == ["x"]


def test_one_side_alone_is_enough():
    schema = Schema(item=Side("i", features=[Categorical("i")]), tasks=[CTR])
    assert schema.keys == ("i",)


def test_label_column_of_two_tasks_is_listed_once():
    tasks = [CTR, Binary("again", label="click", sample_weight="w")]
    assert Schema(context=[Numeric("x")], tasks=tasks).label_columns == ("click", "w")


def test_unknown_task_lists_those_there_are():
    with pytest.raises(KeyError, match=r"No task is named 'cvr'. Tasks: \['ctr'\]"):
        Schema(context=[Numeric("x")], tasks=[CTR]).task("cvr")


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"tasks": []}, "tasks must hold at least one task"),
        ({"context": []}, "at least one feature is needed"),
        ({"user": Side("u"), "context": []}, "at least one feature is needed"),
        ({"context": [Numeric("x"), Categorical("x")]}, "feature names must be unique. 'x'"),
        (
            {"user": Side("u", features=[Categorical("x")]), "context": [Numeric("x")]},
            "feature names must be unique. 'x'",
        ),
        ({"tasks": [CTR, CTR]}, "task names must be unique. 'ctr'"),
        ({"user": Side("ctr")}, "key or task names must be unique. 'ctr'"),
        ({"user": Side("id"), "item": Side("id")}, "key or task names must be unique. 'id'"),
        ({"context": [Numeric("click")]}, "feature 'click' reads column 'click', which is a label"),
        ({"context": [Numeric("x", column="click")]}, "feature 'x' reads column 'click'"),
        ({"context": [Bag("x", weights="click")]}, "feature 'x' reads column 'click'"),
        (
            {"context": [Numeric("w")], "tasks": [Binary("a", label="y", sample_weight="w")]},
            "feature 'w' reads column 'w', which is a label or sample weight",
        ),
    ],
)
def test_contradiction_is_refused(parts: dict[str, Any], text: str):
    whole = {"context": [Numeric("x")], "tasks": [CTR]} | parts
    with pytest.raises(SchemaError) as error:
        Schema(**whole)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        ([Binary("a", label="y", within="b")], "within must name a binary task. Found 'b'"),
        (
            [Binary("a", label="y", within="b"), Regression("b", label="z")],
            "within must name a binary task. Found 'b'; binary tasks: ['a']",
        ),
        (
            [Binary("a", label="y", within="b"), Multiclass("b", label="z", num_classes=2)],
            "within must name a binary task. Found 'b'",
        ),
        ([Binary("a", label="y", within="a")], "within must not lead back to itself"),
        (
            [Binary("a", label="y", within="b"), Binary("b", label="z", within="a")],
            "task 'a': within must not lead back to itself",
        ),
        (
            [
                Binary("a", label="w", within="b"),
                Binary("b", label="y", within="c"),
                Binary("c", label="z", within="b"),
            ],
            "within must not lead back to itself",
        ),
    ],
)
def test_space_must_be_a_chain_of_binary_tasks(tasks: list[Any], text: str):
    with pytest.raises(SchemaError) as error:
        Schema(context=[Numeric("x")], tasks=tasks)
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("setting", "values"),
    [("num_buckets", (10, 20)), ("embedding_dim", (4, None)), ("min_count", (1, 2))],
)
def test_features_of_one_table_must_agree(setting: str, values: tuple[Any, Any]):
    item = Categorical("item_id", **{setting: values[0]})
    seen = History("seen", table="item_id", **{setting: values[1]})
    with pytest.raises(
        SchemaError, match=rf"agree on {setting}. Found {values[0]} and {values[1]}"
    ):
        Schema(context=[item, seen], tasks=[CTR])


def test_features_of_one_table_may_pool_and_cut_differently():
    shared = [Categorical("i"), Bag("b", table="i", pooling="sum"), History("h", table="i")]
    schema = Schema(context=shared, tasks=[CTR])
    assert {feature.table_name for feature in schema.features} == {"i"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("bounds", [(1, 1), (5, 1), (0, float("inf")), (float("nan"), 1)])
def test_bounds_of_a_regression_are_finite_and_ordered(bounds: tuple[float, float]):
    with pytest.raises(SchemaError, match="two finite numbers, low < high"):
        Regression("stars", label="rating", bounds=bounds)


def test_one_logit_per_task_and_one_per_class():
    assert CTR.num_logits == Regression("stars", label="rating").num_logits == 1
    assert Multiclass("kind", label="kind_of", num_classes=7).num_logits == 7
