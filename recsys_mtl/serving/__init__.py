"""Scores out."""

from recsys_mtl.serving.batch import score_to_parquet
from recsys_mtl.serving.scorer import Scorer

__all__ = ["Scorer", "score_to_parquet"]
