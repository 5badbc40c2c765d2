"""The command line does what the Python names do, with the same numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from recsys_mtl import load
from recsys_mtl.cli import app
from recsys_mtl.metrics.warn import MetricWarning

CONFIG = """
[tables]
interactions = "$TABLES/interactions.parquet"
users = "${TABLES}/users.parquet"
items = "$TABLES/items.parquet"
train = "split = 'train'"
valid = "split = 'valid'"
test = "split = 'test'"

[schema]
context = [{ kind = "categorical", name = "hour" }, { kind = "numeric", name = "duration_ms" }]
tasks = [
    { kind = "binary", name = "interest", label = "label_interest" },
    { kind = "binary", name = "ctr", label = "label_ctr" },
    { kind = "regression", name = "rating", label = "label_rating" },
]

[schema.user]
key = "user_id"
features = [
    { kind = "categorical", name = "user_id" },
    { kind = "categorical", name = "city" },
    { kind = "numeric", name = "register_days" },
]

[schema.item]
key = "item_id"
features = [
    { kind = "categorical", name = "item_id" },
    { kind = "bag", name = "tags", separator = "," },
]

[model]
embedding_dim = 8
sharing = { kind = "shared_bottom", dims = [64, 32] }

[training]
batch_size = 512
max_epochs = 5

[run]
device = "cpu"
random_state = 0
"""
"""The settings of the fixture `ranker`."""


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The model that `train` writes, and what it printed."""
    place = tmp_path_factory.mktemp("trained")
    (place / "config.toml").write_text(CONFIG)
    command = ["train", str(place / "config.toml"), "--model", str(place / "model")]
    result = CliRunner().invoke(app, command, env={"TABLES": str(folder)})
    assert result.exit_code == 0, result.output
    assert os.listdir(place / "model")
    return place / "model", result.stdout


@pytest.fixture
def side_tables(folder):
    return ["--users", str(folder / "users.parquet"), "--items", str(folder / "items.parquet")]


