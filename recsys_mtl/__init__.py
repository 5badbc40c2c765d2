"""Multi-task ranking: interest, CTR and rating from one model, from the notebook to the service.

Names are imported on first use: ``import recsys_mtl`` itself loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_mtl.estimator import MultiTaskRanker, load
    from recsys_mtl.metrics import Report
    from recsys_mtl.network import PLE, MMoE, SharedBottom, Towers
    from recsys_mtl.reading import Rows, scan
    from recsys_mtl.schema import (
        Bag,
        Binary,
        Categorical,
        History,
        Multiclass,
        Numeric,
        Regression,
        Schema,
        Side,
        Vector,
    )
    from recsys_mtl.training import SGD, Adam, AdamW, RowWiseAdagrad

_ROOMS = {
    "estimator": ("MultiTaskRanker", "load"),
    "metrics": ("Report",),
    "network": ("PLE", "MMoE", "SharedBottom", "Towers"),
    "reading": ("Rows", "scan"),
    "schema": (
        "Bag",
        "Binary",
        "Categorical",
        "History",
        "Multiclass",
        "Numeric",
        "Regression",
        "Schema",
        "Side",
        "Vector",
    ),
    "training": ("SGD", "Adam", "AdamW", "RowWiseAdagrad"),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = [  # the names are strings
    "PLE",
    "SGD",
    "Adam",
    "AdamW",
    "Bag",
    "Binary",
    "Categorical",
    "History",
    "MMoE",
    "MultiTaskRanker",
    "Multiclass",
    "Numeric",
    "Regression",
    "Report",
    "RowWiseAdagrad",
    "Rows",
    "Schema",
    "SharedBottom",
    "Side",
    "Towers",
    "Vector",
    "load",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'recsys_mtl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"recsys_mtl.{_ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
