"""What the columns mean: features, tasks and the schema that binds them."""

from recsys_mtl.schema.features import (
    PIECEWISE_REACH,
    Bag,
    Categorical,
    Feature,
    History,
    IdFeature,
    ListFeature,
    Numeric,
    Vector,
)
from recsys_mtl.schema.schema import Schema, Side
from recsys_mtl.schema.tasks import Binary, Multiclass, Regression, Task, find_circle

__all__ = [
    "PIECEWISE_REACH",
    "Bag",
    "Binary",
    "Categorical",
    "Feature",
    "History",
    "IdFeature",
    "ListFeature",
    "Multiclass",
    "Numeric",
    "Regression",
    "Schema",
    "Side",
    "Task",
    "Vector",
    "find_circle",
]
