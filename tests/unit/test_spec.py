"""A spec is a value: validated, frozen, and the same after any way out and back."""

import copy
import dataclasses
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest

import recsys_mtl.network
import recsys_mtl.training  # noqa: F401 # importing them registers their kinds
from recsys_mtl.errors import SchemaError
from recsys_mtl.schema import (
    Bag,
    Binary,
    Categorical,
    Feature,
    History,
    IdFeature,
    Numeric,
    Regression,
    Schema,
    Side,
    Task,
    Vector,
)
from recsys_mtl.spec import Spec, differences, spec

REQUIRED = {"name": "x", "label": "y", "num_classes": 3, "dim": 2}
REQUIRED |= {"feature": "x", "shape": (1, 8, 8), "key": "k"}
ALSO = {"previous": {"column": "c"}, "as_of_history": {"column": "c"}}
NEVER = {  # refused, whatever the value
    ("recency", "column"),
    ("as_of_history", "separator"),
    ("multiclass", "teacher"),
}

ID = {"column": "c", "num_buckets": 1000, "embedding_dim": 4, "min_count": 2, "table": "t"}
ID |= {"vocabulary": 9, "dropout": 0.1}
LISTED = ID | {"separator": "|", "max_length": 7}
NUMBER = {"scaling": "log", "num_quantiles": 5, "embedding_dim": 3}
NUMBER |= {"num_frequencies": 7, "frequency_scale": 0.5}
AS_OF = {"label": "z", "statistic": "sum", "window": "7d", "period": "12h", "smoothing": 1.0}
AS_OF |= {"prior": "p", "residual": True}
HISTORY = {name: value for name, value in LISTED.items() if name != "separator"}
TASK = {"label": "z", "weight": 0.5, "sample_weight": "w", "within": "p", "parents": ("q",)}
TAUGHT = {"teacher": "t", "teacher_share": 0.25}
BINARY = {"joint": "j", "loss": "focal", "focal_gamma": 1.0, "positive_weight": 3.0}
RANKING = {"ranking": "listwise", "ranking_share": 0.5, "group": "g"}
CHANGED: dict[str, dict[str, Any]] = {
    "categorical": ID | {"num_hashes": 2},
    "bag": LISTED | {"weights": "w", "pooling": "sum", "num_hashes": 2},
    "history": LISTED,
    "numeric": NUMBER | {"column": "c"},
    "as_of": NUMBER | AS_OF | {"column": "c", "key": ("u", "v")},
    "recency": NUMBER | {"key": "u", "minus": "d"},
    "previous": NUMBER | {"key": "u", "column": "d"},
    "as_of_history": HISTORY | {"column": "d", "key": "u", "where_label": "w", "period": "1d"},
    "vector": {"column": "c", "dim": 5},
    "binary": TASK | TAUGHT | BINARY | RANKING,
    "regression": TASK
    | TAUGHT
    | {"loss": "bins", "huber_delta": 0.5, "num_bins": 9, "bounds": (1.0, 5.0)},
    "multiclass": TASK
    | {"teacher_share": 0.25, "num_classes": 4, "class_weights": (1.0, 2.0, 1.0, 1.0)},
}
TOGETHER: dict[str, dict[str, Any]] = {  # where two values exclude each other
    "as_of": {"statistic": "mean", "column": None},
    "binary": {"teacher": None},
    "regression": {"teacher": None},
}
COMPANIONS: dict[str, dict[str, Any]] = {  # values that have no meaning alone
    "as_of.column": {"label": None},
    "as_of.residual": {"prior": "p"},
    "joint": {"within": "p"},
    "group": {"ranking": "pairwise"},
    "class_weights": {"num_classes": 4},
    "regression.loss": {"bounds": (2.0, 5.0)},
}

SCHEMA = Schema(
    user=Side("user_id", features=[Categorical("user_id"), Bag("likes", weights="strengths")]),
    item=Side("item_id", features=[Numeric("price", scaling="log")]),
    context=[History("seen", table="item_id"), Vector("image", dim=4)],
    tasks=[
        Binary("ctr", label="click"),
        Regression("stars", label="rating", within="ctr", bounds=(1, 5)),
    ],
)


def built(kind: str, **changes: Any):
    made = Spec._kinds[kind]
    needed = {field.name for field in dataclasses.fields(made)}
    given = {name: REQUIRED[name] for name in REQUIRED if name in needed}
    return made(**given | ALSO.get(kind, {}) | changes)


def _companions(kind: str, key: str) -> dict[str, Any]:
    return COMPANIONS.get(f"{kind}.{key}", COMPANIONS.get(key, {}))


