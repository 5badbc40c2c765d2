"""Scoring that is killed, told to end, or shared by processes: the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from recsys_mtl.scoring import score_parquet
from recsys_mtl.serving.store import locked

KILLS = 10


@pytest.fixture(scope="module")
def place(ranker, log, tmp_path_factory) -> Path:
    """A model, pairs in 24 row groups, and side tables that lack some users."""
    made: Path = tmp_path_factory.mktemp("scoring")
    ranker.save(made / "model")
    pairs = pl.concat([log.interactions] * 8)
    pairs.write_parquet(made / "pairs.parquet", row_group_size=4000)
    log.users.head(50).write_parquet(made / "users.parquet")
    log.items.write_parquet(made / "items.parquet")
    return made


def _command(place: Path, output: Path, *more: str) -> list[str]:
    sides = ["--users", str(place / "users.parquet"), "--items", str(place / "items.parquet")]
    own = [str(place / "model"), str(place / "pairs.parquet"), "-o", str(output)]
    start = "from recsys_mtl.cli import app; app()"
    return [sys.executable, "-c", start, "score", *own, *sides, "--part-rows", "4000", *more]


def _start(command: list[str]) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end(command: list[str]) -> None:
    process = _start(command)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error


def _bytes(output: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(output.iterdir())}


def _parts(output: Path) -> object:
    return json.loads(output.with_name(f"{output.name}.manifest.json").read_text())["parts"]


@pytest.fixture(scope="module")
def whole(place) -> tuple[Path, float]:
    """The output of an undisturbed run, and the seconds it took."""
    started = time.perf_counter()
    _end(_command(place, place / "whole"))
    return place / "whole", time.perf_counter() - started


def _same(output: Path, whole: Path) -> None:
    assert len(_bytes(whole)) >= 20
    assert _bytes(output) == _bytes(whole)
    assert _parts(output) == _parts(whole)
    assert not list(output.parent.glob(f".{output.name}.*"))


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_with_the_same_bytes(place, whole) -> None:
    chance, command = random.Random(0), _command(place, place / "killed")
    for _ in range(KILLS):
        process = _start(command)
        time.sleep(chance.uniform(0.3, 1.0) * whole[1])
        process.kill()
        process.communicate()
    _end(command)
    _same(place / "killed", whole[0])


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(place, whole) -> None:
    _end(_command(place, place / "two", "--workers", "2"))
    _same(place / "two", whole[0])


@pytest.mark.slow
def test_told_to_end_it_leaves_whole_parts_only_and_can_go_on(place, whole) -> None:
    command, work = _command(place, place / "told"), place / ".told.scoring"
    process = _start(command)
    while not list(work.glob("part-*.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not (place / "told").exists()
    assert not list(work.glob("*.tmp"))
    _end(command)
    _same(place / "told", whole[0])


def test_a_second_run_on_one_output_is_refused(ranker, log, tmp_path) -> None:
    output = tmp_path / "scores.parquet"
    rows = log.rows(log.interactions.head(10))
    with locked(output), pytest.raises(FileExistsError, match="one run at a time"):
        score_parquet(ranker, rows, output)
    assert score_parquet(ranker, rows, output).rows_out == 10