def invoke(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def test_train_fits_the_model_that_python_fits(trained, ranker, log):
    loaded = load(trained[0], device="cpu")
    test = log.rows(log.part("test"))
    assert loaded.predict(test).equals(ranker.predict(test))
    assert loaded.settings_ == ranker.settings_
    assert loaded.scorer.schema == ranker.scorer.schema


def test_train_prints_both_reports_and_where_the_model_is(trained, ranker, log):
    model, told = trained
    assert str(ranker.valid_report_) in told
    assert str(ranker.evaluate(log.rows(log.part("test")))) in told
    assert f"model: {model}" in told


def test_evaluate_prints_the_report_of_python(trained, ranker, log, folder, side_tables):
    told = invoke(
        "evaluate", trained[0], folder / "interactions.parquet", *side_tables,
        "--where", "split = 'test'",
    )  # fmt: skip
    assert told.stdout.strip() == str(ranker.evaluate(log.rows(log.part("test"))))


def test_evaluate_prints_json_rows(trained, ranker, log, folder, side_tables):
    told = invoke(
        "evaluate", trained[0], folder / "interactions.parquet", *side_tables,
        "--where", "split = 'test'", "--json",
    )  # fmt: skip
    found = [json.loads(line) for line in told.stdout.strip().splitlines()]
    expected = ranker.evaluate(log.rows(log.part("test"))).to_frame().to_dicts()
    assert found == expected


def test_evaluate_json_says_null_where_a_metric_is_undefined(trained, folder, side_tables):
    with pytest.warns(MetricWarning, match="undefined"):
        told = invoke(
            "evaluate", trained[0], folder / "interactions.parquet", *side_tables,
            "--where", "split = 'test' AND label_ctr = 1", "--json",
        )  # fmt: skip
    rows = [json.loads(line) for line in told.stdout.strip().splitlines()]
    found = {(row["task"], row["metric"]): row["value"] for row in rows}
    assert found["ctr", "auc"] is None
    assert found["ctr", "log_loss"] > 0


def test_score_writes_exactly_the_rows_in_order(
    trained, ranker, log, folder, side_tables, tmp_path
):
    out = tmp_path / "scores.parquet"
    told = invoke(
        "score", trained[0], folder / "interactions.parquet", *side_tables, "-o", out
    )  # fmt: skip
    written = pl.read_parquet(out)
    assert written.columns == ["user_id", "item_id", "interest", "ctr", "rating"]
    ids = log.interactions.select("user_id", "item_id")
    assert written.select("user_id", "item_id").equals(ids)
    assert written.equals(ranker.predict(log.rows(folder / "interactions.parquet")))
    assert told.stdout.startswith(f"12,000 rows: {out}\n")
    assert sorted(os.listdir(tmp_path)) == ["scores.parquet", "scores.parquet.manifest.json"]


def test_score_takes_a_condition(trained, log, folder, side_tables, tmp_path):
    out = tmp_path / "scores.parquet"
    invoke(
        "score", trained[0], folder / "interactions.parquet", *side_tables,
        "-o", out, "--where", "hour >= 22",
    )  # fmt: skip
    late = log.interactions.filter(pl.col("hour") >= 22)
    assert pl.read_parquet(out)["user_id"].equals(late["user_id"])


def test_describe_says_what_the_model_reads_and_predicts(trained, ranker, log):
    told = invoke("describe", trained[0]).stdout
    assert "user by user_id: user_id (categorical), city (categorical)" in told
    assert "item by item_id: item_id (categorical), tags (bag)" in told
    assert "interest (binary) from label_interest, weight 1" in told
    assert "SharedBottom(dims=(64, 32)" in told
    num_users = log.part("train")["user_id"].n_unique()
    assert f"user_id: {num_users + 3} rows x 8" in told
    assert all(line in told for line in str(ranker.valid_report_).splitlines())


def test_a_newer_training_replaces_the_model(folder, tmp_path):
    text = CONFIG.replace("max_epochs = 5", "max_epochs = 1").replace("'train'", "'valid'")
    command = ["train", str(tmp_path / "config.toml"), "--model", str(tmp_path / "model")]
    for seed in (0, 1):
        (tmp_path / "config.toml").write_text(
            text.replace("random_state = 0", f"random_state = {seed}")
        )
        result = CliRunner().invoke(app, command, env={"TABLES": str(folder)})
        assert result.exit_code == 0, result.output
    assert load(tmp_path / "model", device="cpu").settings_.random_state == 1
    assert sorted(os.listdir(tmp_path)) == ["config.toml", "model"]


def test_the_installed_command_scores_in_a_process_of_its_own(
    trained, ranker, log, folder, side_tables, tmp_path
):
    script = Path(sys.executable).with_name("recsys-mtl")
    out = tmp_path / "scores.parquet"
    done = subprocess.run(
        [script, "score", trained[0], folder / "interactions.parquet", *side_tables, "-o", out],
        capture_output=True, text=True, check=True, env=os.environ | {"PYTHONWARNINGS": "error"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith(f"12,000 rows: {out}\n")
    assert pl.read_parquet(out).equals(ranker.predict(log.rows(folder / "interactions.parquet")))


def test_the_module_runs_as_the_installed_command_does():
    start = [sys.executable, "-W", "error", "-m", "recsys_mtl.cli", "--help"]
    done = subprocess.run(start, capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in ("train", "evaluate", "score", "describe"))
    assert done.stderr == ""


def test_an_idle_thread_spins_shortly_only_when_the_command_runs():
    code = (
        "import os, sys, recsys_mtl.cli as cli; sys.argv = ['recsys-mtl', '--help']\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))\n"
        "try: cli.main()\n"
        "except SystemExit: print(os.environ['GOMP_SPINCOUNT'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"}
    for given, lines in (({}, ("None", "10000")), ({"GOMP_SPINCOUNT": "7"}, ("7", "7"))):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, check=True, env=environment | given,
        )  # fmt: skip
        told = done.stdout.splitlines()
        assert (told[0], told[-1]) == lines


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "compare", "score", "describe", "collisions"]
)
def test_every_command_explains_itself(command):
    result = invoke(command, "--help")
    assert command in result.stdout
