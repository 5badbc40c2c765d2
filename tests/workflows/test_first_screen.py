"""The README's first screen, word for word."""

import math
import re
from pathlib import Path

import polars as pl
import pytest

README = Path(__file__).parents[2] / "README.md"
FIRST_SCREEN = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)[0]


@pytest.fixture(scope="module")
def screen(log, folder, tmp_path_factory):
    """The names that the first screen leaves behind, run beside the three parquet files."""
    place = tmp_path_factory.mktemp("first_screen")
    for name in ("users", "items"):
        (place / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    log.interactions.gather_every(2).write_parquet(place / "interactions.parquet")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(compile(FIRST_SCREEN, "first_screen", "exec"), names)
        names["loaded_scores"] = names["load"]("model").predict(names["test"])
        names["report"] = names["ranker"].evaluate(names["test"])
    return names


def test_scores_have_the_ids_and_one_named_column_per_task(screen, log):
    test = log.interactions.gather_every(2).filter(pl.col("split") == "test")
    scores = screen["scores"]
    assert isinstance(scores, pl.DataFrame)
    assert scores.columns == ["user_id", "item_id", "interest", "ctr", "rating"]
    assert scores.select("user_id", "item_id").equals(test.select("user_id", "item_id"))
    assert scores.select("interest", "ctr").to_numpy().min() > 0
    assert scores.select("interest", "ctr").to_numpy().max() < 1


def test_the_report_has_one_row_per_task_and_metric_with_the_promised_names(screen, log):
    frame = screen["report"].to_frame()
    assert frame.columns == ["task", "metric", "value", "rows"]
    binary = ["auc", "gauc", "log_loss", "accuracy", "pcoc", "ece"]
    expected = {(task, metric) for task in ("interest", "ctr") for metric in binary}
    expected |= {("rating", "rmse"), ("rating", "mae")}
    assert frame.height == len(expected)
    assert set(frame.select("task", "metric").rows()) == expected
    assert all(math.isfinite(value) for value in frame["value"])
    test = log.interactions.gather_every(2).filter(pl.col("split") == "test")
    counts = dict(frame.select("task", "rows").rows())
    assert counts == {task: test[f"label_{task}"].count() for task in counts}


def test_the_report_prints_a_line_per_task(screen):
    lines = str(screen["report"]).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["task", "interest", "ctr", "rating"]


def test_the_model_is_far_better_than_chance(screen):
    report = screen["report"]
    assert report.value("interest", "auc") > 0.65
    assert report.value("ctr", "auc") > 0.65


def test_the_loaded_model_gives_the_same_bits(screen):
    assert screen["loaded_scores"].equals(screen["scores"])


def test_a_trained_model_approaches_the_probabilities_the_labels_were_drawn_with(ranker, log):
    from sklearn.metrics import roc_auc_score

    test = log.part("test")
    report = ranker.evaluate(log.rows(test))
    for task in ("interest", "ctr"):
        best = roc_auc_score(test[f"label_{task}"], test[f"oracle_{task}"])
        assert report.value(task, "auc") > best - 0.06
    rated = test.drop_nulls("label_rating")
    best = (rated["label_rating"] - rated["oracle_rating"]).pow(2).mean() ** 0.5
    spread = rated["label_rating"].std()
    assert best * 0.99 < report.value("rating", "rmse") < best + 0.4 * (spread - best)
