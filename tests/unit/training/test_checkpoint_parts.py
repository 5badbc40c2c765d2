"""Parts of a checkpoint, one of each process: whenever they die, all go on from the same moment."""

from __future__ import annotations

import errno
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
    found = _each(folder, work, world=world, **settings)
    errors = [one for one in found if isinstance(one, BaseException)]
    first = [one for one in errors if not isinstance(one, threading.BrokenBarrierError)]
    if first:
        raise first[0]
    return found


def _each(
    folder: Path, work: Callable[[CheckpointPart], Any], *, world: int = WORLD, **settings: Any
) -> list[Any]:
    """Let each process do the work; return what it gives, or its error."""
    meeting = Meeting(world)
    kept = Checkpoints(str(folder), every_minutes=FOREVER, **settings)

    def run(rank: int) -> Any:
        seat: Any = Seat(meeting, rank, world)
        try:
            return work(CheckpointPart(kept, "fit", {"share": rank}, processes=seat))
        except DiedError:
            meeting.end()
            raise

    with ThreadPoolExecutor(world) as threads:
        running = [threads.submit(run, rank) for rank in range(world)]
    return [one.exception() or one.result() for one in running]


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


@pytest.mark.parametrize("number", [None, 1, 2, 3, 5, 7, 9])
def test_a_lost_part_is_said_by_all_and_nothing_is_deleted(
    number: int | None, tmp_path: Path
) -> None:
    """One process sees another checkpoint than the last, which the others have, or none."""
    _together(tmp_path, _saved(5))
    part = tmp_path / "fit.5.1-of-3.checkpoint"
    if number is None:
        part.unlink()
    elif number != 5:
        part.rename(part.with_name(f"fit.{number}.1-of-3.checkpoint"))
    files = sorted(tmp_path.iterdir())
    found = _each(tmp_path, _saved(0))
    if number == 5:
        assert [one.values["done"] for one in found] == [5] * WORLD
        return
    assert [type(one) for one in found] == [ModelDirError] * WORLD
    said = [str(one) for one in found if "Another process" not in str(one)]
    assert said
    assert all("checkpoint must be there" in one for one in said)
    assert sorted(tmp_path.iterdir()) == files


def test_one_process_that_lost_the_checkpoint_before_says_so(tmp_path: Path) -> None:
    """Two have written the next; the third, whose last is the one before that, has lost one."""
    _together(tmp_path, _saved(2))
    for rank in (0, 2):
        part = tmp_path / f"fit.2.{rank}-of-3.checkpoint"
        part.rename(part.with_name(f"fit.3.{rank}-of-3.checkpoint"))
    found = _each(tmp_path, _saved(0))
    assert [type(one) for one in found] == [ModelDirError] * WORLD
    assert "fit.2.0-of-3.checkpoint must be there" in str(found[0])
    assert "Another process" in str(found[1])


@pytest.mark.parametrize("damaged", [False, True])
def test_a_part_of_other_rows_or_damaged_stops_all(damaged: bool, tmp_path: Path) -> None:
    _together(tmp_path, _saved(2))
    parts: Sequence[Path] = sorted(tmp_path.iterdir())
    parts[1].write_bytes(b"{}" if damaged else parts[0].read_bytes())
    found = _each(tmp_path, _saved(0))
    assert [type(one) for one in found] == [ModelDirError] * WORLD
    expected = "must be a checkpoint" if damaged else "share was 0, and is 1"
    assert expected in str(found[1])
    assert "another folder" in str(found[1])
    assert "Another process" in str(found[0])
    assert sorted(tmp_path.iterdir()) == sorted(parts)


def test_parts_of_different_moments_are_refused(tmp_path: Path) -> None:
    """As of machines, each with a folder of its own, that changed places between two runs."""
    _together(tmp_path, _saved(2))
    first = tmp_path / "fit.2.0-of-3.checkpoint"
    content = first.read_bytes()
    for part in tmp_path.iterdir():
        part.unlink()
    _together(tmp_path, _saved(2))
    first.write_bytes(content)
    found = _each(tmp_path, _saved(0))
    assert [type(one) for one in found] == [ModelDirError] * WORLD
    assert all("must be of one moment" in str(one) for one in found)


def test_a_part_that_cannot_be_written_stops_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _together(tmp_path, _saved(2))
    whole = CheckpointPart._write

    def full(part: CheckpointPart, path: Path, snapshot: Snapshot) -> None:
        if part.processes.rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(part, path, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointPart, "_write", full)
        found = _each(tmp_path, _saved(3))
    assert [type(one) for one in found] == [ModelDirError, OSError, ModelDirError]
    again = _together(tmp_path, _saved(0))
    assert [one.values["done"] for one in again] == [2] * WORLD


def test_all_parts_are_cleared(tmp_path: Path) -> None:
    _together(tmp_path, _saved(1))
    Checkpoints(str(tmp_path)).clear()
    assert not tmp_path.exists()