def test_the_changed_values_cover_every_field_of_every_feature_and_task():
    kinds = {kind: c for kind, c in Spec._kinds.items() if issubclass(c, Feature | Task)}
    assert set(CHANGED) == set(kinds)
    for kind, made in kinds.items():
        fields = {field.name for field in dataclasses.fields(made)}
        assert {*CHANGED[kind], "name"} == {one for one in fields if (kind, one) not in NEVER}


@pytest.mark.parametrize("kind", sorted(Spec._kinds))
def test_every_kind_comes_back_from_json_with_its_defaults(kind: str):
    made = built(kind)
    again = type(made).from_json(made.to_json())
    assert again == made
    assert again.to_dict()["kind"] == kind


@pytest.mark.parametrize("kind", sorted(CHANGED))
def test_every_feature_and_task_comes_back_from_json_with_all_values_changed(kind: str):
    made = built(kind, **CHANGED[kind] | TOGETHER.get(kind, {}))
    family = Feature if isinstance(made, Feature) else Task
    assert family.from_json(made.to_json()) == made
    assert json.loads(made.to_json()) == made.to_dict()


@pytest.mark.parametrize("kind", sorted(CHANGED))
def test_fingerprint_changes_with_any_value(kind: str):
    prints = [built(kind).fingerprint(), built(kind, name="another").fingerprint()]
    prints += [
        built(kind, **{key: value} | _companions(kind, key)).fingerprint()
        for key, value in CHANGED[kind].items()
    ]
    assert len(set(prints)) == len(prints)
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_fingerprint_is_the_same_in_another_process():
    code = (
        "import sys; from recsys_mtl.schema import Schema;"
        "print(Schema.from_json(sys.stdin.read()).fingerprint())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        input=SCHEMA.to_json(),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "123"},
    )
    assert ran.stdout.strip() == SCHEMA.fingerprint()


def test_fingerprint_tells_the_order_of_features():
    tasks = [Binary("ctr", label="click")]
    forth = Schema(context=[Categorical("a"), Categorical("b")], tasks=tasks)
    back = Schema(context=[Categorical("b"), Categorical("a")], tasks=tasks)
    assert forth.fingerprint() != back.fingerprint()


def test_nested_specs_come_back_from_json():
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA


@pytest.mark.parametrize("leave", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_are_equal_and_hash_alike(leave: Any):
    copied = leave(SCHEMA)
    assert copied == SCHEMA
    assert hash(copied) == hash(SCHEMA)
    assert copied.fingerprint() == SCHEMA.fingerprint()


def test_specs_of_equal_values_and_different_kinds_differ():
    assert Categorical("x") != Numeric("x")
    assert Categorical("x").fingerprint() != built("bag").fingerprint()


def test_spec_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEMA.tasks[0].weight = 2.0  # type: ignore[misc]
    assert isinstance(Side("u", features=[Categorical("u")]).features, tuple)


def test_replace_validates_again():
    assert dataclasses.replace(Bag("x"), min_count=3).min_count == 3
    with pytest.raises(SchemaError, match=r"Bag\.min_count: .* Found 0\."):
        dataclasses.replace(Bag("x"), min_count=0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"min_count": 0}, r"^schema\.user\.features\[1\]\.min_count: .*greater.* Found 0\.$"),
        ({"pooling": "max"}, r"^schema\.user\.features\[1\]\.pooling: .*'mean'.* Found 'max'\.$"),
        ({"coloum": "x"}, r"^schema\.user\.features\[1\]\.coloum is not known to Bag\. Known: "),
        (
            {"kind": "bagg"},
            r"^schema\.user\.features\[1\]\.kind must be one of \['as_of', 'as_of_history', 'bag', 'cat",
        ),
        (
            {"kind": ["bag"]},
            r"^schema\.user\.features\[1\]\.kind must be one of \['as_of', 'as_of_history', 'bag', 'cat",
        ),
        ({"kind": "binary"}, r"^schema\.user\.features\[1\]\.kind must .*Found 'binary'\.$"),
        ({"kind": None}, r"^schema\.user\.features\[1\]\.kind is required: one of \['as_of', "),
    ],
)
def test_error_in_json_names_the_full_path(change: dict[str, Any], text: str):
    data = SCHEMA.to_dict()
    data["user"]["features"][1] |= change
    with pytest.raises(SchemaError, match=text):
        Schema.from_dict(data, path="schema")


