"""An output is the old one, the new one or none, whenever its run is cut off."""

from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest

from recsys_mtl.serving import store as store_module
from recsys_mtl.serving.source import Part
from recsys_mtl.serving.store import Store

MOMENTS = 48
"""More than a run of three parts changes files."""
PARTS = [Part(number, 0, 2 * number, 2 * number + 2) for number in range(3)]


class Cut(BaseException):
    pass


def _run(target, value, parts=PARTS):
    """Write parts that hold a value, as a run does."""
    store = Store(target, {"value": value})
    if store.complete() is not None:
        store.settle()
        return
    store.check(overwrite=True)
    finished, _ = store.open(parts, 1)
    table = pa.table({"a": [value, value]})
    for part in parts:
        if part.number not in finished:
            with store.part(part, table.schema) as (writer, _):
                writer.add(table)
    store.finish(store.records(), {})


def _remove(folder, ignore_errors=False):
    """Remove a folder file by file, as the system does."""
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else ():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()
    if folder.is_dir():
        folder.rmdir()


def _values(target):
    if not target.exists():
        return None
    files = sorted(target.glob("*.parquet")) if target.is_dir() else [target]
    return [pa.parquet.read_table(file)["a"].to_pylist() for file in files]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("then", [2, 3])
def test_cut_off_at_any_step_it_is_whole_or_absent_and_a_later_call_ends_it(
    tmp_path, monkeypatch, name, moment, then
):
    target = tmp_path / name
    _run(target, 1)
    old = _values(target)
    steps = 0

    def counted(real):
        def step(*args: object, **kwargs: object):
            nonlocal steps
            steps += 1
            if steps == moment + 1:
                raise Cut
            return real(*args, **kwargs)

        return step

    # All that changes files.
    for owner, called in (
        (store_module.Path, "rename"),
        (store_module.Path, "replace"),
        (store_module.Path, "unlink"),
        (store_module.Path, "touch"),
        (store_module.Path, "mkdir"),
        (store_module.Path, "rmdir"),
    ):
        monkeypatch.setattr(owner, called, counted(getattr(owner, called)))
    monkeypatch.setattr(store_module.shutil, "rmtree", _remove)
    with suppress(Cut):
        _run(target, 2)
    monkeypatch.undo()
    assert steps < MOMENTS
    new = [[2, 2]] * 3 if name == "out" else [[2] * 6]
    assert _values(target) in (old, new, None)
    _run(target, then)
    assert _values(target) == [[then for _ in part] for part in new]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, f"{name}.manifest.json"]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("moment", range(8))
def test_a_run_that_fails_at_its_end_leaves_an_output_that_can_be_replaced(
    tmp_path, monkeypatch, name, keep, moment
):
    target = tmp_path / name
    _run(target, 1)
    old, new = _values(target), [[2, 2]] * 3 if name == "out" else [[2] * 6]
    store, steps = Store(target, {"value": 2}), []
    with monkeypatch.context() as patched:
        finish, rename, replace = Store.finish, Path.rename, Path.replace

        def counted(real):
            def step(self, other):
                steps.append(other)
                if len(steps) == moment + 1:
                    raise OSError
                return real(self, other)

            return step

        def last_steps(self, records, about):
            patched.setattr(Path, "rename", counted(rename))
            patched.setattr(Path, "replace", counted(replace))
            return finish(self, records, about)

        patched.setattr(Store, "finish", last_steps)
        with suppress(OSError):
            _run(target, 2)
    store.leave(keep=keep)
    assert _values(target) in (old, new)
    _run(target, 3, PARTS[:1])
    assert _values(target) == [[3, 3]]


@pytest.mark.parametrize("cut", [0, 1])
def test_a_second_run_that_fails_leaves_what_the_first_has_put_there_as_ours(tmp_path, cut):
    target, store = tmp_path / "out", Store(tmp_path / "out", {"value": 1})
    _run(target, 1)
    store.manifest.rename(tmp_path / "last")  # as if it had ended before that
    store.work.mkdir()
    (tmp_path / "last").rename(store.work / "complete.json")
    second = Store(target, {"value": 2})
    second.check(overwrite=True)
    second.open(PARTS[cut:], 1)  # and no further
    _run(target, 3)
    assert _values(target) == [[3, 3]] * 3


def test_an_output_that_was_being_replaced_comes_back_where_another_run_begins(tmp_path):
    target = tmp_path / "out"
    _run(target, 1)
    second = Store(target, {"value": 2})
    second.check(overwrite=True)
    second.open(PARTS, 1)
    target.rename(second.work / "replaced")  # and was killed
    Store(target, {"value": 3}).check(overwrite=True)
    assert _values(target) == [[1, 1]] * 3
    _run(target, 3)
    assert _values(target) == [[3, 3]] * 3


def test_records_come_in_the_order_of_parts_however_many_digits(tmp_path):
    store = Store(tmp_path / "out", {})
    numbers = [9_999, 10_000, 100_000, 1_000_000]
    parts = [Part(number, 0, 0, 2) for number in numbers]
    store.open(parts, 1)
    table = pa.table({"a": [1, 2]})
    for part in reversed(parts):
        with store.part(part, table.schema) as (writer, _):
            writer.add(table)
    records = store.records()
    assert [record["number"] for record in records] == numbers
    names = [record["name"] for record in records]
    assert names == sorted(names)  # as readers of the folder take them


def test_parts_of_other_rows_are_not_gone_on_with(tmp_path):
    store = Store(tmp_path / "out", {})
    table = pa.table({"a": [1, 2]})
    store.open(PARTS, 1)
    for part in PARTS:
        with store.part(part, table.schema) as (writer, _):
            writer.add(table)
    moved = [PARTS[0], Part(1, 1, 0, 2)]
    finished, _ = store.open(moved, 1)
    assert list(finished) == [0]
    assert [record["number"] for record in store.records()] == [0]
