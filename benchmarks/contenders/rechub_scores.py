"""torch-rechub as a scorer, as it is documented: encode a frame, predict, make a frame."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the scripts are run by path

from benchmarks.contenders.rechub import Rechub
from benchmarks.contenders.worker import BATCH, LABELS, serve


class RechubScores(Rechub):
    """Encoders and a model of its own, made beforehand and untrained: that changes no time."""

    def score(self, output: str) -> dict[str, float]:
        """Score all rows; the frame is made and nothing is written."""
        del output
        rows, frames = pd.read_parquet(self.work.test), self.frames
        x = {name: frames.encoders[name].transform(rows[name]) for name in frames.ids}
        scaled = frames.scaler.transform(rows[frames.numbers])
        x |= dict(zip(frames.numbers, scaled.T, strict=True))
        loader = DataLoader(self.data.PredictDataset(x), batch_size=BATCH, shuffle=False)
        scores = np.array(self.trainer.predict(self.trainer.model, loader), np.float32)
        made = pd.concat(
            [rows[self.work.options["keep"]], pd.DataFrame(scores, columns=list(LABELS))], axis=1
        )
        return {"rows": len(made)}


if __name__ == "__main__":
    serve(RechubScores)
