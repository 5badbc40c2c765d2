"""Numbers to logits: embeddings, sharing structures, heads and the model made of them."""

from recsys_mtl.network.embedding import Embedded, Embeddings, EmbeddingTable, Touched
from recsys_mtl.network.heads import Heads, Towers, logit_slices
from recsys_mtl.network.inputs import Inputs, RowTensors, Targets
from recsys_mtl.network.model import MultiTaskModel, Predicted, predict_logits, score_rows
from recsys_mtl.network.outputs import Outputs
from recsys_mtl.network.sharing import PLE, MMoE, Shared, SharedBottom, Sharing

__all__ = [
    "PLE",
    "Embedded",
    "EmbeddingTable",
    "Embeddings",
    "Heads",
    "Inputs",
    "MMoE",
    "MultiTaskModel",
    "Outputs",
    "Predicted",
    "RowTensors",
    "Shared",
    "SharedBottom",
    "Sharing",
    "Targets",
    "Touched",
    "Towers",
    "logit_slices",
    "predict_logits",
    "score_rows",
]
