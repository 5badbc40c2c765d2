"""What all extractors share: their width, and a kind of the user's own."""

from typing import Annotated

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_mtl.errors import SchemaError
from recsys_mtl.network.extractor import Extractor, output_width
from recsys_mtl.spec import spec


@spec
class SignalRNN(Extractor, kind="test_signal_rnn"):
    """An extractor as a user would write it: the last state of a GRU over a signal."""

    state_dim: Annotated[int, Field(ge=1)] = 4

    def build(self, input_dim: int) -> nn.Module:
        del input_dim  # a recurrent network reads signals of any length
        return _LastState(self.state_dim)


class _LastState(nn.Module):
    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, state_dim, batch_first=True)

    def forward(self, x_BN: Tensor) -> Tensor:
        return self.gru(x_BN[..., None])[1][0]


class _Returns(nn.Module):
    """Gives a tensor of one shape, whatever it is given."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x_BN: Tensor) -> Tensor:
        return x_BN.new_zeros(self.shape)


def test_a_kind_of_the_users_own_is_found_and_comes_back_from_json() -> None:
    made = Extractor.from_dict({"kind": "test_signal_rnn", "feature": "pulse", "state_dim": 3})
    assert made == SignalRNN("pulse", 3)
    assert Extractor.from_json(made.to_json()) == made
    assert Extractor.from_json(SignalRNN("pulse").to_json()) != made


def test_a_kind_of_the_users_own_is_validated() -> None:
    with pytest.raises(SchemaError, match=r"state_dim.*Found 0"):
        SignalRNN("pulse", state_dim=0)
    with pytest.raises(SchemaError, match=r"states is not known to SignalRNN"):
        Extractor.from_dict({"kind": "test_signal_rnn", "feature": "pulse", "states": 3})


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SchemaError, match=r"must be one of .*image_cnn.*Found 'vision_tower'"):
        Extractor.from_dict({"kind": "vision_tower", "feature": "pulse"})


def test_the_feature_must_be_named() -> None:
    with pytest.raises(SchemaError, match="feature"):
        Extractor.from_dict({"kind": "test_signal_rnn"})


@pytest.mark.parametrize("state_dim", [1, 4])
def test_the_width_of_the_result_is_found_by_a_trial(state_dim: int) -> None:
    module = SignalRNN("pulse", state_dim).build(9)
    assert output_width(module, 9, feature="pulse") == state_dim


@pytest.mark.parametrize("training", [True, False])
def test_the_trial_leaves_modes_statistics_and_gradients_alone(training: bool) -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert output_width(module, 3, feature="pulse") == 2
    assert module.training == training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4), (3, 4), ()])
def test_a_result_that_is_no_vector_per_row_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        SchemaError, match=r"extractor of 'pulse' must map \(B, 9\) to \(B, width\)"
    ):
        output_width(_Returns(*shape), 9, feature="pulse")
