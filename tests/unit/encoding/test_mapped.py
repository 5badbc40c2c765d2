"""Pages that are given back are no longer held, and read as the file does."""

import mmap
from pathlib import Path

import numpy as np
import pytest

from recsys_mtl.encoding.entry import _map
from recsys_mtl.encoding.mapped import release

ROWS = 1 << 20
SMAPS = Path("/proc/self/smaps")


def mapped(tmp_path: Path):
    path = tmp_path / "numbers.bin"
    np.arange(4 * ROWS, dtype="<i4").tofile(path)
    return path, _map(path, np.dtype("<i4"), (ROWS, 4))


def resident_kilobytes(path: Path) -> int:
    """Return what the process holds of the pages of a mapped file."""
    total, inside = 0, False
    for line in SMAPS.read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not SMAPS.exists(), reason="what is held is read from /proc")
def test_released_pages_are_no_longer_held(tmp_path: Path):
    path, array = mapped(tmp_path)
    array.sum()
    assert resident_kilobytes(path) == array.nbytes // 1024
    release(array[1000 : ROWS // 2])
    assert array.nbytes // 4096 <= resident_kilobytes(path) <= array.nbytes // 2048
    release(array)
    assert resident_kilobytes(path) == 0
    for start in range(0, ROWS, 777):
        array[start : start + 777].sum()
        release(array[start : start + 777])
    assert resident_kilobytes(path) == 0


@pytest.mark.parametrize("rows", [slice(0, ROWS), slice(5, 6), slice(7, 7), slice(ROWS - 1, ROWS)])
def test_released_rows_read_as_before(tmp_path: Path, rows: slice):
    _, array = mapped(tmp_path)
    expected = np.arange(4 * ROWS).reshape(ROWS, 4)
    np.testing.assert_array_equal(array, expected)
    release(array[rows])
    np.testing.assert_array_equal(array, expected)


def test_what_was_written_to_released_rows_is_lost_and_elsewhere_kept(tmp_path: Path):
    _, array = mapped(tmp_path)
    array[:] = -1
    release(array[: ROWS // 2])
    assert array[0].tolist() == [0, 1, 2, 3]
    assert array[-1].tolist() == [-1] * 4


def test_arrays_elsewhere_stay():
    anonymous = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for array in (np.ones(1 << 20, np.uint8), np.frombuffer(anonymous, np.uint8)):
        array[:] = 7
        release(array)
        assert array.min() == 7
