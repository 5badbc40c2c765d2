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

from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from recsys_mtl.reading import scan
from recsys_mtl.serving.scorer import CHUNK_ROWS, Scorer, check_rows_alone
from recsys_mtl.serving.whole_file import arrow
from recsys_mtl.tables import lazy_frame

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
        Side tables, if they are kept apart; every worker gets them whole.

    Returns
    -------
    ray.data.Dataset
        The ids and a column per task.

    Raises
    ------
    SchemaError
        If the schema has features of earlier rows.
    ValueError
        If the actors would reserve all CPUs of the cluster.
    """
    check_rows_alone(scorer, "a cluster, which scores batches of rows apart,")
    import ray

    total = ray.cluster_resources().get("CPU", 0.0) if ray.is_initialized() else None
    if total is not None and workers * cpus >= total:
        raise ValueError(
            f"workers * cpus must be below the cluster's {total:g} CPUs, or Ray has none left to read"
            f" with and waits for ever. Found {workers} * {cpus:g}: lower cpus or workers."
        )
    sides = [None if table is None else side_frame(table) for table in (users, items)]
    sent = ray.put((scorer, *sides))
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

        scorer, self._users, self._items = ray.get(sent)
        model = scorer.model.to("cuda" if on_gpu else "cpu")
        self._scorer = Scorer(scorer.schema, scorer.encoder, model)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return score_arrow(self._scorer, batch, self._users, self._items)


def score_arrow(scorer: Scorer, batch: pa.Table, users: Any, items: Any) -> pa.Table:
    """Score an Arrow table; probabilities of classes are lists, which every engine knows."""
    rows = scan(batch, users=users, items=items)
    found = pl.concat(list(scorer.frames(rows)))
    lists = [
        pl.col(pl.Array(pl.Float32, shape=type_.size)).arr.to_list()
        for type_ in set(found.dtypes)
        if isinstance(type_, pl.Array)
    ]
    return arrow(found.with_columns(lists))


def side_frame(table: Any) -> pl.DataFrame:
    """Read a side table into memory."""
    frame: pl.DataFrame = lazy_frame(table, what="side table").collect()
    return frame
