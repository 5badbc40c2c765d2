"""Several processes, started as a user starts them, give the model of one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

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


def _train(here: Path, model: str, *, processes: int) -> subprocess.CompletedProcess[str]:
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    launcher = [] if processes == 1 else torchrun
    train = ["recsys_mtl.cli", "train", str(here / "config.toml"), "-m", str(here / model)]
    return subprocess.run(
        [sys.executable, "-m", *launcher, *train],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


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
