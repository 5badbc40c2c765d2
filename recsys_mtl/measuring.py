"""What a scorer is worth on rows with labels."""

from __future__ import annotations

from typing import Any

from recsys_mtl.metrics import Report, Resampling
from recsys_mtl.reading import scan
from recsys_mtl.serving import Scorer
from recsys_mtl.training import evaluate_rows, headline_score


def evaluate_scorer(
    scorer: Scorer, rows: Any, *, by: str | None, intervals: bool | int, top: int | None
) -> Report:
    """Measure every task; the arguments are those of `MultiTaskRanker.evaluate`."""
    resampling = resampling_of(intervals)
    if top is not None and top < 1:
        raise ValueError(f"top must be 1 or more. Found {top}.")
    opened = scan(rows)
    slices = None if by is None else opened.frame([by])[by]
    batch, tensors = scorer.labelled(opened)
    return evaluate_rows(
        scorer.model, scorer.schema, batch, tensors, by=slices, top=top, resampling=resampling
    )


def headline_of(scorer: Scorer, rows: Any) -> float:
    """Return the one number of `MultiTaskRanker.score`."""
    batch, tensors = scorer.labelled(rows)
    return headline_score(scorer.model, scorer.schema, batch, tensors)


def resampling_of(
    intervals: bool | int, *, seed: int = 0, level: float = 0.95
) -> Resampling | None:
    """Return the bootstrap that ``intervals=True``, or a number of replicates, asks for."""
    if intervals is False:
        return None
    usual = Resampling(seed=seed, level=level)
    return usual if intervals is True else Resampling(intervals, seed, level)
