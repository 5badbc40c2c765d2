"""Logits to weights: losses, optimizers and the one training loop."""

from recsys_mtl.training.balancing import (
    DWA,
    FAMO,
    IMTLG,
    MGDA,
    AlignedMTL,
    Balance,
    CAGrad,
    DualProj,
    FairGrad,
    Fixed,
    GradNorm,
    PCGrad,
    RandomWeights,
    Uncertainty,
    UPGrad,
    check_signs,
)
from recsys_mtl.training.checkpoint import CheckpointFile, Checkpoints, checksum, rows_identity
from recsys_mtl.training.checkpoint_parts import CheckpointPart
from recsys_mtl.training.config import TrainConfig, monitor_parts
from recsys_mtl.training.distributed import (
    Processes,
    check_alike,
    end_processes,
    finish_processes,
    refuse_processes,
    start_processes,
)
from recsys_mtl.training.evaluate import (
    evaluate_rows,
    headline_score,
    task_labels,
    user_groups,
)
from recsys_mtl.training.lazy_adam import LazyAdam
from recsys_mtl.training.loader import sizes_of
from recsys_mtl.training.losses import check_losses, task_losses
from recsys_mtl.training.optim import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    TowerOptimizer,
    build_optimizers,
    check_towers,
)
from recsys_mtl.training.schedule import Schedule
from recsys_mtl.training.step import Stepper, check_accumulation
from recsys_mtl.training.tables import RowWiseAdagrad, TableOptimizer, TableStepper
from recsys_mtl.training.trainer import Trained, Trainer, seeded

__all__ = [
    "DWA",
    "FAMO",
    "IMTLG",
    "MGDA",
    "SGD",
    "Adam",
    "AdamW",
    "AlignedMTL",
    "Balance",
    "CAGrad",
    "CheckpointFile",
    "CheckpointPart",
    "Checkpoints",
    "DualProj",
    "FairGrad",
    "Fixed",
    "GradNorm",
    "LazyAdam",
    "Optimizer",
    "PCGrad",
    "Processes",
    "RandomWeights",
    "RowWiseAdagrad",
    "Schedule",
    "Stepper",
    "TableOptimizer",
    "TableStepper",
    "TowerOptimizer",
    "TrainConfig",
    "Trained",
    "Trainer",
    "UPGrad",
    "Uncertainty",
    "build_optimizers",
    "check_accumulation",
    "check_alike",
    "check_losses",
    "check_signs",
    "check_towers",
    "checksum",
    "end_processes",
    "evaluate_rows",
    "finish_processes",
    "headline_score",
    "monitor_parts",
    "refuse_processes",
    "rows_identity",
    "seeded",
    "sizes_of",
    "start_processes",
    "task_labels",
    "task_losses",
    "user_groups",
]
