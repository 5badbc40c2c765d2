import numpy as np
import pytest

from recsys_mtl.errors import SchemaError
from recsys_mtl.metrics import HIGHER_IS_BETTER
from recsys_mtl.schema import Binary, Categorical, Regression, Schema
from recsys_mtl.training import SGD, RowWiseAdagrad, TrainConfig, monitor_parts
from recsys_mtl.training.config import badness

SCHEMA = Schema(
    context=[Categorical("hour")],
    tasks=[Binary("ctr", label="click"), Regression("a.b", label="rating")],
)


@pytest.mark.parametrize(
    ("metric", "better", "worse"),
    [
        ("auc", 0.8, 0.7),
        ("gauc", 0.8, 0.7),
        ("accuracy", 0.8, 0.7),
        ("loss", 0.1, 0.2),
        ("log_loss", 0.1, 0.2),
        ("rmse", 0.1, 0.2),
        ("mae", 0.1, 0.2),
        ("ece", 0.01, 0.02),
        ("pcoc", 1.1, 0.8),
        ("pcoc", 0.95, 1.1),
        ("pcoc", 1.0, 0.999),
    ],
)
def test_less_bad_is_better_in_the_metrics_own_direction(
    metric: str, better: float, worse: float
) -> None:
    assert badness(metric, better) < badness(metric, worse)


def test_every_metric_of_a_report_has_a_direction_tested_above() -> None:
    assert set(HIGHER_IS_BETTER) == {
        "auc", "gauc", "accuracy", "log_loss", "rmse", "mae", "pcoc", "ece"
    }  # fmt: skip


def test_monitor_names_a_task_and_one_of_its_metrics() -> None:
    assert monitor_parts("loss", SCHEMA) == ("", "loss")
    assert monitor_parts("ctr.auc", SCHEMA) == ("ctr", "auc")
    assert monitor_parts("a.b.rmse", SCHEMA) == ("a.b", "rmse")


@pytest.mark.parametrize(
    "monitor",
    ["", "auc", "ctr", "ctr.", "ctr.f1", "ctr.rmse", "a.b.auc", "ctr.gauc", "cvr.auc", ".auc"],
)
def test_an_unknown_monitor_is_refused_with_what_there_is(monitor: str) -> None:
    with pytest.raises(SchemaError, match=r"one of \['ctr.auc', .*'a.b.rmse'"):
        monitor_parts(monitor, SCHEMA)


def test_json_gives_the_same_config_back() -> None:
    config = TrainConfig(
        batch_size=7,
        optimizer=SGD(0.5),
        table_optimizer=RowWiseAdagrad(0.2, l2=0.1),
        monitor="ctr.auc",
        reset_tables=True,
    )
    assert TrainConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["batch_size", "max_epochs", "patience"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(SchemaError, match=name):
        TrainConfig(**{name: 0})


def test_batch_sizes_of_epochs_go_to_json_and_back():
    config = TrainConfig(batch_size=[1024, np.int64(4096)])
    assert config.batch_size == (1024, 4096)
    assert TrainConfig.from_json(config.to_json()) == config
    assert TrainConfig(batch_size=np.int64(7)).batch_size == 7
