"""Scores out."""

from recsys_mtl.serving.forward import Forward
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.scorer import Scorer
from recsys_mtl.serving.summary import FeatureSummary, ScoringSummary

__all__ = ["FeatureSummary", "Forward", "Fusion", "Scorer", "ScoringSummary"]
