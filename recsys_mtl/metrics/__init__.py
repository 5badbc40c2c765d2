"""Metrics of every kind of task, weighted, on observed rows only; undefined is NaN, never a guess."""

from recsys_mtl.metrics.binary import accuracy, auc, log_loss
from recsys_mtl.metrics.calibration import ece, pcoc
from recsys_mtl.metrics.measure import TaskKind, measure_task, metrics_of
from recsys_mtl.metrics.multiclass import multiclass_accuracy, multiclass_log_loss
from recsys_mtl.metrics.ranking import GroupedAUC, gauc, ndcg
from recsys_mtl.metrics.regression import mae, r2, rmse
from recsys_mtl.metrics.report import HIGHER_IS_BETTER, Measurement, Report
from recsys_mtl.metrics.warn import MetricWarning

__all__ = [
    "HIGHER_IS_BETTER",
    "GroupedAUC",
    "Measurement",
    "MetricWarning",
    "Report",
    "TaskKind",
    "accuracy",
    "auc",
    "ece",
    "gauc",
    "log_loss",
    "mae",
    "measure_task",
    "metrics_of",
    "multiclass_accuracy",
    "multiclass_log_loss",
    "ndcg",
    "pcoc",
    "r2",
    "rmse",
]
