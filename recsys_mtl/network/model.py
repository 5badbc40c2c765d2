"""MultiTaskModel: embed, encode histories, interact, share, heads.

Shape letters: B rows, V views, I input width, Z logits of all tasks side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import Batch, InputLayout
from recsys_mtl.network.embedding import Embedded, Embeddings
from recsys_mtl.network.extractor import Extractor
from recsys_mtl.network.features import FeatureLayer
from recsys_mtl.network.heads import Headed, Heads
from recsys_mtl.network.inputs import Inputs, RowTensors
from recsys_mtl.network.interaction import Interaction, NoInteraction
from recsys_mtl.network.outputs import Outputs
from recsys_mtl.network.sequence import SequenceEncoder
from recsys_mtl.network.sharded import WHOLE, Shard
from recsys_mtl.network.sharing import Shared, Sharing
from recsys_mtl.schema import Task

SCORE_ROWS = 2048
"""Rows scored at once: activations of larger batches leave the cache of a CPU core."""


@dataclass(frozen=True)
class Predicted:
    """What the heads give, and the sharing structure's gates, experts and penalty."""

    headed: Headed
    shared: Shared

    @property
    def logits_BZ(self) -> Tensor:
        """Logits of all tasks side by side."""
        return self.headed.logits_BZ


class MultiTaskModel(nn.Module):
    """A network for several tasks.

    Parameters
    ----------
    layout
        Tables and columns, from the encoder.
    tasks
        What is predicted.
    sharing, heads
        How tasks share; how representations become logits.
    embedding_dim
        Width of the embedding tables that name none.
    embedding_dropout
        As in `FeatureLayer`.
    sequences
        Encoders of histories; the mean for a history that none is for.
    interaction
        How features meet before sharing.
    extractors
        Networks that replace given vectors, such as a CNN over the pixels of an image.
    shard
        Which rows of the embedding tables this process holds: all, or its share of a training run's.

    Raises
    ------
    SchemaError
        If a part does not fit the features or tasks.
    """

    def __init__(
        self,
        layout: InputLayout,
        tasks: Sequence[Task],
        *,
        sharing: Sharing,
        heads: Heads,
        embedding_dim: int,
        embedding_dropout: float = 0.0,
        sequences: Sequence[SequenceEncoder] = (),
        interaction: Interaction | None = None,
        extractors: Sequence[Extractor] = (),
        shard: Shard = WHOLE,
    ) -> None:
        super().__init__()
        names = [task.name for task in tasks]
        self.features = FeatureLayer(
            layout,
            embedding_dim=embedding_dim,
            embedding_dropout=embedding_dropout,
            num_views=sharing.num_views(len(names)),
            sequences=sequences,
            interaction=NoInteraction() if interaction is None else interaction,
            extractors=extractors,
            shard=shard,
        )
        self.sharing = sharing.build(self.features.output_dim, names, self.features.columns)
        self.heads = heads.build(self.sharing.output_dim, tasks)
        self.outputs = Outputs(tasks)

    @property
    def embeddings(self) -> Embeddings:
        """The embedding tables."""
        return self.features.embeddings

    def learn_outputs(self, batch: Batch) -> None:
        """Start from the base rates of training rows and take their label scales."""
        self.heads.set_bias(self.outputs.learn(batch))

    def forward(self, inputs: Inputs) -> Predicted:
        """Return logits, gates and what else the losses read."""
        return self.from_embedded(self.embeddings(inputs), inputs)

    def from_embedded(self, embedded: Embedded, inputs: Inputs) -> Predicted:
        """Do the same from looked-up vectors, where the graph of training begins."""
        shared = self.sharing(self.features(embedded, inputs))
        return Predicted(self.heads(shared.tasks), shared)


def predict_logits(model: MultiTaskModel, rows: RowTensors) -> Tensor:
    """Return the logits (n, Z) of encoded rows in evaluation mode, on the model's device."""
    return predict_heads(model, rows).logits_BZ


@torch.inference_mode()
def predict_heads(model: MultiTaskModel, rows: RowTensors) -> Headed:
    """Return what the heads give for encoded rows in evaluation mode, on the model's device."""
    training = model.training
    model.eval()
    chunks = []
    try:
        for number in range(model.embeddings.most(max(1, math.ceil(rows.num_rows / SCORE_ROWS)))):
            start = min(number * SCORE_ROWS, rows.num_rows)
            stop = min(start + SCORE_ROWS, rows.num_rows)
            inputs = rows.take(torch.arange(start, stop, device=rows.device))
            chunks.append(model(inputs).headed)
    finally:
        model.train(training)
    extra = [chunk.extra_BX for chunk in chunks if chunk.extra_BX is not None]
    return Headed(
        torch.cat([chunk.logits_BZ for chunk in chunks]), torch.cat(extra) if extra else None
    )


@torch.inference_mode()
def score_rows(model: MultiTaskModel, rows: RowTensors) -> list[Tensor]:
    """Score encoded rows in evaluation mode.

    Returns
    -------
    list of Tensor
        On the CPU, per task: (n,) probabilities or values, (n, classes) for a multiclass task; then
        the joint probabilities that tasks name, (n,) each.
    """
    return [scores.cpu() for scores in model.outputs(predict_logits(model, rows))]
