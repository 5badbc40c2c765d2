"""Several processes, started as a user starts them, give the model of one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from polars import selectors as cs

from recsys_mtl import load

CONFIG = """
[tables]
interactions = "interactions.parquet"
users = "users.parquet"
items = "items.parquet"
train = "split = 'train'"
valid = "split = 'valid'"
[schema]
context = [{ kind = "categorical", name = "hour" }, { kind = "numeric", name = "duration_ms" }]
tasks = [
    { kind = "binary", name = "ctr", label = "label_ctr" },
    { kind = "regression", name = "rating", label = "label_rating" },
]
[schema.user]
key = "user_id"
features = [{ kind = "categorical", name = "user_id" }]
[schema.item]
key = "item_id"
features = [
    { kind = "categorical", name = "item_id" },
    { kind = "bag", name = "tags", separator = "," },
]
[model]
sharing = { kind = "mmoe", num_experts = 3, expert_dims = [32] }
[training]
optimizer = { kind = "sgd", learning_rate = 0.1 }
table_optimizer = { kind = "row_wise_adagrad", learning_rate = 0.02 }
max_epochs = 6
patience = 6
clip_norm = 1.0
average = 0.5
"""
RUN = """
[run]
random_state = 3
device = "cpu"
"""


def _folder(folder: Path, here: Path, *, batch_size: int, run: str = "") -> Path:
    for name in ("interactions", "users", "items"):
        (here / f"{name}.parquet").symlink_to(folder / f"{name}.parquet")
    text = CONFIG + f"batch_size = {batch_size}\n" + RUN + run
    (here / "config.toml").write_text(text)
    return here


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def _command(here: Path, model: str, *more: str, processes: int) -> list[str]:
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    launcher = [] if processes == 1 else torchrun
    train = ["recsys_mtl.cli", "train", str(here / "config.toml"), "-m", str(here / model)]
    return [sys.executable, "-m", *launcher, *train, *more]


def _train(here: Path, model: str, *more: str, processes: int) -> subprocess.CompletedProcess[str]:
    command = _command(here, model, *more, processes=processes)
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [False, True])
def test_two_processes_give_the_model_of_one_where_batches_are_the_same(
    folder: Path, log, tmp_path: Path, cache: bool
) -> None:
    """A batch of all rows is the same in whatever order, and in two halves."""
    run = 'cache = { folder = "encoded", memory_mib = 512 }\n' if cache else ""
    here = _folder(folder, tmp_path, batch_size=20_000, run=run)
    done = [_train(here, f"of{processes}", processes=processes) for processes in (1, 2)]
    assert [one.returncode for one in done] == [0, 0], done[1].stderr
    one, two = (load(tmp_path / name, device="cpu") for name in ("of1", "of2"))
    history, other = one.history_, two.history_
    for column in ("train_loss", "train_loss.ctr", "valid_loss", "valid.ctr.auc"):
        np.testing.assert_allclose(other[column], history[column], rtol=1e-5, err_msg=column)
    assert float(history["train_loss"][-1]) < 0.99 * float(history["train_loss"][0])
    test = log.rows(log.part("test"))
    for name in ("ctr", "rating"):
        np.testing.assert_allclose(
            two.predict(test)[name], one.predict(test)[name], rtol=0, atol=1e-5
        )


@pytest.mark.slow
def test_processes_of_many_batches_learn_what_one_does(folder: Path, log, tmp_path: Path) -> None:
    """Shares of an odd number of rows end in batches of different sizes, or of none."""
    here = _folder(folder, tmp_path, batch_size=333)
    done = _train(here, "model", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation, epoch") == 1  # the first process speaks
    report = load(tmp_path / "model", device="cpu").evaluate(log.rows(log.part("test")))
    assert report.value("ctr", "auc") > 0.65


@pytest.mark.slow
def test_processes_killed_at_any_moment_go_on_to_the_same_model(
    folder: Path, log, tmp_path: Path
) -> None:
    """SIGKILL for all of them at random moments, writes of checkpoints among them."""
    here = _folder(folder, tmp_path, batch_size=64)
    assert _train(here, "whole", processes=2).returncode == 0
    kept, chance, kills, refused = here / "run", random.Random(0), 0, False
    options = ["--checkpoints", str(kept), "--checkpoint-minutes", "1e-4"]
    while kills < 4:
        running = subprocess.Popen(
            _command(here, "again", *options, processes=2),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
            start_new_session=True,  # one group with torchrun: they all die together
        )
        before = _parts(kept)
        while running.poll() is None and _parts(kept) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        if running.poll() is not None:
            break  # it was done before the blow
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        kills += 1
        if not refused and _parts(kept):  # none: the run was done when it was killed
            found = _train(here, "again", *options, processes=1)
            assert "of 1 processes. Found that of 2" in found.stderr
            refused = True
    assert refused
    assert kills >= 2
    done = _train(here, "again", *options, processes=2)
    assert done.returncode == 0, done.stderr
    one, other = (load(here / name, device="cpu") for name in ("whole", "again"))
    test = log.rows(log.part("test"))
    assert one.predict(test).equals(other.predict(test))
    clocks = cs.ends_with("seconds")
    assert one.history_.drop(clocks).equals(other.history_.drop(clocks))
    assert not kept.exists()


def _parts(folder: Path) -> set[str]:
    return {file.name for file in folder.glob("*.checkpoint")}


@pytest.mark.slow
@pytest.mark.parametrize("table_optimizer", ["row_wise_adagrad", "lazy_adam"])
def test_processes_go_on_from_a_model_and_leave_one_to_go_on_from(
    folder: Path, log, tmp_path: Path, table_optimizer: str
) -> None:
    """Weights and optimizers' state pass from one to two processes and back, new ids among them."""
    here = _folder(folder, tmp_path, batch_size=20_000)
    config = here / "config.toml"
    text = config.read_text().replace("max_epochs = 6", "max_epochs = 2")
    text = text.replace("row_wise_adagrad", table_optimizer)
    today = "split = 'train'"
    config.write_text(text.replace(today, f"{today} and user_id % 3 > 0"))
    assert _train(here, "first", processes=1).returncode == 0
    config.write_text(text)
    for number in (1, 2):
        second, third = f"second of {number}", f"third of {number}"
        done = _train(here, second, "--warm-start", str(here / "first"), processes=number)
        assert done.returncode == 0, done.stderr
        assert "warm start: table 'user_id'" in done.stdout
        done = _train(here, third, "--warm-start", str(here / second), processes=1)
        assert done.returncode == 0, done.stderr
    test = log.rows(log.part("test"))
    for day in ("second", "third"):
        alone, together = f"{day} of 1", f"{day} of 2"
        one, two = (load(here / name, device="cpu") for name in (alone, together))
        np.testing.assert_allclose(
            two.history_["train_loss"], one.history_["train_loss"], rtol=1e-5, err_msg=together
        )
        for name in ("ctr", "rating"):
            np.testing.assert_allclose(
                two.predict(test)[name], one.predict(test)[name], rtol=0, atol=1e-5
            )
    assert one.training_.tensors().keys() == two.training_.tensors().keys()


@pytest.mark.slow
def test_what_processes_cannot_do_is_said(folder: Path, tmp_path: Path) -> None:
    here = _folder(folder, tmp_path, batch_size=333)
    config = here / "config.toml"
    config.write_text(
        config.read_text().replace("clip_norm = 1.0", 'balance = { kind = "uncertainty" }')
    )
    done = _train(here, "model", processes=2)
    assert done.returncode != 0
    assert "2 processes needs balance 'fixed'" in done.stderr
    assert not (tmp_path / "model").exists()
