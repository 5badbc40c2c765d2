"""Scoring that is killed, told to end, or shared by processes: the bytes of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest

from recsys_mtl import scoring
from recsys_mtl.errors import EncodingError
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


def _end(command: list[str], code: int = 0) -> None:
    process = _start(command)
    _, error = process.communicate(timeout=240)
    assert process.returncode == code, error


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


def _below(parent: int) -> list[int]:
    """Processes that this one started and that score."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            own = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if own == parent and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_run_which_can_go_on(place, whole) -> None:
    command, work = _command(place, place / "lost", "--workers", "2"), place / ".lost.scoring"
    process = _start(command)
    while not list(work.glob("part-*.json")) and process.poll() is None:
        time.sleep(0.005)
    os.kill(_below(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2, error
    assert "Traceback" not in error
    assert "run the same command again" in error
    assert not (place / "lost").exists()
    _end(command)
    _same(place / "lost", whole[0])


@pytest.mark.slow
def test_a_script_whose_processes_would_call_it_again_is_told(place, tmp_path) -> None:
    script = tmp_path / "script.py"
    sides = f"users={str(place / 'users.parquet')!r}, items={str(place / 'items.parquet')!r}"
    call = (
        f"score_parquet({str(place / 'model')!r}, {str(place / 'pairs.parquet')!r}, 'out', {sides}"
    )
    script.write_text(f"from recsys_mtl import score_parquet\n{call}, workers=2, part_rows=4000)\n")
    root = str(Path(__file__).resolve().parents[2])
    ended = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode != 0
    assert "must stand under: if __name__ == '__main__'" in ended.stderr
    assert "for what it wrote above" in ended.stderr


@pytest.mark.slow
def test_processes_leave_out_the_files_that_one_leaves_out(place, log, tmp_path, damage) -> None:
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for number in range(4):
        part = log.interactions.slice(2000 * number, 2000)
        part.write_parquet(pairs / f"{number}.parquet", row_group_size=500)
    damage(pairs / "2.parquet", 2)
    (pairs / "1.parquet").write_bytes(b"PAR1")
    command = _command(place, tmp_path / "one", "--part-rows", "500", "--on-error", "skip-file")
    command[command.index(str(place / "pairs.parquet"))] = str(pairs)
    _end(command, 3)
    both = [str(tmp_path / "two") if one == str(tmp_path / "one") else one for one in command]
    _end([*both, "--workers", "2"], 3)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    assert pl.read_parquet(tmp_path / "two").height == 4000


@pytest.mark.slow
def test_a_file_that_appears_under_the_hands_of_processes_stops_them(
    place, log, tmp_path, monkeypatch
) -> None:
    for number in (1, 2):
        log.interactions.slice(500 * number, 500).write_parquet(tmp_path / f"{number}.parquet")
    start = scoring.score_in_processes

    def late(*given: object) -> object:
        log.interactions.head(500).write_parquet(tmp_path / "0.parquet")
        return start(*given)

    monkeypatch.setattr(scoring, "score_in_processes", late)
    with pytest.raises(EncodingError, match="must stay as it is"):
        score_parquet(
            place / "model",
            tmp_path,
            place / "late",
            users=place / "users.parquet",
            items=place / "items.parquet",
            workers=2,
        )
    assert not (place / "late").exists()


@pytest.mark.slow
def test_told_to_end_it_leaves_whole_parts_only_and_can_go_on(place, whole) -> None:
    command, work = _command(place, place / "told"), place / ".told.scoring"
    process = _start(command)
    while not list(work.glob("part-*.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "interrupted: the same command goes on" in error
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
