"""Parts of a checkpoint, one of each process: whenever they die, all go on from the same moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_mtl.errors import ModelDirError
from recsys_mtl.training import CheckpointFile, CheckpointPart, Checkpoints
from recsys_mtl.training.checkpoint import Snapshot

WORLD, SAVES = 3, 3
CPU = torch.device("cpu")
FOREVER = 1e6


class DiedError(Exception):
    """Stands for the end of all processes."""


class Meeting:
    """The largest number of all threads, which stand for processes."""

    def __init__(self, world: int) -> None:
        self._barrier, self._counts = threading.Barrier(world), [0] * world

    def most(self, rank: int, count: int) -> int:
        self._counts[rank] = count
        self._barrier.wait(60)
        found = max(self._counts)
        self._barrier.wait(60)
        return found

    def end(self) -> None:
        self._barrier.abort()


@dataclass(frozen=True)
class Seat:
    """What a part needs of `Processes` and of `Shard`."""

    meeting: Meeting
    rank: int
    world: int
    device: torch.device = CPU

    @property
    def shard(self) -> Seat:
        return self

    def most(self, count: int, device: torch.device) -> int:
        assert device == self.device
        return self.meeting.most(self.rank, count)


def _together(
    folder: Path, work: Callable[[CheckpointPart], Any], *, world: int = WORLD, **settings: Any
) -> list[Any]:
    """Let each process do the work; an error of one is the end of all."""
    meeting = Meeting(world)
    kept = Checkpoints(str(folder), every_minutes=FOREVER, **settings)

    def run(rank: int) -> Any:
        seat: Any = Seat(meeting, rank, world)
        try:
            return work(CheckpointPart(kept, "fit", {"share": rank}, processes=seat))
        except BaseException:
            meeting.end()
            raise

    with ThreadPoolExecutor(world) as threads:
        running = [threads.submit(run, rank) for rank in range(world)]
    errors = [one.exception() for one in running]
    first = [one for one in errors if one and not isinstance(one, threading.BrokenBarrierError)]
    if first:
        raise first[0]
    return [one.result() for one in running]


def _saved(number: int) -> Callable[[CheckpointPart], Snapshot | None]:
    """Return work that goes on, and saves until there are so many states."""

    def work(part: CheckpointPart) -> Snapshot | None:
        found = part.load(CPU)
        done = 0 if found is None else found.values["done"]
        for state in range(done + 1, number + 1):
            part.save(
                Snapshot({"done": state}, {"own": torch.tensor([part.processes.rank, state])})
            )
        return found

    return work


def _dying(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let everything end after so many changes of the folder."""
    lock, left = threading.Lock(), iter(range(after))

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*given: Any) -> Any:
            with lock:
                if next(left, None) is None:
                    raise DiedError
                return change(*given)

        return changed

    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))


@pytest.mark.parametrize("after", range(WORLD * (2 * SAVES - 1)))
def test_whenever_all_die_all_go_on_from_the_same_moment(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process renames once in a save, and in every save but the first deletes once."""
    with monkeypatch.context() as patch:
        _dying(patch, after)
        with pytest.raises(DiedError):
            _together(tmp_path, _saved(SAVES))
    found: list[Snapshot | None] = _together(tmp_path, _saved(0))
    most = (0, 1, 2, 2, 3)[after // WORLD]  # saves that may have ended
    done = [0 if one is None else one.values["done"] for one in found]
    assert len(set(done)) == 1
    assert most - 1 <= done[0] <= most
    for rank, one in enumerate(found):
        if one is not None:
            assert one.tensors["own"].tolist() == [rank, done[0]]
    again = _together(tmp_path, _saved(SAVES))
    assert [one is None for one in again] == [one is None for one in found]
    assert len(list(tmp_path.iterdir())) == WORLD
    ended = _together(tmp_path, _saved(0))
    assert [one.values["done"] for one in ended] == [SAVES] * WORLD


def test_a_checkpoint_is_due_for_all_where_it_is_for_one(tmp_path: Path) -> None:
    kept = {"every_steps": 3}

    def work(part: CheckpointPart) -> list[bool]:
        if part.processes.rank == 1:
            CheckpointFile.is_due(part)  # one step ahead, as a clock may be
        return [part.is_due() for _ in range(2)]

    assert _together(tmp_path, work, **kept) == [[False, True]] * WORLD


@pytest.mark.parametrize(("before", "now"), [(2, 3), (3, 2), (2, 1), (1, 2)])
def test_another_number_of_processes_is_refused(before: int, now: int, tmp_path: Path) -> None:
    def everyone(work: Callable[[Any], Any], world: int) -> None:
        if world == 1:
            work(CheckpointFile(Checkpoints(str(tmp_path)), "fit", {}))
        else:
            _together(tmp_path, work, world=world)

    everyone(lambda file: file.save(Snapshot({"done": 1}, {})), before)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(ModelDirError, match=f"of {now} processes. Found that of {before}"):
        everyone(lambda file: file.load(CPU), now)
    assert sorted(tmp_path.iterdir()) == files


def test_a_part_that_is_lost_or_of_other_rows_is_said(tmp_path: Path) -> None:
    _together(tmp_path, _saved(2))
    parts: Sequence[Path] = sorted(tmp_path.iterdir())
    parts[1].rename(parts[1].with_name("fit.7.1-of-3.checkpoint"))
    with pytest.raises(ModelDirError, match=r"fit\.2\.1-of-3\.checkpoint must be there"):
        _together(tmp_path, _saved(0))
    parts[0].rename(parts[1])
    parts[2].rename(parts[0])
    parts[1].with_name(parts[2].name).write_bytes(parts[1].read_bytes())
    with pytest.raises(ModelDirError, match=r"share was \d, and is \d"):
        _together(tmp_path, _saved(0))


def test_all_parts_are_cleared(tmp_path: Path) -> None:
    _together(tmp_path, _saved(1))
    Checkpoints(str(tmp_path)).clear()
    assert not tmp_path.exists()
