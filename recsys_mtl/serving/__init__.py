"""Scores out."""

from recsys_mtl.serving.forward import Forward
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.on_ray import score_on_ray
from recsys_mtl.serving.on_spark import score_on_spark
from recsys_mtl.serving.scorer import Scorer
from recsys_mtl.serving.summary import FeatureSummary, ScoringSummary
from recsys_mtl.serving.topk import TopK, top_k, top_k_to_parquet

__all__ = [
    "FeatureSummary",
    "Forward",
    "Fusion",
    "Scorer",
    "ScoringSummary",
    "TopK",
    "score_on_ray",
    "score_on_spark",
    "top_k",
    "top_k_to_parquet",
]
