"""Scores of a table of any size as a parquet file, whole or not at all."""

from __future__ import annotations

import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pyarrow import parquet
from tqdm import tqdm

from recsys_mtl.reading import Rows, scan
from recsys_mtl.serving.scorer import CHUNK_ROWS, Scorer


def score_to_parquet(
    scorer: Scorer,
    rows: Any,
    path: str | Path,
    *,
    chunk_rows: int = CHUNK_ROWS,
    progress: bool = False,
) -> int:
    """Score rows in order into a parquet file; memory is bounded by `chunk_rows`.

    Parameters
    ----------
    scorer
        A fitted model's.
    rows
        `Rows`, or any table or path that `scan` takes.
    path
        File to write. It appears when it is complete; on failure nothing is left.
    chunk_rows
        Rows scored at a time, one row group each.
    progress
        Whether to show a progress bar.

    Returns
    -------
    int
        Rows written: as many as there were.
    """
    target = Path(path)
    if target.is_dir():
        raise IsADirectoryError(f"{target} must be a file to write. Found a folder.")
    opened = scan(rows)
    _check_not_an_input(target, opened)
    frames = scorer.frames(opened, chunk_rows=chunk_rows)
    first = next(frames)  # what is wrong with the table as a whole shows before a file is made
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        with (
            parquet.ParquetWriter(part, _arrow(first).schema, compression="zstd") as writer,
            tqdm(unit="rows", disable=not progress, desc="score") as bar,
        ):
            for frame in chain([first], frames):
                writer.write_table(_arrow(frame))
                written += frame.height
                bar.update(frame.height)
        part.replace(target)
    return written


def _check_not_an_input(target: Path, rows: Rows) -> None:
    """Refuse to replace a file that is read."""
    sides = [side for side in (rows.users, rows.items) if side is not None]
    for name, paths in (("interactions", rows.paths), *((side.name, side.paths) for side in sides)):
        if any(target.resolve() == Path(path).resolve() for path in paths):
            raise FileExistsError(
                f"{target} is read as the {name} and must not be overwritten."
                " Choose another output."
            )


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
