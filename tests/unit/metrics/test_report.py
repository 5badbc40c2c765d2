import math

import polars as pl
import pytest

from recsys_mtl.metrics import HIGHER_IS_BETTER, Measurement, Report

REPORT = Report(
    (
        Measurement("click", "auc", 0.75, 1_200_000),
        Measurement("click", "log_loss", 0.123456, 1_200_000),
        Measurement("rating", "rmse", 1234.5678, 900),
        Measurement("buy", "auc", math.nan, 0),
    ),
    notes=("click: gauc uses 3 of 9 groups",),
)


def test_the_table_has_a_line_per_task_and_a_column_per_metric():
    assert str(REPORT).split("\n") == [
        "task         rows     auc  log_loss    rmse",
        "click   1,200,000  0.7500    0.1235",
        "rating        900                    1234.6",
        "buy             0     nan",
        "- click: gauc uses 3 of 9 groups",
    ]


def test_a_full_report_fits_a_terminal_and_long_notes_are_wrapped():
    found = [
        Measurement(f"interest_{task}", metric, 0.123456, 12_345_678)
        for task in range(3)
        for metric in HIGHER_IS_BETTER
    ]
    text = str(Report(tuple(found), notes=("word " * 60,)))
    assert max(map(len, text.split("\n"))) <= 90
    assert text.split("\n")[4].startswith("- word")
    assert text.split("\n")[5].startswith("  word")


def test_columns_come_in_one_order_whatever_the_measurements():
    turned = Report(REPORT.measurements[::-1])
    assert str(turned).split("\n")[0].split() == ["task", "rows", "auc", "log_loss", "rmse"]


def test_the_frame_has_one_row_per_task_and_metric():
    frame = REPORT.to_frame()
    assert frame.schema == {
        "task": pl.String,
        "metric": pl.String,
        "value": pl.Float64,
        "rows": pl.Int64,
    }
    assert frame.rows()[0] == ("click", "auc", 0.75, 1_200_000)
    assert frame.height == 4


def test_an_empty_report_still_has_a_frame_and_a_table():
    assert Report(()).to_frame().columns == ["task", "metric", "value", "rows"]
    assert str(Report(())) == "task  rows"


def test_value_finds_a_measurement():
    assert REPORT.value("rating", "rmse") == 1234.5678


def test_value_lists_what_there_is():
    with pytest.raises(KeyError, match=r"No metric 'auc' of task 'rating'.*click/auc.*rating/rmse"):
        REPORT.value("rating", "auc")


def test_value_lists_a_metric_of_several_slices_once():
    found = tuple(Measurement("click", "auc", 0.5, 3, slice=name) for name in (None, "a", "b"))
    with pytest.raises(KeyError, match=r"has: click/auc; slices by hour: a, b"):
        Report(found, by="hour").value("click", "auc", slice="c")


def test_html_escapes_names():
    report = Report((Measurement("<b>", "auc", 0.5, 3),), notes=("a < b",))
    assert report._repr_html_() == (
        "<table><thead><tr><th>task</th><th>rows</th><th>auc</th></tr></thead>"
        "<tbody><tr><td>&lt;b&gt;</td><td>3</td><td>0.5000</td></tr></tbody></table>"
        "<ul><li>a &lt; b</li></ul>"
    )


def test_a_task_has_each_metric_once():
    twice = Measurement("click", "auc", 0.5, 3)
    with pytest.raises(ValueError, match=r"found twice: \[\('click', 'auc'\)\]"):
        Report((twice, twice))


def test_directions():
    up = {name for name, higher in HIGHER_IS_BETTER.items() if higher}
    down = {name for name, higher in HIGHER_IS_BETTER.items() if higher is False}
    assert up == {"auc", "gauc", "accuracy"}
    assert down == {"log_loss", "ece", "rmse", "mae"}
    assert HIGHER_IS_BETTER["pcoc"] is None
