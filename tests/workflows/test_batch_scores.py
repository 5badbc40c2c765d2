"""Batch scores: the numbers of `predict` however they are cut up, and what goes wrong is told."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from recsys_mtl.cli import app
from recsys_mtl.scoring import score_parquet
from recsys_mtl.serving.writing import GROUP_ROWS

TASKS = ["interest", "ctr", "rating"]
FULL_AT = 60_000
"""Bytes of a file that the disk has room for."""


@pytest.fixture
def pairs(log, tmp_path) -> Path:
    """Three files of 3,000 pairs, in six row groups each."""
    made = tmp_path / "pairs"
    made.mkdir()
    for number in range(3):
        part = log.interactions.slice(3000 * number, 3000)
        part.write_parquet(made / f"{number}.parquet", row_group_size=500)
    return made


@pytest.fixture
def sides(log, tmp_path) -> dict[str, Path]:
    """Side tables that lack some users and items."""
    log.users.head(50).write_parquet(tmp_path / "users.parquet")
    log.items.head(35).write_parquet(tmp_path / "items.parquet")
    return {name: tmp_path / f"{name}.parquet" for name in ("users", "items")}


@pytest.mark.parametrize(
    ("group_rows", "part_rows", "memory_mib", "threads"),
    [(9000, 1 << 20, 1024, 1), (700, 1000, 64, 2), (5000, 1, 1024, 3), (123, 4000, 64, 5)],
)
def test_scores_are_those_of_predict_however_the_rows_are_cut_up(
    ranker, log, sides, tmp_path, monkeypatch, group_rows, part_rows, memory_mib, threads
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
    rows = log.interactions.head(9000)
    rows.write_parquet(tmp_path / "rows.parquet", row_group_size=group_rows)
    output = tmp_path / "scores.parquet"
    score_parquet(
        ranker,
        tmp_path / "rows.parquet",
        output,
        **sides,
        keep=["hour"],
        part_rows=part_rows,
        memory_mib=memory_mib,
    )
    found = pl.read_parquet(output)
    kept = ["user_id", "item_id", "hour"]
    assert found.select(kept).equals(rows.select(kept))
    flat = rows.join(pl.read_parquet(sides["users"]), on="user_id", how="left")
    flat = flat.join(pl.read_parquet(sides["items"]), on="item_id", how="left")
    expected = ranker.predict(flat)
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], atol=1e-6, rtol=1e-6)


def test_partitions_of_a_folder_are_columns_in_the_order_of_their_paths(ranker, log, tmp_path):
    rows = log.flat(log.interactions.head(2000))
    folder, hours = tmp_path / "hours", [3, 12, 22, None]
    for hour in hours:
        named = "__HIVE_DEFAULT_PARTITION__" if hour is None else f"{hour:02}"
        (folder / f"hour={named}").mkdir(parents=True)
        some = rows.head(50) if hour is None else rows.filter(pl.col("hour") == hour)
        some.drop("hour").write_parquet(folder / f"hour={named}" / "0.parquet")
    score_parquet(ranker, folder, tmp_path / "scores", keep=["hour"])
    parts = [
        pl.read_parquet(file, hive_partitioning=False).with_columns(
            hour=pl.lit(hour, pl.Int64)  # by hand, from the folder's name
        )
        for hour, file in zip(hours, sorted(folder.rglob("*.parquet")), strict=True)
    ]
    expected = ranker.predict(pl.concat(parts))
    found = pl.read_parquet(tmp_path / "scores")
    assert found["user_id"].to_list() == expected["user_id"].to_list()
    assert found["hour"].to_list() == pl.concat(parts)["hour"].to_list()
    for task in TASKS:
        np.testing.assert_allclose(found[task], expected[task], atol=1e-6, rtol=1e-6)


def test_half_precision_scores_are_those_of_float32_rounded(ranker, log, pairs, tmp_path):
    given = {"users": log.users, "items": log.items}
    score_parquet(ranker, pairs, tmp_path / "single.parquet", **given)
    score_parquet(ranker, pairs, tmp_path / "half.parquet", **given, dtype="float16")
    single, half = (parquet.read_table(tmp_path / f"{name}.parquet") for name in ("single", "half"))
    for task in TASKS:
        assert half.schema.field(task).type == "halffloat"
        rounded = single[task].to_numpy().astype(np.float16)
        assert np.array_equal(half[task].to_numpy(), rounded)


def test_the_fused_score_is_the_weighted_sum_of_logarithms(ranker, log, pairs, tmp_path):
    weights = {"ctr": 1.0, "interest": 0.5}
    output = tmp_path / "scores.parquet"
    score_parquet(ranker, pairs, output, users=log.users, items=log.items, fuse=weights)
    found = pl.read_parquet(output)
    assert found.columns == ["user_id", "item_id", *TASKS, "fused"]
    for row in found.sample(200, seed=0).iter_rows(named=True):
        expected = sum(weight * math.log(row[name]) for name, weight in weights.items())
        assert row["fused"] == pytest.approx(expected, rel=1e-5)


def _score(model: Path, pairs: Path, sides: dict[str, Path], output: Path, *more: str) -> list[str]:
    tables = ["--users", str(sides["users"]), "--items", str(sides["items"])]
    return ["score", str(model), str(pairs), "-o", str(output), *tables, *more]


def test_the_command_stops_at_a_damaged_row_group_or_leaves_out_its_file(
    model, log, pairs, sides, tmp_path, damage
):
    damage(pairs / "1.parquet", 4)
    output = tmp_path / "scores"
    command = _score(model, pairs, sides, output, "--part-rows", "1000")
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert f"file {pairs / '1.parquet'}, row group 4" in result.stderr
    assert not output.exists()

    for _ in range(2):  # the second time it is all there
        result = CliRunner().invoke(app, [*command, "--on-error", "skip-file"])
        assert result.exit_code == 3, result.output
        assert f"left out: The interactions could not be read: file {pairs / '1.parquet'}" in (
            result.stdout
        )
    manifest = json.loads((tmp_path / "scores.manifest.json").read_text())
    assert [file for file, _ in manifest["quarantined"]] == [str(pairs / "1.parquet")]
    assert (manifest["rows_in"], manifest["rows_out"]) == (6000, 6000)
    kept = pl.concat([log.interactions.slice(0, 3000), log.interactions.slice(6000, 3000)])
    assert (
        pl.read_parquet(output)
        .select("user_id", "item_id")
        .equals(kept.select("user_id", "item_id"))
    )


@pytest.mark.slow
def test_a_full_disk_is_told_and_what_was_finished_is_gone_on_with(
    model, log, pairs, sides, tmp_path
):
    large = pl.concat([log.interactions] * 20).head(GROUP_ROWS)
    large.write_parquet(pairs / "3.parquet", row_group_size=GROUP_ROWS)
    output = tmp_path / "scores"
    command = _score(model, pairs, sides, output, "--part-rows", "3000")
    limited = (
        "import resource; from recsys_mtl.cli import app;"
        f" resource.setrlimit(resource.RLIMIT_FSIZE, ({FULL_AT}, {FULL_AT})); app()"
    )
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, "-c", limited, *command],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2, ended.stderr
    assert "could not be written to" in ended.stderr
    assert "Make room" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not output.exists()
    left = sorted(file.name for file in (tmp_path / ".scores.scoring").iterdir())
    finished = [f"part-000000{n}.{ending}" for n in range(3) for ending in ("json", "parquet")]
    assert left == ["manifest.json", *finished]

    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "3 of 4 parts were there" in result.stdout
    assert pl.read_parquet(output).height == 9000 + GROUP_ROWS
