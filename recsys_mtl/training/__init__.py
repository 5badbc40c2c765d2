"""Logits to weights: losses, optimizers and the one training loop."""

from recsys_mtl.training.config import TrainConfig, monitor_parts
from recsys_mtl.training.evaluate import evaluate_rows, headline_score
from recsys_mtl.training.losses import task_losses
from recsys_mtl.training.optim import SGD, Adam, AdamW, Optimizer
from recsys_mtl.training.tables import RowWiseAdagrad
from recsys_mtl.training.trainer import Trained, Trainer, seeded

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Optimizer",
    "RowWiseAdagrad",
    "TrainConfig",
    "Trained",
    "Trainer",
    "evaluate_rows",
    "headline_score",
    "monitor_parts",
    "seeded",
    "task_losses",
]
