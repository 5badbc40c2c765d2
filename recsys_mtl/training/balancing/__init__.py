"""How the tasks' losses become one step. Every file of this folder is imported."""

import importlib
import pkgutil

from recsys_mtl.training.balancing.aggregation import Aggregation
from recsys_mtl.training.balancing.aligned_mtl import AlignedMTL
from recsys_mtl.training.balancing.base import (
    Balance,
    Balanced,
    Balancer,
    Boundary,
    check_signs,
)
from recsys_mtl.training.balancing.cagrad import CAGrad
from recsys_mtl.training.balancing.dual_proj import DualProj
from recsys_mtl.training.balancing.dwa import DWA
from recsys_mtl.training.balancing.fair_grad import FairGrad
from recsys_mtl.training.balancing.famo import FAMO
from recsys_mtl.training.balancing.fixed import Fixed
from recsys_mtl.training.balancing.gradients import conflict, task_gramian
from recsys_mtl.training.balancing.gradnorm import GradNorm
from recsys_mtl.training.balancing.imtl_g import IMTLG
from recsys_mtl.training.balancing.mgda import MGDA
from recsys_mtl.training.balancing.pcgrad import PCGrad
from recsys_mtl.training.balancing.random_weights import RandomWeights
from recsys_mtl.training.balancing.uncertainty import Uncertainty
from recsys_mtl.training.balancing.upgrad import UPGrad

for _found in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_found.name}")

__all__ = [
    "DWA",
    "FAMO",
    "IMTLG",
    "MGDA",
    "Aggregation",
    "AlignedMTL",
    "Balance",
    "Balanced",
    "Balancer",
    "Boundary",
    "CAGrad",
    "DualProj",
    "FairGrad",
    "Fixed",
    "GradNorm",
    "PCGrad",
    "RandomWeights",
    "UPGrad",
    "Uncertainty",
    "check_signs",
    "conflict",
    "task_gramian",
]
