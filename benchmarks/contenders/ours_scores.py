"""recsys_mtl as a scorer: a saved model, and parquet to parquet."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks.contenders.worker import Job, memory_mb, reset_peak, serve
from recsys_mtl import load, score_parquet


class OursScores:
    """Scores `Job.test` with the model folder `Job.train`; options are those of `score_parquet`."""

    def __init__(self, work: Job) -> None:
        self.work = work

    def prepare(self) -> None:
        """Load the model."""
        self.scorer = load(self.work.train, device="cpu").scorer

    def score(self, output: str) -> dict[str, float]:
        """Score all rows; return how many, and the most memory beside the model's in MiB."""
        reset_peak()
        before = memory_mb("VmRSS")
        found = score_parquet(
            self.scorer, self.work.test, output, overwrite=True, **self.work.options
        )
        Path(f"{output}.manifest.json").unlink()  # the next round is to score again
        return {"rows": found.rows_out, "more_mb": memory_mb("VmHWM") - before}


if __name__ == "__main__":
    serve(OursScores)
