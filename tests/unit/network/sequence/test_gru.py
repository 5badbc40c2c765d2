"""The GRU against its equations, row by row and event by event."""

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.sequence import GRU

DIM = 5


def _state(gru: nn.GRU, events_LD: Tensor) -> Tensor:
    state_H = torch.zeros(gru.hidden_size).double()
    for event_D in events_LD:
        of_event = (gru.weight_ih_l0 @ event_D + gru.bias_ih_l0).chunk(3)
        of_state = (gru.weight_hh_l0 @ state_H + gru.bias_hh_l0).chunk(3)
        reset_H = torch.sigmoid(of_event[0] + of_state[0])
        update_H = torch.sigmoid(of_event[1] + of_state[1])
        new_H = torch.tanh(of_event[2] + reset_H * of_state[2])
        state_H = (1 - update_H) * new_H + update_H * state_H
    return state_H


@pytest.mark.parametrize("hidden_dim", [None, DIM, 3, 8])
def test_it_equals_the_equations_on_each_history_alone(hidden_dim: int | None) -> None:
    module = GRU(hidden_dim=hidden_dim).build(DIM).double()
    history_BLD, lengths = torch.randn(4, 6, DIM).double(), [6, 1, 3, 5]
    mask_BL = torch.arange(6) < torch.tensor(lengths)[:, None]
    found_BD = module(history_BLD, mask_BL, None)
    for row, length in enumerate(lengths):
        expected_D = module.project(_state(module.gru, history_BLD[row, :length]))
        torch.testing.assert_close(found_BD[row], expected_D, rtol=0, atol=1e-12)


def test_a_state_of_the_events_width_needs_no_projection() -> None:
    assert not list(GRU(hidden_dim=DIM).build(DIM).project.parameters())
    assert len(list(GRU(hidden_dim=DIM + 1).build(DIM).project.parameters())) == 2


def test_order_matters() -> None:
    module, history_BLD = GRU().build(DIM), torch.randn(1, 4, DIM)
    mask_BL = torch.ones(1, 4).bool()
    turned_BD = module(history_BLD.flip(1), mask_BL, None)
    assert not torch.allclose(module(history_BLD, mask_BL, None), turned_BD)


def test_a_state_without_width_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"hidden_dim.*greater than or equal to 1"):
        GRU(hidden_dim=0)
