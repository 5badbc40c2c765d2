"""Scores on a Ray cluster: a pool of actors, each with one copy of the model.

What a team runs, on a machine of the cluster or by ``ray job submit``::

    import ray
    from recsys_mtl import load, score_on_ray

    scorer = load("model", device="cpu").scorer
    pairs = ray.data.read_parquet("s3://bucket/pairs/")
    score_on_ray(scorer, pairs, workers=64).write_parquet("s3://bucket/scores/")

The model goes to the workers through the object store; they need the package, no file of the model.
A batch whose worker dies is given to another. Install with ``pip install "recsys_mtl[ray]"``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from recsys_mtl.serving.batches import BatchScorer, side_frame
from recsys_mtl.serving.fusion import Fusion
from recsys_mtl.serving.run import ScoreOptions
from recsys_mtl.serving.scorer import CHUNK_ROWS, Scorer

if TYPE_CHECKING:
    from ray.data import Dataset


def score_on_ray(
    scorer: Scorer,
    pairs: Dataset,
    *,
    workers: int = 2,
    cpus: float = 0.5,
    gpus: float = 0.0,
    batch_rows: int = CHUNK_ROWS,
    users: Any = None,
    items: Any = None,
    keep: Sequence[str] = (),
    fuse: Mapping[str, float] | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> Dataset:
    """Score a Ray dataset, lazily; rows keep their order within a block, and their ids.

    Parameters
    ----------
    scorer
        A fitted model's, on the CPU.
    pairs
        Interactions.
    workers
        Actors, each with one copy of the model, from 1.
    cpus, gpus
        What Ray is to reserve for each. Ray's own reading and writing need CPUs beside them: where
        actors reserve all, it waits for ever.
    batch_rows
        Rows scored at a time.
    users, items
        Side tables, if they are kept apart; every worker gets them whole and encodes them once.
    keep, fuse, precision
        As in `score_parquet`.

    Returns
    -------
    ray.data.Dataset
        The ids, columns carried along and a named column per score.

    Raises
    ------
    SchemaError
        If the schema has features of earlier rows, or a column would have a name twice.
    ValueError
        If the actors would reserve all CPUs of the cluster.
    """
    options = ScoreOptions(
        keep=keep, fuse=None if fuse is None else Fusion(dict(fuse)), precision=precision
    )
    BatchScorer(scorer, options)  # says here what is wrong
    import ray

    total = ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else None
    if total is not None and workers * cpus >= total:
        raise ValueError(
            f"workers * cpus must be below the cluster's {total:g} CPUs, or Ray has none left to read"
            f" with and waits for ever. Found {workers} * {cpus:g}: lower cpus or workers."
        )
    sent = ray.put((scorer, options, side_frame(users), side_frame(items)))
    return pairs.map_batches(
        _Actor,
        batch_size=batch_rows,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        num_gpus=gpus,
        fn_constructor_args=(sent, gpus > 0),
    )


class _Actor:
    """A worker: one copy of the model."""

    def __init__(self, sent: Any, on_gpu: bool) -> None:
        import ray

        scorer, options, users, items = ray.get(sent)
        model = scorer.model.to("cuda" if on_gpu else "cpu")
        moved = Scorer(scorer.schema, scorer.encoder, model)
        self._score = BatchScorer(moved, options, users=users, items=items)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return self._score(batch)
