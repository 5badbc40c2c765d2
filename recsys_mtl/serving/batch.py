"""Scores of a table of any size as a parquet file, whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
from pyarrow import parquet
from tqdm import tqdm

from recsys_mtl.reading import scan
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
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    opened = scan(rows)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        part = Path(folder) / target.name
        writer: parquet.ParquetWriter | None = None
        try:
            with tqdm(unit="rows", disable=not progress, desc="score") as bar:
                for frame in scorer.frames(opened, chunk_rows=chunk_rows):
                    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                    if writer is None:
                        writer = parquet.ParquetWriter(part, table.schema, compression="zstd")
                    writer.write_table(table)
                    written += table.num_rows
                    bar.update(table.num_rows)
        finally:
            if writer is not None:
                writer.close()
        part.replace(target)
    return written
