"""A run cut off anywhere and called again ends as if it had never stopped, bit for bit."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from polars import selectors as cs

from recsys_mtl.encoding import Batch
from recsys_mtl.errors import ModelDirError
from recsys_mtl.network import MultiTaskModel
from recsys_mtl.schema import Schema
from recsys_mtl.spec import Spec
from recsys_mtl.training import (
    SGD,
    Adam,
    AdamW,
    Balance,
    CheckpointFile,
    Checkpoints,
    Schedule,
    TowerOptimizer,
    TrainConfig,
    Trained,
    Trainer,
    checksum,
)
from recsys_mtl.training.checkpoint import Snapshot
from recsys_mtl.training.losses import TaskLosses

MakeBatch = Callable[..., Batch]
MakeModel = Callable[..., MultiTaskModel]
CPU = torch.device("cpu")
BALANCES = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Balance))


class DiedError(Exception):
    """Stands for the end of a process."""


class Session:
    """Runs of one setting on the same rows, each from a fresh model and the same seed."""

    def __init__(
        self, schema: Schema, make_batch: MakeBatch, make_model: MakeModel, **settings: Any
    ) -> None:
        self.schema, self.make_model = schema, make_model
        self.train, self.valid = make_batch(90), make_batch(40, seed=1)
        self.config = TrainConfig(
            **{"batch_size": 16, "max_epochs": 3, "observe_every": 2} | settings
        )

    def run(
        self,
        folder: Path | None = None,
        *,
        cut_after: int | None = None,
        valid: bool = True,
        identity: dict[str, Any] | None = None,
    ) -> tuple[MultiTaskModel, Trained]:
        """Train; with `cut_after`, die after so many steps."""
        torch.manual_seed(5)
        model = self.make_model(dropout=0.4)
        model.learn_outputs(self.train)
        trainer = Trainer(model, self.schema, self.config, seed=0, progress=False)
        take, left = trainer.stepper.take, itertools.count(1)

        def dying(*arguments: Any, **named: Any) -> TaskLosses:
            if cut_after is not None and next(left) > cut_after:
                raise DiedError
            return take(*arguments, **named)

        trainer.stepper.take = dying  # type: ignore[method-assign]
        file = None
        if folder is not None:
            settings = Checkpoints(str(folder), every_steps=2)
            file = CheckpointFile(settings, "fit", identity or {"schema": 1})
        return model, trainer.fit(self.train, self.valid if valid else None, checkpoint=file)


def _equal(one: tuple[MultiTaskModel, Trained], other: tuple[MultiTaskModel, Trained]) -> None:
    weights, others = one[0].state_dict(), other[0].state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    clocks = cs.ends_with("seconds")
    assert one[1].history.drop(clocks).equals(other[1].history.drop(clocks))
    assert (one[1].best_epoch, one[1].report) == (other[1].best_epoch, other[1].report)


@pytest.mark.parametrize("cut_after", [1, 2, 5, 6, 7, 11, 12, 17])
def test_a_run_cut_off_at_any_step_ends_as_if_it_had_not_been(
    cut_after: int, schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    """An epoch has 6 steps, a checkpoint is made every 2; dropout draws in every step."""
    session = Session(schema, make_batch, make_model)
    whole = session.run()
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=cut_after)
    _equal(session.run(tmp_path), whole)


def test_a_run_may_be_cut_off_many_times(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    session = Session(schema, make_batch, make_model)
    whole = session.run()
    for _ in range(6):
        with pytest.raises(DiedError):
            session.run(tmp_path, cut_after=3)
    _equal(session.run(tmp_path), whole)


@pytest.mark.parametrize("balance", BALANCES)
def test_every_balance_goes_on_where_it_was(
    balance: str, schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    chosen = Balance.from_dict({"kind": balance})
    session = Session(schema, make_batch, make_model, balance=chosen)
    whole = session.run()
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=9)
    _equal(session.run(tmp_path), whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": SGD(0.1, momentum=0.9)},
        {"optimizer": AdamW(0.01), "tower_optimizers": (TowerOptimizer("ctr", Adam(0.1)),)},
        {"reset_tables": True},
        {"average": 0.9},
        {"schedule": Schedule(warmup_steps=4, decay="cosine"), "clip_norm": 0.1},
        {"batch_size": (16, 40), "schedule": Schedule(decay="linear")},
        {"batch_size": (45, 9), "accumulate": 2},
        {"patience": 1, "optimizer": Adam(0.3), "max_epochs": 6},
        {"precision": "bfloat16"},
    ],
    ids=lambda settings: next(iter(settings)),
)
@pytest.mark.parametrize("valid", [True, False])
def test_every_setting_goes_on_where_it_was(
    settings: dict[str, Any],
    valid: bool,
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    session = Session(schema, make_batch, make_model, **settings)
    whole = session.run(valid=valid)
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=8, valid=valid)
    _equal(session.run(tmp_path, valid=valid), whole)


def test_a_run_that_has_ended_is_given_again_without_a_step(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    session = Session(schema, make_batch, make_model)
    whole = session.run(tmp_path)
    _equal(session.run(tmp_path, cut_after=0), whole)


def test_a_write_that_dies_leaves_the_last_checkpoint(
    schema: Schema,
    make_batch: MakeBatch,
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = Session(schema, make_batch, make_model)
    whole = session.run()
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=5)
    kept = (tmp_path / "fit.checkpoint").read_bytes()

    def full(path: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            session.run(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["fit.checkpoint"]
    assert (tmp_path / "fit.checkpoint").read_bytes() == kept
    _equal(session.run(tmp_path), whole)


def test_another_run_is_refused_and_says_what_differs(
    schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    session = Session(schema, make_batch, make_model)
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=5, identity={"schema": 1, "seed": 0, "rows": 7})
    with pytest.raises(
        ModelDirError, match=r"another run: seed was 0, and is 1; rows was 7, and is 8\."
    ):
        session.run(tmp_path, identity={"schema": 1, "seed": 1, "rows": 8})


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_file_is_refused(
    keep: int, schema: Schema, make_batch: MakeBatch, make_model: MakeModel, tmp_path: Path
) -> None:
    session = Session(schema, make_batch, make_model)
    with pytest.raises(DiedError):
        session.run(tmp_path, cut_after=5)
    file = tmp_path / "fit.checkpoint"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelDirError, match="must be a checkpoint"):
        session.run(tmp_path)


def test_clearing_leaves_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("fit.checkpoint", "refit.checkpoint", "notes.txt"):
        (folder / name).write_text("x")
    Checkpoints(str(folder)).clear()
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    Checkpoints(str(folder)).clear()
    assert not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)
    Checkpoints(str(folder)).clear()  # nothing there is nothing to do


def test_a_checksum_tells_any_change_of_the_rows(make_batch: MakeBatch) -> None:
    batch = make_batch(30)
    block = batch.parts[0].block
    assert batch.labels is not None
    assert batch.weights is not None
    labels = batch.labels.copy()
    labels[3, 0] += 1
    ids = block.ids.copy()
    ids[29, 0] += 1
    part = replace(batch.parts[0], block=replace(block, ids=ids))
    changed = [
        batch,
        make_batch(30, seed=1),
        replace(batch, labels=labels),
        replace(batch, weights=batch.weights * 2),
        replace(batch, parts=(part,)),
    ]
    assert checksum(batch) == checksum(make_batch(30))
    assert len({checksum(one) for one in changed}) == len(changed)


def test_what_a_crash_left_goes_with_the_next_checkpoint_and_when_all_are_cleared(
    tmp_path: Path,
) -> None:
    settings = Checkpoints(str(tmp_path / "run"))
    file = CheckpointFile(settings, "fit", {"schema": 1})
    left = tmp_path / "run" / "fit.checkpoint.writing" / ".tmp0"  # safetensors writes such files
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    file.save(Snapshot({"epoch": 1}, {"x": torch.ones(2)}))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fit.checkpoint"]
    left.parent.mkdir()
    left.write_bytes(b"half")
    settings.clear()
    assert not (tmp_path / "run").exists()
