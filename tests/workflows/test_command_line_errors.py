"""Bad input on the command line: one clear error, exit code 2, and nothing written."""

import os
import re
import shutil

import polars as pl
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from recsys_mtl.cli import app

CONFIG = """
[tables]
interactions = "rows.parquet"

[schema]
context = [{ kind = "categorical", name = "hour" }, { kind = "numeric", name = "size" }]
tasks = [{ kind = "binary", name = "ctr", label = "click" }]

[model]
embedding_dim = 4
sharing = { kind = "shared_bottom", dims = [8] }

[training]
max_epochs = 1

[run]
device = "cpu"
random_state = 0
"""


@pytest.fixture
def table():
    numbers = range(400)
    return pl.DataFrame(
        {
            "hour": [n % 24 for n in numbers],
            "size": [n * 7 % 13 / 2 for n in numbers],
            "click": [n % 24 % 2 for n in numbers],
            "split": ["train" if n < 300 else "test" for n in numbers],
        }
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to run the command in; relative paths begin there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A small model of the schema above."""
    place = tmp_path_factory.mktemp("errors")
    (place / "config.toml").write_text(CONFIG)
    numbers = range(400)
    pl.DataFrame(
        {"hour": [n % 24 for n in numbers], "size": 1.5, "click": [n % 2 for n in numbers]}
    ).write_parquet(place / "rows.parquet")
    run = ["train", str(place / "config.toml"), "-m", str(place / "model")]
    assert CliRunner().invoke(app, run).exit_code == 0
    return place / "model"


def fails(place, *command: object):
    """Run the command; return its one error after checking that it wrote nothing."""
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    return result.stderr


BAD_TABLES = {
    "missing column": (lambda t: t.drop("size"), "'size'"),
    "label outside its domain": (lambda t: t.with_columns(click=pl.lit(3)), "'click'.*0 or 1"),
    "text label": (lambda t: t.with_columns(click=pl.lit("yes")), "'click'.*numbers"),
    "text in a numeric column": (lambda t: t.with_columns(size=pl.lit("big")), "'size'"),
    "no rows": (lambda t: t.clear(), "empty table"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_train_refuses_a_bad_table(place, table, name):
    change, text = BAD_TABLES[name]
    change(table).write_parquet(place / "rows.parquet")
    (place / "config.toml").write_text(CONFIG)
    assert re.search(text, fails(place, "train", "config.toml"))


@pytest.mark.parametrize("name", BAD_TABLES)
def test_evaluate_refuses_a_bad_table(place, saved, table, name):
    change, text = BAD_TABLES[name]
    change(table).write_parquet(place / "rows.parquet")
    assert re.search(text, fails(place, "evaluate", saved, "rows.parquet"))


@pytest.mark.parametrize("name", ["missing column", "text in a numeric column"])
def test_score_refuses_a_bad_table(place, saved, table, name):
    change, text = BAD_TABLES[name]
    change(table).write_parquet(place / "rows.parquet")
    assert re.search(text, fails(place, "score", saved, "rows.parquet", "-o", "out.parquet"))


def test_score_writes_an_empty_table_for_an_empty_table(place, saved, table):
    table.clear().write_parquet(place / "rows.parquet")
    command = ["score", str(saved), "rows.parquet", "-o", "out.parquet"]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert pl.read_parquet("out.parquet").schema == {"ctr": pl.Float32}
    assert pl.read_parquet("out.parquet").height == 0


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.0])
def test_a_truncated_parquet_is_named(place, saved, table, command, kept):
    table.write_parquet(place / "rows.parquet")
    data = (place / "rows.parquet").read_bytes()
    (place / "rows.parquet").write_bytes(data[: int(len(data) * kept)])
    (place / "config.toml").write_text(CONFIG)
    told = fails(place, *arguments(command, saved))
    assert "rows.parquet" in told


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
def test_a_damaged_row_group_is_named(place, saved, table, command):
    big = pl.concat([table] * 20).with_columns(size=pl.int_range(pl.len()) * 0.37)
    big.write_parquet(place / "rows.parquet", row_group_size=4000, compression="zstd")
    group = parquet.ParquetFile(place / "rows.parquet").metadata.row_group(1)
    column = next(c for c in map(group.column, range(4)) if c.path_in_schema == "size")
    data = bytearray((place / "rows.parquet").read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    for offset in range(start, start + column.total_compressed_size):
        data[offset] = 0xFF
    (place / "rows.parquet").write_bytes(data)
    (place / "config.toml").write_text(CONFIG)
    told = fails(place, *arguments(command, saved))
    assert "rows.parquet, row group 1" in told


@pytest.mark.parametrize("command", ["train", "evaluate", "score"])
def test_a_table_that_is_not_there_is_named(place, saved, command):
    (place / "config.toml").write_text(CONFIG)
    assert "rows.parquet" in fails(place, *arguments(command, saved))


@pytest.mark.parametrize("command", ["evaluate", "score", "describe"])
def test_a_damaged_model_is_refused(place, saved, table, command):
    table.write_parquet(place / "rows.parquet")
    broken = shutil.copytree(saved, place / "model")
    data = bytearray((broken / "weights.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "weights.safetensors").write_bytes(data)
    assert "was changed after it was written" in fails(place, *arguments(command, broken))


@pytest.mark.parametrize("command", ["evaluate", "score", "describe"])
def test_a_model_that_is_not_there_is_named(place, table, command):
    table.write_parquet(place / "rows.parquet")
    assert "nowhere must be a model folder" in fails(place, *arguments(command, "nowhere"))


@pytest.mark.parametrize("command", ["evaluate", "score"])
@pytest.mark.parametrize("condition", ["split = ", "spilt = 'test'", "size = 'a'", "size + 1"])
def test_a_condition_that_cannot_be_is_refused(place, saved, table, command, condition):
    table.write_parquet(place / "rows.parquet")
    told = fails(place, *arguments(command, saved), "--where", condition)
    assert "where must be an SQL condition on the interactions" in told
    assert repr(condition) in told


def test_a_schema_with_two_features_of_one_name_is_refused(place, table):
    table.write_parquet(place / "rows.parquet")
    (place / "config.toml").write_text(CONFIG.replace('name = "size"', 'name = "hour"'))
    told = fails(place, "train", "config.toml")
    assert "schema: feature names must be unique. 'hour' is used more than once" in told


def test_train_refuses_a_place_it_could_not_save_to_before_it_trains(place, table, monkeypatch):
    from recsys_mtl import MultiTaskRanker

    monkeypatch.setattr(MultiTaskRanker, "fit", lambda *_, **__: pytest.fail("it was trained"))
    table.write_parquet(place / "rows.parquet")
    (place / "config.toml").write_text(CONFIG)
    (place / "mine").mkdir()
    (place / "mine" / "notes.txt").write_text("mine")
    assert "Choose another path" in fails(place, "train", "config.toml", "-m", "mine")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"click": pl.when(pl.col("split") == "test").then(2).otherwise("click")}, "0 or 1"),
        ({"split": pl.lit("train")}, "tables.test must select rows"),
    ],
)
def test_train_refuses_bad_test_rows_before_it_trains(place, table, monkeypatch, change, text):
    from recsys_mtl import MultiTaskRanker

    monkeypatch.setattr(MultiTaskRanker, "fit", lambda *_, **__: pytest.fail("it was trained"))
    table.with_columns(**change).write_parquet(place / "rows.parquet")
    parts = "[tables]\ntrain = \"split = 'train'\"\ntest = \"split = 'test'\""
    (place / "config.toml").write_text(CONFIG.replace("[tables]", parts))
    assert text in fails(place, "train", "config.toml")


def test_training_that_diverges_is_an_error_and_no_model(place, table):
    table.write_parquet(place / "rows.parquet")
    rates = '[training]\nbatch_size = 16\noptimizer = { kind = "sgd", learning_rate = 1e30 }'
    (place / "config.toml").write_text(CONFIG.replace("[training]", rates))
    assert "diverged" in fails(place, "train", "config.toml")


def test_checkpoints_without_a_seed_are_refused(place, table):
    table.write_parquet(place / "rows.parquet")
    (place / "config.toml").write_text(CONFIG.replace("random_state = 0", ""))
    told = fails(place, "train", "config.toml", "--checkpoints", "run")
    assert "checkpoints need an integer random_state" in told


def test_too_little_memory_is_refused_by_its_setting(place, table):
    pl.concat([table] * 100).write_parquet(place / "rows.parquet")
    cache = 'cache = { folder = "encoded", memory_mib = 1 }'
    text = CONFIG.replace("[run]", f"[run]\n{cache}")
    (place / "config.toml").write_text(text.replace("[training]", "[training]\nbatch_size = 39999"))
    result = CliRunner().invoke(app, ["train", "config.toml"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(r"error: memory_mib must be at least \d+: .*Found 1", result.stderr)


def test_score_refuses_a_folder_as_its_output(place, saved, table):
    table.write_parquet(place / "rows.parquet")
    (place / "out.parquet").mkdir()
    assert "must be a file" in fails(place, "score", saved, "rows.parquet", "-o", "out.parquet")


def test_an_interrupted_score_leaves_nothing(place, saved, table, monkeypatch):
    from recsys_mtl.serving.store import PartWriter

    def interrupted(self, table):
        raise KeyboardInterrupt

    monkeypatch.setattr(PartWriter, "add", interrupted)
    table.write_parquet(place / "rows.parquet")
    result = CliRunner().invoke(app, ["score", str(saved), "rows.parquet", "-o", "out.parquet"])
    assert result.exit_code != 0
    assert os.listdir(place) == ["rows.parquet"]


def arguments(command, model):
    """Return the command on rows.parquet."""
    return {
        "train": ["train", "config.toml"],
        "evaluate": ["evaluate", model, "rows.parquet"],
        "score": ["score", model, "rows.parquet", "-o", "out.parquet"],
        "describe": ["describe", model],
    }[command]
