"""Killed in the middle, and called again: estimator and command line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from polars import selectors as cs

from recsys_mtl import Adam, Checkpoints, MultiTaskRanker, load
from recsys_mtl.errors import ModelDirError, SchemaError
from recsys_mtl.training import CheckpointFile

CONFIG = """
[tables]
interactions = "interactions.parquet"
users = "users.parquet"
items = "items.parquet"
train = "split = 'train'"
valid = "split = 'valid'"
[schema]
context = [{ kind = "categorical", name = "hour" }]
tasks = [
    { kind = "binary", name = "ctr", label = "label_ctr" },
    { kind = "regression", name = "rating", label = "label_rating" },
]
user = { key = "user_id", features = [{ kind = "categorical", name = "user_id" }] }
item = { key = "item_id", features = [{ kind = "categorical", name = "item_id" }] }
[model]
sharing = { kind = "mmoe", num_experts = 3, expert_dims = [32], dropout = 0.2 }
[training]
batch_size = 16
max_epochs = 3
patience = 3
[run]
random_state = 3
device = "cpu"
refit = true
"""


class DiedError(Exception):
    """Stands for the end of a process."""


@pytest.mark.parametrize("cut_after", [3, 60])
def test_a_fit_that_died_in_its_first_run_or_its_refit_ends_as_if_it_had_not(
    cut_after: int, make, log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, valid = log.flat(log.part("train")), log.flat(log.part("valid"))
    train, other = table.head(4000), table.head(3999)
    settings = {"max_epochs": 3, "batch_size": 256}
    whole = make(**settings).fit(train, valid=valid, refit=True)
    kept = Checkpoints(str(tmp_path / "run"), every_steps=4)
    save, left = CheckpointFile.save, iter(range(cut_after // 4))

    def dying(file: CheckpointFile, snapshot: object) -> None:
        save(file, snapshot)  # type: ignore[arg-type]
        if next(left, None) is None:
            raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFile, "save", dying)
        with pytest.raises(DiedError):
            make(**settings).fit(train, valid=valid, refit=True, checkpoints=kept)
    again = make(**settings).fit(train, valid=valid, refit=True, checkpoints=kept)
    test = log.flat(log.part("test"))
    assert again.predict(test).equals(whole.predict(test))
    assert again.valid_report_ == whole.valid_report_
    with pytest.raises(ModelDirError, match=r"training rows\.count was 4000, and is 3999"):
        make(**settings).fit(other, valid=valid, refit=True, checkpoints=kept)
    changed = make(**settings | {"batch_size": 512, "optimizer": Adam(0.5)})
    with pytest.raises(ModelDirError, match="another run") as refused:
        changed.fit(train, valid=valid, refit=True, checkpoints=kept)
    assert "settings.batch_size was 256, and is 512" in str(refused.value)
    assert "settings.optimizer.learning_rate was" in str(refused.value)
    kept.clear()
    assert not (tmp_path / "run").exists()


def test_checkpoints_without_a_seed_are_refused(make, log, tmp_path: Path) -> None:
    ranker: MultiTaskRanker = make(random_state=None)
    with pytest.raises(ValueError, match="integer random_state"):
        ranker.fit(log.rows(log.part("train")), checkpoints=Checkpoints(str(tmp_path)))


@pytest.mark.parametrize("path", [str, Path])
def test_a_folder_alone_is_a_place_for_checkpoints(path, make, log, tmp_path: Path) -> None:
    table, place = log.flat(log.part("train")).head(600), tmp_path / "run"
    fitted = make(max_epochs=1).fit(table, checkpoints=path(place))
    assert [file.name for file in place.iterdir()] == ["fit.checkpoint"]
    again = make(max_epochs=1).fit(table, checkpoints=Checkpoints(str(place)))
    assert again.predict(table).equals(fitted.predict(table))


def test_what_is_no_place_is_refused(make, log) -> None:
    table = log.flat(log.part("train")).head(60)
    with pytest.raises(
        SchemaError, match=r"checkpoints must be Checkpoints\(folder\), or a folder"
    ):
        make().fit(table, checkpoints=7)
    with pytest.raises(SchemaError, match=r"cache must be DiskCache\(folder\), or a folder"):
        make().fit(table, cache=Checkpoints("run"))


@pytest.mark.slow
def test_a_command_killed_at_any_moment_goes_on_to_the_same_model(
    folder: Path, log, tmp_path: Path
) -> None:
    """SIGKILL at ten random moments, writes of checkpoints among them."""
    for name in ("interactions", "users", "items"):
        (tmp_path / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    (tmp_path / "config.toml").write_text(CONFIG)

    def command(model: str, *more: str) -> list[str]:
        train = ["train", str(tmp_path / "config.toml"), "--model", str(tmp_path / model)]
        return [sys.executable, "-m", "recsys_mtl.cli", *train, *more]

    subprocess.run(command("whole"), check=True, capture_output=True, env=_environment())
    kept = tmp_path / "run"
    resumed = command("again", "--checkpoints", str(kept), "--checkpoint-minutes", "1e-4")
    chance, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(
            resumed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_environment()
        )
        before = _newest(kept)
        while process.poll() is None and _newest(kept) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        if process.poll() is not None:
            break  # it was done before the blow
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills >= 3
    subprocess.run(resumed, check=True, capture_output=True, env=_environment())
    one, other = load(tmp_path / "whole", device="cpu"), load(tmp_path / "again", device="cpu")
    test = log.rows(log.part("test"))
    assert one.predict(test).equals(other.predict(test))
    clocks = cs.ends_with("seconds")
    assert one.history_.drop(clocks).equals(other.history_.drop(clocks))
    assert not kept.exists()


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _newest(folder: Path) -> float:
    files = folder.glob("*.checkpoint") if folder.exists() else []
    return max((file.stat().st_mtime for file in files), default=0.0)
