"""Labels: which values a task allows, and which rows are in its space."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_mtl.encoding import MISSING, OBSERVED, OUT_OF_SPACE, Encoder
from recsys_mtl.encoding.labels import read_groups, read_labels
from recsys_mtl.errors import EncodingError
from recsys_mtl.schema import Binary, Multiclass, Numeric, Regression, Schema, Task

CLICK = Binary("click", label="click")
STARS = Regression("stars", label="stars", bounds=(1, 5))
KIND = Multiclass("kind", label="kind", num_classes=3)


def read(task: Task, values: Any):
    frame = pl.DataFrame({task.label: values}, strict=False)
    labels, states, weights = read_labels(frame, [task])
    assert labels.dtype == weights.dtype == np.float32
    assert states.dtype == np.uint8
    return labels[:, 0].tolist(), states[:, 0].tolist()


@pytest.mark.parametrize(
    ("task", "values", "labels"),
    [
        (CLICK, [1, 0, None], [1, 0, 0]),
        (CLICK, [True, False, None], [1, 0, 0]),
        (CLICK, [1.0, 0.0, float("nan")], [1, 0, 0]),
        (CLICK, pl.Series([1, 0, None], dtype=pl.UInt8), [1, 0, 0]),
        (CLICK, [None, None], [0, 0]),
        (STARS, [1, 5, 2.5, None], [1, 5, 2.5, 0]),
        (Regression("x", label="x"), [-1e30, 0.0, None], [np.float32(-1e30), 0, 0]),
        (KIND, [0, 2, None], [0, 2, 0]),
        (KIND, [2.0, float("nan")], [2, 0]),
    ],
)
def test_null_and_nan_are_missing_and_all_else_is_kept(task: Task, values: Any, labels: Any):
    found, states = read(task, values)
    assert found == labels
    known = [value is not None and value == value for value in values]  # noqa: PLR0124 # NaN
    assert states == [OBSERVED if is_known else MISSING for is_known in known]


@pytest.mark.parametrize(
    ("task", "values", "rule", "found"),
    [
        (CLICK, [0, 1, 2, 2], "0 or 1", "Found 2 in row 2 (2 such rows)"),
        (CLICK, [0.0, 0.5], "0 or 1", "Found 0.5 in row 1 (1 such rows)"),
        (CLICK, [0, -1], "0 or 1", "Found -1 in row 1"),
        (STARS, [None, 0.5], "numbers in 1.0 .. 5.0", "Found 0.5 in row 1"),
        (STARS, [5.5], "numbers in 1.0 .. 5.0", "Found 5.5 in row 0"),
        (STARS, [1e39], "numbers in 1.0 .. 5.0", "Found 1e+39 in row 0"),
        (STARS, [float("inf")], "numbers in 1.0 .. 5.0", "Found inf in row 0"),
        (Regression("x", label="x"), [1.0, float("-inf")], "finite", "Found -inf in row 1"),
        (Regression("x", label="x"), [1.0, 1e39], "finite", "Found 1e+39 in row 1"),
        (KIND, [0, 3], "whole numbers 0 .. 2", "Found 3 in row 1"),
        (KIND, [-1, 0], "whole numbers 0 .. 2", "Found -1 in row 0"),
        (KIND, [1.5], "whole numbers 0 .. 2", "Found 1.5 in row 0"),
    ],
)
def test_label_outside_the_tasks_domain_is_named(task: Task, values: Any, rule: str, found: str):
    text = f"Task {task.name!r} reads label column {task.label!r}, which must hold {rule}"
    with pytest.raises(EncodingError, match=f"{re.escape(text)}.*{re.escape(found)}"):
        read(task, values)


def test_bound_is_met_in_the_columns_own_precision():
    low = Regression("x", label="x", bounds=(-0.3, 0.1))
    column = pl.Series([0.1, -0.3], dtype=pl.Float32)  # as float64, both lie outside
    assert read(low, column)[1] == [OBSERVED, OBSERVED]


@pytest.mark.parametrize("values", [["1", "0"], [[1], [0]]])
def test_label_that_is_no_number_is_refused_by_type(values: Any):
    with pytest.raises(
        EncodingError, match="'click' reads label column 'click', which must hold"
    ) as error:
        read(CLICK, values)
    remedy = "Make it 0 and 1, such as (pl.col('click') == 'yes').cast(pl.Int8)."
    assert str(error.value).endswith(remedy)


def test_child_is_in_space_where_its_parent_is_positive():
    tasks = [Binary("cvr", label="buy", within="click"), CLICK]
    frame = pl.DataFrame(
        {"click": [1, 1, 1, 0, 0, None, None], "buy": [1, 0, None, 1, None, 1, None]}
    )
    labels, states, _ = read_labels(frame, tasks)
    M, O, X = MISSING, OBSERVED, OUT_OF_SPACE  # noqa: E741
    assert states[:, 0].tolist() == [O, O, M, X, X, M, M]
    assert states[:, 1].tolist() == [O, O, O, O, O, M, M]
    assert labels[:, 0].tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_space_of_a_chain_needs_every_link():
    tasks = [
        Regression("refund", label="refund", within="buy"),
        Binary("buy", label="buy", within="click"),
        CLICK,
    ]
    states_of: dict[Any, int] = {1: OBSERVED, 0: OBSERVED, None: MISSING}
    rows = [(c, b, r) for c in (1, 0, None) for b in (1, 0, None) for r in (1, None)]
    frame = pl.DataFrame(rows, schema=["click", "buy", "refund"], orient="row")
    _, states, _ = read_labels(frame, tasks)
    for (click, buy, refund), found in zip(rows, states.tolist(), strict=True):
        if click is None:
            expected = [MISSING, MISSING, MISSING]
        elif click == 0:
            expected = [OUT_OF_SPACE, OUT_OF_SPACE, OBSERVED]
        elif buy is None:
            expected = [MISSING, MISSING, OBSERVED]
        elif buy == 0:
            expected = [OUT_OF_SPACE, OBSERVED, OBSERVED]
        else:
            expected = [states_of[refund], OBSERVED, OBSERVED]
        assert found == expected


def test_label_out_of_space_is_not_looked_at():
    stars = Regression("stars", label="stars", bounds=(1, 5), within="click", sample_weight="w")
    tasks = [stars, CLICK]
    frame = pl.DataFrame({"click": [0, None, 1], "stars": [-1, 9, 3], "w": [-1.0, None, 0.5]})
    labels, states, weights = read_labels(frame, tasks)
    assert labels[:, 0].tolist() == [0, 0, 3]
    assert states[:, 0].tolist() == [OUT_OF_SPACE, MISSING, OBSERVED]
    assert weights[:, 0].tolist() == [1, 1, 0.5]
    with pytest.raises(EncodingError, match=r"Found -1 in row 2 \(1 such rows\)"):
        read_labels(frame.with_columns(stars=pl.Series([-1, 9, -1])), tasks)
    with pytest.raises(EncodingError, match=r"Found -1.0 in row 2"):
        read_labels(frame.with_columns(w=pl.Series([-1.0, None, -1.0])), tasks)


def test_sample_weights_are_ones_unless_a_column_holds_them():
    tasks = [CLICK, Binary("like", label="like", sample_weight="w")]
    frame = pl.DataFrame({"click": [1, 0], "like": [0, None], "w": [0.5, 0.0]})
    assert read_labels(frame, tasks)[2].tolist() == [[1, 0.5], [1, 1]]
    heavy = frame.with_columns(like=pl.Series([0, 1]), w=pl.Series([True, False]))
    assert read_labels(heavy, tasks)[2][:, 1].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("weights", "found"),
    [
        ([1.0, -0.5], "Found -0.5 in row 1"),
        ([1.0, None], "Found None in row 1"),
        ([float("nan"), 1.0], "Found nan in row 0"),
        ([1.0, float("inf")], "Found inf in row 1"),
        ([1.0, 1e39], "Found 1e+39 in row 1"),
        (["1", "2"], "Found '1' in row 0"),
    ],
)
def test_sample_weight_that_is_no_weight_is_named(weights: Any, found: str):
    task = Binary("like", label="like", sample_weight="w")
    frame = pl.DataFrame({"like": [0, 1], "w": weights})
    text = "Task 'like' reads sample weights from column 'w', which must hold finite numbers"
    with pytest.raises(EncodingError, match=f"{text}.*{re.escape(found)}"):
        read_labels(frame, [task])


def test_no_rows_have_labels_of_shape_zero_by_tasks():
    frame = pl.DataFrame(schema={"click": pl.Int8, "kind": pl.Int8})
    for array in read_labels(frame, [CLICK, KIND]):
        assert array.shape == (0, 2)


def test_table_without_labels_can_be_scored_but_not_learned_from():
    schema = Schema(
        context=[Numeric("x")], tasks=[Binary("click", label="click", sample_weight="w")]
    )
    whole = pl.DataFrame({"x": [1.0, 2.0], "click": [0, 1], "w": [1, 1]})
    encoder = Encoder(schema).fit(whole.drop("click", "w"))
    batch = encoder.encode(whole.drop("click", "w"), labels="none")
    assert (batch.labels, batch.states, batch.weights) == (None, None, None)
    (streamed,) = encoder.batches(whole.drop("click", "w"))
    assert streamed.labels is None
    with pytest.raises(EncodingError, match=r"must have column 'click' and 1 more: \['w'\]"):
        encoder.encode(whole.drop("click", "w"))
    with pytest.raises(EncodingError, match="must have column 'w'"):
        encoder.fit_encode(whole.drop("w"))


def together(values: Any, **options: Any):
    """Return, for each row, the first row of its group."""
    groups = read_groups(pl.Series("session", values, strict=False), **options)
    assert groups.dtype == np.int64
    return [groups.tolist().index(group) for group in groups]


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "a", "", "b", ""],
        pl.Series(["a", "b", "a", "", "b", ""], dtype=pl.Categorical),
        [7, -7, 7, 0, -7, 0],
        [2**63 - 1, -(2**63), 2**63 - 1, 5, -(2**63), 5],
        pl.Series([7, 255, 7, 0, 255, 0], dtype=pl.UInt8),
        [7.0, -7.0, 7.0, 0.0, -7.0, 0.0],
        [b"a", b"b", b"a", b"", b"b", b""],
    ],
)
def test_equal_values_are_one_group_and_others_are_not(values: Any):
    assert together(values) == [0, 1, 0, 3, 1, 3]


@pytest.mark.parametrize(
    "values",
    [
        ["a", None, "a", None],
        [7, None, 7, None],
        [7.0, None, 7.0, None],
        [7.0, float("nan"), 7.0, float("nan")],
        pl.Series(["a", None, "a", None], dtype=pl.Categorical),
    ],
)
def test_row_without_a_group_is_a_group_of_its_own(values: Any):
    assert together(values) == [0, 1, 0, 3]


def test_column_of_nulls_holds_groups_of_one_row():
    assert together([None] * 4) == [0, 1, 2, 3]


def test_no_rows_have_no_groups():
    assert together([]) == []
    assert together(pl.Series([], dtype=pl.String)) == []


def test_integers_of_all_widths_and_strings_of_all_kinds_name_the_same_groups():
    small, large = pl.Series([1, 2], dtype=pl.Int8), pl.Series([1, 2], dtype=pl.UInt64)
    assert read_groups(small).tolist() == read_groups(large).tolist()
    words = pl.Series(["a", "b"])
    assert read_groups(words).tolist() == read_groups(words.cast(pl.Categorical)).tolist()


@pytest.mark.parametrize(
    "values", [["a", None, "b", "a", None], [None] * 5, [1.0, None, 2.0, 1, 0]]
)
def test_groups_of_chunks_are_those_of_the_whole(values: list[Any]):
    whole = pl.Series("session", values)
    parts = [read_groups(whole[:2]), read_groups(whole[2:], first_row=2)]
    np.testing.assert_array_equal(np.concatenate(parts), read_groups(whole))


def test_many_groups_stay_apart():
    assert np.unique(read_groups(pl.Series(range(300_000)))).size == 300_000


def test_group_column_that_can_be_no_id_is_named():
    with pytest.raises(EncodingError, match="Group column 'session': "):
        read_groups(pl.Series("session", [[1], [2]]))
