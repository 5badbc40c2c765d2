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
        ({"user": Side("ctr")}, "key or score names must be unique. 'ctr'"),
        ({"user": Side("id"), "item": Side("id")}, "key or score names must be unique. 'id'"),
        (
            {"tasks": [CTR, Binary("cvr", label="buy", within="ctr", joint="ctr")]},
            "key or score names must be unique. 'ctr'",
        ),
        (
            {
                "tasks": [
                    CTR,
                    Binary("a", label="buy", within="ctr", joint="both"),
                    Binary("b", label="buy", within="ctr", joint="both"),
                ]
            },
            "key or score names must be unique. 'both'",
        ),
        (
            {
                "user": Side("u"),
                "tasks": [CTR, Binary("cvr", label="buy", within="ctr", joint="u")],
            },
            "key or score names must be unique. 'u'",
        ),
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
            "task 'a': within must not lead back to itself. Found a -> b -> a: remove",
        ),
        (
            [
                Binary("a", label="w", within="b"),
                Binary("b", label="y", within="c"),
                Binary("c", label="z", within="b"),
            ],
            "task 'b': within must not lead back to itself. Found b -> c -> b: remove",
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


def built_on(**parents: list[str]):
    return [Regression(name, label="y", parents=names) for name, names in parents.items()]


@pytest.mark.parametrize(
    ("tasks", "text"),
    [
        (built_on(a=["b"]), "task 'a': parents must name tasks. Found 'b'; tasks: ['a']"),
        (built_on(a=["a"]), "task 'a': parents must not lead back to itself. Found a -> a: remove"),
        (built_on(a=["b"], b=["a"]), "lead back to itself. Found a -> b -> a: remove"),
        (built_on(root=[], a=["root", "c"], b=["a"], c=["b"]), "Found a -> c -> b -> a: remove"),
        (built_on(tail=["a"], a=["b"], b=["a"]), "task 'a': parents must not lead"),
        (
            [Binary("a", label="y", parents=["b"]), Binary("b", label="y", within="a")],
            "parents must not lead back to itself. Found a -> b -> a",
        ),
    ],
)
def test_parents_must_be_tasks_without_a_cycle(tasks: list[Any], text: str):
    with pytest.raises(SchemaError) as error:
        Schema(context=[Numeric("x")], tasks=tasks)
    assert text in str(error.value)


def test_parents_may_be_any_tasks_in_any_order():
    tasks = built_on(last=["left", "right"], left=["first"], right=["first"], first=[])
    schema = Schema(context=[Numeric("x")], tasks=tasks)
    assert [task.built_on for task in schema.tasks] == [
        ("left", "right"),
        ("first",),
        ("first",),
        (),
    ]


def test_a_task_is_built_on_the_one_it_is_within_unless_it_says_otherwise():
    assert Binary("cvr", label="buy", within="ctr").built_on == ("ctr",)
    assert Binary("cvr", label="buy", within="ctr", parents=[]).built_on == ()
    assert CTR.built_on == ()


def test_joint_probability_needs_a_task_to_be_within():
    with pytest.raises(SchemaError, match="joint='both' needs within"):
        Binary("cvr", label="buy", joint="both")


RANKED = Binary("ctr", label="click", ranking="pairwise")


def test_rows_are_compared_within_the_user_unless_a_group_is_named():
    context = [Numeric("x")]
    user = Side("user_id")
    by_request = Binary("ctr", label="click", ranking="listwise", group="request")
    assert Schema(user=user, context=context, tasks=[RANKED]).group == "user_id"
    assert Schema(user=user, context=context, tasks=[by_request]).group == "request"
    assert Schema(context=context, tasks=[by_request]).group == "request"
    assert Schema(user=user, context=context, tasks=[CTR]).group is None


def test_group_may_be_a_feature_too():
    task = Binary("ctr", label="click", ranking="listwise", group="request")
    assert Schema(context=[Categorical("request")], tasks=[task]).group == "request"


def test_tasks_may_rank_within_one_group_by_name_and_by_default():
    tasks = [
        CTR,
        Binary("cvr", label="buy", ranking="pairwise"),
        Binary("like", label="like", ranking="listwise", group="user_id"),
    ]
    schema = Schema(user=Side("user_id"), context=[Numeric("x")], tasks=tasks)
    assert schema.group == "user_id"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({"tasks": [RANKED]}, "task 'ctr': a ranking loss compares the rows of one group. Name"),
        ({"tasks": [RANKED], "item": Side("i")}, "Name its column, group=..., or give the schema"),
        (
            {
                "user": Side("u"),
                "tasks": [RANKED, Binary("cvr", label="buy", ranking="listwise", group="day")],
            },
            "tasks 'ctr' and 'cvr' have ranking losses and must agree on group: a batch keeps the"
            " rows of one group together. Found 'u' and 'day'",
        ),
        (
            {"tasks": [Binary("ctr", label="click", ranking="pairwise", group="click")]},
            "task 'ctr': group must be a user or request. Found 'click', which is a label",
        ),
    ],
)
def test_ranking_tasks_must_share_one_group(parts: dict[str, Any], text: str):
    with pytest.raises(SchemaError) as error:
        Schema(**({"context": [Numeric("x")]} | parts))
    assert text in str(error.value)


def test_group_without_a_ranking_loss_is_refused():
    with pytest.raises(SchemaError, match="group='request' needs ranking"):
        Binary("ctr", label="click", group="request")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("loss", "hinge"),
        ("focal_gamma", -0.1),
        ("focal_gamma", float("inf")),
        ("positive_weight", 0),
        ("positive_weight", float("nan")),
        ("ranking", "bpr"),
        ("ranking_share", 1.1),
        ("ranking_share", -0.1),
    ],
)
def test_settings_of_a_binary_loss_stay_in_their_range(setting: str, value: Any):
    with pytest.raises(SchemaError, match=rf"Binary\.{setting}: Input should "):
        Binary("ctr", label="click", **({"ranking": "pairwise"} | {setting: value}))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), ()])
def test_class_weights_are_one_per_class(weights: tuple[float, ...]):
    with pytest.raises(SchemaError, match=f"each of the 2 classes. Found {len(weights)}"):
        Multiclass("kind", label="kind", num_classes=2, class_weights=weights)


def test_class_weights_are_above_zero():
    with pytest.raises(SchemaError, match=r"class_weights\[1\]: Input should be greater than 0"):
        Multiclass("kind", label="kind", num_classes=2, class_weights=(1, 0))


def test_losses_and_parents_survive_json():
    schema = Schema(
        context=[Numeric("x")],
        tasks=[
            Binary(
                "ctr",
                label="click",
                loss="focal",
                focal_gamma=1.5,
                positive_weight=3,
                ranking="listwise",
                ranking_share=0.25,
                group="request",
            ),
            Binary("cvr", label="buy", within="ctr", joint="ctcvr", parents=["ctr"]),
            Multiclass("kind", label="kind", num_classes=2, class_weights=[1, 2]),
        ],
    )
    assert Schema.from_json(schema.to_json()) == schema
