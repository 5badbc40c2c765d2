"""The README, word for word: every block of Python and every command, in the order it has them."""

from __future__ import annotations

import re
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from recsys_mtl.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
ENGINES = {"ray": "score_on_ray", "pyspark": "score_on_spark"}
CLUSTERS = {name: code for name, call in ENGINES.items() for code in PYTHON if call in code}
SESSION = [code for code in PYTHON if code not in CLUSTERS.values()]
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
OURS = [line for line in COMMANDS if line.startswith("recsys-mtl")]


@pytest.fixture(scope="module")
def tables(log):
    """The tables at half their length, written where a test wants them."""

    def write(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        log.interactions.gather_every(2).write_parquet(folder / "interactions.parquet")
        log.users.write_parquet(folder / "users.parquet")
        log.items.write_parquet(folder / "items.parquet")
        return folder

    return write


@pytest.fixture(scope="module")
def session(tables, tmp_path_factory):
    """The names that the blocks leave behind, run one after another beside the tables."""
    names: dict[str, Any] = {"__name__": __name__}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tables(tmp_path_factory.mktemp("session")))
        for number, code in enumerate(SESSION):
            exec(compile(code, f"README block {number}", "exec", dont_inherit=True), names)
        names["place"] = Path.cwd()
        # the rows are read by relative paths, so what they are held to is made here
        names["direct"] = names["load"]("model").predict(names["test"])
        names["ratings"] = names["several"].predict(names["test"])["rating"]
    return names


def test_no_block_is_of_a_kind_that_is_not_run() -> None:
    assert set(re.findall(r"```(\w*)\n(?:.|\n)*?```", README)) == {"python", "sh"}
    assert len(CLUSTERS) == 2


def test_parquet_scores_are_those_of_the_table(session) -> None:
    scored, direct = pl.read_parquet(session["place"] / "nightly.parquet"), session["direct"]
    assert scored.select("user_id", "item_id").equals(direct.select("user_id", "item_id"))
    for task in ("interest", "ctr", "rating"):
        assert float((scored[task] - direct[task]).abs().max()) < 1e-6
    fused = scored["ctr"].log() + 0.5 * scored["interest"].log()
    assert float((scored["fused"] - fused).abs().max()) < 1e-5
    assert session["summary"].rows_out == direct.height


def test_the_best_pairs_are_those_that_were_not_shown(session) -> None:
    best = session["best"]
    assert best.columns == ["user_id", "item_id", "rank", "ctr"]
    shown = pl.read_parquet(session["place"] / "interactions.parquet")
    assert best.height > 0
    assert best.join(shown, on=["user_id", "item_id"], how="semi").is_empty()
    chosen = pl.read_parquet(session["place"] / "chosen.parquet")
    assert chosen.group_by("user_id").len()["len"].max() == 10


def test_the_report_has_the_columns_that_the_readme_names(session) -> None:
    frame = session["report"].to_frame()
    assert frame.columns == ["slice", "task", "metric", "value", "low", "high", "rows"]
    assert {"ndcg@10", "recall@10", "mrr"} <= set(frame["metric"])


def test_a_request_is_scored_as_the_pairs_of_the_tables_are(session) -> None:
    shown = session["shown"]
    assert shown.columns == ["user_id", "item_id", "interest", "ctr", "rating"]
    pairs = session["request"].select("user_id", "item_id", "hour", "duration_ms")
    place = session["place"]
    rows = session["scan"](pairs, users=place / "users.parquet", items=place / "items.parquet")
    star = session["scorer"].score(rows).sort("ctr", descending=True).head(10)
    assert star.select("user_id", "item_id").equals(shown.select("user_id", "item_id"))
    assert float((star["ctr"] - shown["ctr"]).abs().max()) < 1e-6


def test_the_tracker_knows_the_day_that_it_observed(session) -> None:
    time = pl.col("timestamp")
    rows = pl.read_parquet(session["place"] / "interactions.parquet")
    known = rows.filter(pl.col("split") != "test")
    tracker = session["load"](session["place"] / "tracker")
    assert tracker.scorer.as_of.end == known.select(time.max()).item()


def test_the_whole_family_and_an_ensemble_score(session) -> None:
    scores = session["scores"]
    assert scores.columns == ["user_id", "item_id", "ctr", "cvr", "ctcvr"]
    assert (scores["ctcvr"] <= scores["ctr"]).all()
    assert 1 < session["ratings"].min() < session["ratings"].max() < 5


def test_the_columns_that_the_document_names_are_in_the_history(session) -> None:
    table = (ROOT / "docs" / "history.md").read_text().split("| columns |")[1].split("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    told = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert len(told) >= 12
    columns = session["combined"].history_.columns
    for name in told:
        start = name.split(".")[0] + "."
        assert any(column.startswith(start) for column in columns), name


def test_training_went_on_from_day_to_day_and_from_the_model(session) -> None:
    assert any("length" in note for note in session["grown"].warm_start_notes_)
    assert session["matrix"].shape == (session["frame"].height, 3)
    assert session["batch"].num_rows == session["frame"].height


@pytest.mark.slow
def test_every_command_ends_well(tables, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    config = (ROOT / "data" / "synthetic.toml").read_text()
    (tmp_path / "data" / "synthetic.toml").write_text(config)
    place = tables(tmp_path / "build" / "synthetic")
    run = 0
    for line in OURS:
        _, *arguments = shlex.split(line)
        inside = nullcontext() if arguments[0] == "train" else monkeypatch.context()
        with inside as patch:
            if patch is not None:
                patch.chdir(place)
            done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (line, done.output)
        run += 1
    assert run >= 8
    parts = pl.read_parquet(place / "parts" / "*.parquet")
    assert parts.height == pl.read_parquet(place / "interactions.parquet").height
    assert parts["ctr"].dtype == pl.Float16
    assert (place / "parts" / "_SUCCESS").exists()
    assert (place / "best.parquet").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's and Spark's own
@pytest.mark.parametrize("name", ["ray", "pyspark"])
def test_a_cluster_gives_the_scores_of_one_process(
    name, tables, ranker, log, tmp_path, monkeypatch
) -> None:
    engine = pytest.importorskip(name)
    monkeypatch.chdir(tables(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    ranker.save("model")
    left: dict[str, Any] = {}
    try:
        exec(compile(CLUSTERS[name], name, "exec", dont_inherit=True), left)
    finally:
        engine.shutdown() if name == "ray" else left["spark"].stop()
    keys = ["user_id", "item_id"]
    written = tmp_path / ("ray_scores" if name == "ray" else "spark_scores")
    found = pl.read_parquet(written / "*.parquet")
    direct = ranker.predict(log.rows(log.interactions.gather_every(2)))
    assert found.height == direct.height
    ordered = [frame.sort([*keys, "ctr", "interest", "rating"]) for frame in (found, direct)]
    assert ordered[0].select(keys).equals(ordered[1].select(keys))
    for task in ("interest", "ctr", "rating"):
        assert float((ordered[0][task] - ordered[1][task]).abs().max()) < 1e-5