def test_every_wrong_value_is_named_with_its_path():
    data = SCHEMA.to_dict()
    data["user"]["features"][1] |= {"min_count": 0, "num_buckets": 1}
    with pytest.raises(SchemaError) as error:
        Schema.from_dict(data)
    places = [line.partition(":")[0] for line in str(error.value).split("\n")]
    assert places == ["user.features[1].num_buckets", "user.features[1].min_count"]


def test_missing_value_and_wrong_shape_are_named_with_their_path():
    data = SCHEMA.to_dict()
    del data["tasks"][0]["label"]
    with pytest.raises(SchemaError, match=r"^tasks\[0\]\.label: Field required\.$"):
        Schema.from_dict(data)
    with pytest.raises(SchemaError, match=r"^context\[0\]|^Schema\.context\[0\]: .* Found 3\.$"):
        Schema.from_dict(SCHEMA.to_dict() | {"context": [3]})
    with pytest.raises(SchemaError, match=r"^model must be a table of keys\. Found \[1\]\.$"):
        Schema.from_dict([1], path="model")  # type: ignore[arg-type]


def test_rule_of_the_class_itself_is_named_with_its_path():
    data = SCHEMA.to_dict()
    data["tasks"][1]["bounds"] = [5, 1]
    with pytest.raises(SchemaError, match=r"^tasks\[1\]: bounds must be two finite numbers"):
        Schema.from_dict(data)


def test_kind_of_a_class_without_kinds_must_be_left_out():
    data = SCHEMA.to_dict()
    data["user"]["kind"] = "bag"
    with pytest.raises(SchemaError, match=r"^user\.kind must be left out\. Found 'bag'\.$"):
        Schema.from_dict(data)


@pytest.mark.parametrize("family", [Feature, IdFeature, Task])
def test_base_of_several_kinds_cannot_be_built(family: type[Spec]):
    values = {"name": "x"} | ({"label": "y"} if family is Task else {})
    with pytest.raises(SchemaError, match=f"^{family.__name__} must be built as one of its kinds"):
        family(**values)


def test_plain_tables_are_no_features_where_specs_are_wanted():
    with pytest.raises(SchemaError, match=r"^Schema\.context\[0\]: .*instance of Feature"):
        Schema(context=[{"name": "x"}], tasks=[Binary("a", label="y")])  # type: ignore[list-item]


def test_unknown_argument_is_named_at_construction():
    with pytest.raises(SchemaError, match=r"^Bag\.size: Unexpected keyword argument\. Found 3\.$"):
        Bag("x", size=3)  # type: ignore[call-arg]


def test_a_kind_belongs_to_one_class():
    with pytest.raises(SchemaError, match=r"^Kind 'bag' must be unique\. Bag has it already\.$"):

        @spec
        class Sack(Spec, kind="bag"):
            size: int = 1


def test_json_of_a_spec_holds_no_nan():
    with pytest.raises(SchemaError, match=r"^Binary\.weight: "):
        Binary("a", label="y", weight=float("nan"))


@pytest.mark.parametrize("text", ["", "{", "{'name': 1}"])
def test_text_that_is_no_json_is_refused(text: str):
    with pytest.raises(SchemaError, match=r"^Schema must be given as JSON.* Found .*line 1 column"):
        Schema.from_json(text)


def test_differences_name_the_place_and_both_values() -> None:
    one = {
        "kind": "a",
        "x": 1,
        "list": [1, 2],
        "plain": [{"x": 1}],
        "features": [{"name": "u", "dim": 1}, {"name": "v"}],
    }
    other = {
        "kind": "a",
        "x": 2,
        "list": [1, 3, 4],
        "plain": [{"x": 2}, {"x": 3}],
        "features": [{"name": "w"}, {"name": "u", "dim": 5}],
    }
    assert differences(one, one, "s") == []
    assert differences(one, other, "s") == [
        ("s.x", 1, 2),
        ("s.list", [1, 2], [1, 3, 4]),
        ("s.plain[0].x", 1, 2),
        ("s.plain[1]", None, {"x": 3}),
        ("s.features.u.dim", 1, 5),
        ("s.features.v", {"name": "v"}, None),
        ("s.features.w", None, {"name": "w"}),
    ]


def test_differences_of_another_kind_or_order_are_told_as_one() -> None:
    assert differences({"kind": "a", "x": 1}, {"kind": "b"}) == [
        ("", {"kind": "a", "x": 1}, {"kind": "b"})
    ]
    names = [{"name": "u"}, {"name": "v"}]
    assert differences({"tasks": names}, {"tasks": names[::-1]}) == [
        ("tasks", ["u", "v"], ["v", "u"])
    ]
