"""Arrays that are mapped from files, and their pages, given back when they have been copied."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

# With the page that is asked for, Linux maps its neighbours that lie in memory: a huge page at most.
_MAPPED_AROUND = 2 << 20


class FileMap(mmap.mmap):
    """A private map of a file that stays as it is: each page can be dropped and read again."""


def release(array: npt.NDArray[Any]) -> None:
    """Let the process hold no page of an array, or of a slice of its rows, that lies in a `FileMap`.

    The pages of the file stay in the kernel's cache as long as there is room. What was written to the
    array in this process is lost: it reads as the file again. Arrays elsewhere stay as they are.
    """
    held = _map_of(array)
    if held is None or array.size == 0:
        return
    start = array.ctypes.data - np.frombuffer(held, np.uint8).ctypes.data
    first = max(0, start - _MAPPED_AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
    end = min(start + array.nbytes + _MAPPED_AROUND, len(held))
    held.madvise(mmap.MADV_DONTNEED, first, end - first)


def _map_of(array: npt.NDArray[Any]) -> FileMap | None:
    """Find the map that an array is a view of, through all arrays between."""
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    return owner if isinstance(owner, FileMap) else None
