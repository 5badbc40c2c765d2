"""Rows as peers document to prepare them: pandas, scikit-learn's LabelEncoder and MinMaxScaler."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import LabelEncoder, MinMaxScaler

from benchmarks.contenders.worker import BINARY_LABELS, LABELS

Arrays = dict[str, npt.NDArray[Any]]


class Frames:
    """Encoders fitted on the training rows.

    Peers cannot mask: a missing rating is filled with the mean of those observed. A value that
    training lacks gets the row behind the last one, which no step has trained.
    """

    def __init__(self, path: str) -> None:
        rows = pd.read_parquet(path)
        self.ids = [name for name in rows.columns if name.startswith("id_")]
        self.numbers = [name for name in rows.columns if name.startswith("number_")]
        self.x: Arrays = {}
        self.encoders = {}
        for name in self.ids:
            self.encoders[name] = LabelEncoder()
            self.x[name] = self.encoders[name].fit_transform(rows[name])
        self.scaler = MinMaxScaler()
        scaled = self.scaler.fit_transform(rows[self.numbers])
        self.x |= dict(zip(self.numbers, scaled.T, strict=True))
        filled = rows[list(LABELS)].fillna({"rating": rows["rating"].mean()})
        self.y: npt.NDArray[np.float32] = filled.to_numpy(np.float32)

    def num_values(self, largest: int | None) -> dict[str, int]:
        """Return the rows of each column's table; the last column's may be declared larger."""
        sizes = {name: len(self.encoders[name].classes_) + 1 for name in self.ids}
        if largest is not None:
            sizes[self.ids[-1]] = largest
        return sizes

    def encode(self, rows: pd.DataFrame) -> Arrays:
        """Encode other rows."""
        x: Arrays = {}
        for name in self.ids:
            classes = self.encoders[name].classes_
            values = rows[name].to_numpy(classes.dtype)
            places = np.searchsorted(classes, values).clip(max=len(classes) - 1)
            x[name] = np.where(classes[places] == values, places, len(classes))
        scaled = self.scaler.transform(rows[self.numbers])
        return x | dict(zip(self.numbers, scaled.T, strict=True))


def aucs(rows: pd.DataFrame, scores_RT: npt.NDArray[Any]) -> dict[str, float]:
    """Return the AUC of the binary labels, whose scores are the first columns."""
    return {
        label: float(roc_auc_score(rows[label], scores_RT[:, place]))
        for place, label in enumerate(BINARY_LABELS)
    }
