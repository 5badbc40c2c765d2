"""The warning that goes with every undefined metric."""

import math
import warnings


class MetricWarning(UserWarning):
    """A metric is undefined on the rows it was given; its value is NaN."""


def undefined(reason: str, *, inside: int = 0) -> float:
    """Warn the caller of a metric, `inside` helpers up, and give the NaN to return."""
    warnings.warn(reason, MetricWarning, stacklevel=3 + inside)
    return math.nan


def nothing_counts(num_rows: int) -> str:
    """Say why there is nothing to average over."""
    return f"none of {num_rows} rows has a positive weight" if num_rows else "there are no rows"
