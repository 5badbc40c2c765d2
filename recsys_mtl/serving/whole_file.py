"""A parquet file that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa

from recsys_mtl.encoding.entry import sync_path
from recsys_mtl.serving.store import locked
from recsys_mtl.serving.writing import PartWriter


def write_frames(
    frames: Iterator[pl.DataFrame], target: Path, wrote: Callable[[int], object]
) -> int:
    """Write frames of one schema aside and rename the file; on failure nothing is left.

    Parameters
    ----------
    frames
        At least one; the first is made before a file is.
    target
        File to write.
    wrote
        Is told how many rows were written.

    Returns
    -------
    int
        Rows written.
    """
    if target.is_dir():
        raise IsADirectoryError(f"{target} must be a file to write. Found a folder.")
    first = next(frames)
    with locked(target):
        aside = target.with_name(f".{target.name}.tmp")
        try:
            with PartWriter(aside, arrow(first).schema) as writer:
                for frame in chain([first], frames):
                    writer.add(arrow(frame))
                    wrote(frame.height)
            sync_path(aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    return writer.rows


def arrow(frame: pl.DataFrame) -> pa.Table:
    """Return an Arrow table of types that every reader knows."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
