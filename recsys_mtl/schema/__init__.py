"""What the columns mean: features, tasks and the schema that binds them."""

from recsys_mtl.schema.as_of import (
    AsOf,
    AsOfHistory,
    Bins,
    Computed,
    ComputedFeature,
    KeyPart,
    Previous,
    Recency,
    Time,
)
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
from recsys_mtl.schema.tasks import (
    Binary,
    LabelBins,
    Multiclass,
    Regression,
    Task,
    find_circle,
)

__all__ = [
    "PIECEWISE_REACH",
    "AsOf",
    "AsOfHistory",
    "Bag",
    "Binary",
    "Bins",
    "Categorical",
    "Computed",
    "ComputedFeature",
    "Feature",
    "History",
    "IdFeature",
    "KeyPart",
    "LabelBins",
    "ListFeature",
    "Multiclass",
    "Numeric",
    "Previous",
    "Recency",
    "Regression",
    "Schema",
    "Side",
    "Task",
    "Time",
    "Vector",
    "find_circle",
]
