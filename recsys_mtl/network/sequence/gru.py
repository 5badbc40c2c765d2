"""GRU: a history read event by event, oldest first.

Shape letters: B rows, L sequence length, D embedding dim, H width of the state.
"""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import cast

from torch import Tensor, nn

from recsys_mtl.network.layers import linear
from recsys_mtl.network.sequence.base import SequenceEncoder, SequenceModule, last_event
from recsys_mtl.network.sharing.base import Count
from recsys_mtl.spec import spec


@spec
class GRU(SequenceEncoder, kind="gru"):
    """The state of a gated recurrent unit after the most recent event.

    Parameters
    ----------
    hidden_dim
        Width H of the state, from 1; by default that of the events. Another width is brought back to
        theirs by a linear layer.

    References
    ----------
    K. Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
    Translation", EMNLP 2014, section 2.3; B. Hidasi et al., "Session-based Recommendations with
    Recurrent Neural Networks", ICLR 2016.
    DIFF: the reset gate acts on the product with the state, not on the state, as in cuDNN.
    """

    _: KW_ONLY
    hidden_dim: Count | None = None

    def build(self, embedding_dim: int) -> SequenceModule:
        """Make the module for events of width `embedding_dim`."""
        return _GRU(embedding_dim, self.hidden_dim or embedding_dim)


class _GRU(SequenceModule):
    def __init__(self, embedding_dim: int, hidden_dim: int) -> None:
        super().__init__(embedding_dim)
        self.gru = nn.GRU(embedding_dim, hidden_dim, batch_first=True)
        same = hidden_dim == embedding_dim
        self.project = nn.Identity() if same else linear(hidden_dim, embedding_dim)

    def encode(self, history_BLD: Tensor, mask_BL: Tensor, target_BD: Tensor | None) -> Tensor:
        # Steps behind the last event cost time and are not read; packing would need lengths on the host.
        states_BLH, _ = self.gru(history_BLD)
        return cast("Tensor", self.project(last_event(states_BLH, mask_BL)))
