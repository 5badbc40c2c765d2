"""Metrics of every kind of task, weighted, on observed rows only; undefined is NaN, never a guess."""

from recsys_mtl.metrics.binary import accuracy, auc, log_loss
from recsys_mtl.metrics.calibration import ece, miscalibration, pcoc
from recsys_mtl.metrics.comparison import Comparison, Difference, compare_scores
from recsys_mtl.metrics.evaluation import TaskLabels, evaluate_tasks
from recsys_mtl.metrics.intervals import Interval, auc_interval, bootstrap_interval
from recsys_mtl.metrics.measure import measure_task, metrics_of
from recsys_mtl.metrics.multiclass import multiclass_accuracy, multiclass_log_loss
from recsys_mtl.metrics.ranking import (
    GroupedAUC,
    RankedLists,
    gauc,
    mrr,
    ndcg,
    ranked_lists,
    recall,
)
from recsys_mtl.metrics.regression import mae, r2, rmse
from recsys_mtl.metrics.report import HIGHER_IS_BETTER, Measurement, Report
from recsys_mtl.metrics.resampling import Resampling
from recsys_mtl.metrics.statistics import TaskKind
from recsys_mtl.metrics.warn import MetricWarning

__all__ = [
    "HIGHER_IS_BETTER",
    "Comparison",
    "Difference",
    "GroupedAUC",
    "Interval",
    "Measurement",
    "MetricWarning",
    "RankedLists",
    "Report",
    "Resampling",
    "TaskKind",
    "TaskLabels",
    "accuracy",
    "auc",
    "auc_interval",
    "bootstrap_interval",
    "compare_scores",
    "ece",
    "evaluate_tasks",
    "gauc",
    "log_loss",
    "mae",
    "measure_task",
    "metrics_of",
    "miscalibration",
    "mrr",
    "multiclass_accuracy",
    "multiclass_log_loss",
    "ndcg",
    "pcoc",
    "r2",
    "ranked_lists",
    "recall",
    "rmse",
]
