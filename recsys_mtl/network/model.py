"""MultiTaskModel: embed, share, heads.

Shape letters: B rows, V views, I input width, Z logits of all tasks side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recsys_mtl.encoding import Batch, InputLayout
from recsys_mtl.network.embedding import Embedded, Embeddings
from recsys_mtl.network.heads import Heads
from recsys_mtl.network.inputs import Inputs, RowTensors
from recsys_mtl.network.outputs import Outputs
from recsys_mtl.network.sharing import Sharing
from recsys_mtl.schema import Task

SCORE_ROWS = 2048
"""Rows scored at once: activations of larger batches leave the cache of a CPU core."""


@dataclass(frozen=True)
class Predicted:
    """Logits (B, Z) of all tasks side by side, and the gates of the sharing structure."""

    logits_BZ: Tensor
    gates: tuple[tuple[Tensor, ...], ...]


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
    """

    def __init__(
        self,
        layout: InputLayout,
        tasks: Sequence[Task],
        *,
        sharing: Sharing,
        heads: Heads,
        embedding_dim: int,
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(layout, embedding_dim=embedding_dim)
        self.sharing = sharing.build(self.embeddings.output_dim + layout.dense_dim, len(tasks))
        self.heads = heads.build(self.sharing.output_dim, tasks)
        self.outputs = Outputs(tasks)

    def learn_outputs(self, batch: Batch) -> None:
        """Start from the base rates of training rows and take their label scales."""
        self.heads.set_bias(self.outputs.learn(batch))

    def forward(self, inputs: Inputs) -> Predicted:
        """Return logits and gates."""
        return self.from_embedded(self.embeddings(inputs), inputs)

    def from_embedded(self, embedded: Embedded, inputs: Inputs) -> Predicted:
        """Return logits and gates from pooled vectors, where the graph of training begins."""
        vectors = [pooled_BCD.flatten(1) for pooled_BCD in embedded.pooled]
        x_BVI = torch.cat([*vectors, inputs.dense_BN], dim=1)[:, None]
        shared = self.sharing(x_BVI)
        return Predicted(self.heads(shared.tasks), shared.gates)


@torch.inference_mode()
def predict_logits(model: MultiTaskModel, rows: RowTensors) -> Tensor:
    """Return the logits (n, Z) of encoded rows in evaluation mode, on the model's device."""
    training = model.training
    model.eval()
    chunks = []
    try:
        for start in range(0, max(rows.num_rows, 1), SCORE_ROWS):
            stop = min(start + SCORE_ROWS, rows.num_rows)
            inputs = rows.take(torch.arange(start, stop, device=rows.device))
            chunks.append(model(inputs).logits_BZ)
    finally:
        model.train(training)
    return torch.cat(chunks)


@torch.inference_mode()
def score_rows(model: MultiTaskModel, rows: RowTensors) -> list[Tensor]:
    """Score encoded rows in evaluation mode.

    Returns
    -------
    list of Tensor
        Per task, on the CPU: (n,) probabilities or values, (n, classes) for a multiclass task.
    """
    return [scores.cpu() for scores in model.outputs(predict_logits(model, rows))]
