"""A parquet file that is there whole or not at all."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import polars as pl
import pyarrow as pa
from pyarrow import parquet


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
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        with parquet.ParquetWriter(part, arrow(first).schema, compression="zstd") as writer:
            for frame in chain([first], frames):
                writer.write_table(arrow(frame))
                written += frame.height
                wrote(frame.height)
        part.replace(target)
    return written


def arrow(frame: pl.DataFrame) -> pa.Table:
    """Return an Arrow table of types that every reader knows."""
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
