"""Gating: how the gates of a sharing structure behave, the same choices for all structures.

Shape letters: B rows, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.network.layers import Gate
from recsys_mtl.network.sharing.base import Dropout
from recsys_mtl.spec import Spec, spec


@spec
class Gating(Spec):
    """How gates are kept from settling on few experts.

    Parameters
    ----------
    dropout
        Chance that a row goes without an expert in training, 0 <= dropout < 1. The experts left
        share 1 among them; a row that would lose all keeps all. Gates grow more even by it.
    temperature
        What the gates' logits are divided by, above 0.
    load_balance
        Factor, from 0, of a loss on uneven loads: for every gate, the squared coefficient of
        variation over experts of the batch's mean share.

    References
    ----------
    Z. Zhao et al., "Recommending What Video to Watch Next: A Multitask Ranking System", RecSys 2019,
    section 5 (dropout); N. Shazeer et al., "Outrageously Large Neural Networks: The
    Sparsely-Gated Mixture-of-Experts Layer", ICLR 2017, section 4 (loss on importance).
    """

    dropout: Dropout = 0.0
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    load_balance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    def gate(self, input_dim: int, num_experts: int) -> Gate:
        """Make one gate."""
        return Gate(input_dim, num_experts, dropout=self.dropout, temperature=self.temperature)

    def gates(self, input_dim: int, num_experts: int, num_gates: int) -> nn.ModuleList:
        """Make several gates of one shape."""
        return nn.ModuleList(self.gate(input_dim, num_experts) for _ in range(num_gates))

    def penalty(self, gates: Iterable[Tensor]) -> Tensor | None:
        """Return the loss on uneven loads of these gates, each (B, E); None if its factor is 0."""
        if self.load_balance == 0:
            return None
        return self.load_balance * torch.stack([_unevenness(gate_BE) for gate_BE in gates]).sum()


def _unevenness(gate_BE: Tensor) -> Tensor:
    """Return the squared coefficient of variation of the loads; their mean is 1/E, as rows sum to 1."""
    num_rows, num_experts = gate_BE.shape
    loads_E = gate_BE.sum(dim=0) / max(num_rows, 1)
    return num_experts**2 * loads_E.var(correction=0)
