import subprocess
import sys
from pathlib import Path

import polars as pl


def _run(*arguments: str | int | Path):
    command = [sys.executable, "-m", "recsys_mtl.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_the_best_of_candidates_and_of_all_pairs(model, folder, tmp_path):
    sides = ["--users", folder / "users.parquet", "--items", folder / "items.parquet"]
    asked = ["--top-k", 5, "--by", "user_id", "--score", "ctr"]
    chosen, every = tmp_path / "chosen.parquet", tmp_path / "every.parquet"
    pairs = folder / "interactions.parquet"
    done = _run("topk", model, pairs, "-o", chosen, *sides, *asked)
    assert done.returncode == 0, done.stderr
    best = pl.read_parquet(chosen)
    assert best.group_by("user_id").len()["len"].max() == 5
    context = ["--context", '{"hour": 12, "duration_ms": 60000}', "--exclude", pairs]
    done = _run("topk", model, "-o", every, *sides, *asked, *context)
    assert done.returncode == 0, done.stderr
    seen = pl.read_parquet(pairs).select("user_id", "item_id")
    assert pl.read_parquet(every).join(seen, on=["user_id", "item_id"], how="semi").height == 0


def test_a_mistake_is_one_line(model, folder, tmp_path):
    sides = ["--users", folder / "users.parquet", "--items", folder / "items.parquet"]
    done = _run("topk", model, "-o", tmp_path / "a", *sides, "--by", "user_id", "--score", "ctr")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "hour" in done.stderr
