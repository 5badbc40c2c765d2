"""K12 of the science reference: gate dropout; temperature and the load-balance loss."""

import math

import pytest
import torch
from torch import Tensor

from recsys_mtl.errors import SchemaError
from recsys_mtl.network import PLE, MMoE
from recsys_mtl.network.layers import Gate, gate_all
from recsys_mtl.network.sharing import Columns, Gating, HoME, OMoE

SHARES = (0.5, 0.3, 0.15, 0.05)
NAMES = ("a", "b", "c")


def _gate(dropout: float, shares: tuple[float, ...] = SHARES) -> Gate:
    """A gate that gives these shares to the input 1."""
    gate = Gate(1, len(shares), dropout=dropout).double()
    gate.weight.data = torch.tensor(shares, dtype=torch.float64).log()[:, None]
    return gate


def _ones(num_rows: int) -> Tensor:
    return torch.ones(num_rows, 1, dtype=torch.float64)


def _expected(p: float) -> list[float]:
    """Mean shares by going through all 16 sets of experts dropped."""
    mean = [0.0] * 4
    for which in range(16):
        kept = [i for i in range(4) if not which >> i & 1] or [0, 1, 2, 3]
        dropped = which.bit_count()
        chance = p**dropped * (1 - p) ** (4 - dropped)
        for i in kept:
            mean[i] += chance * SHARES[i] / sum(SHARES[k] for k in kept)
    return mean


def test_mean_shares_under_dropout_are_those_of_all_sets_of_dropped_experts() -> None:
    expected = _expected(0.1)
    assert [round(share, 5) for share in expected] == [0.48098, 0.30563, 0.15898, 0.05441]
    gate_BE = _gate(0.1)(_ones(200_000))
    error_E = gate_BE.std(dim=0) / math.sqrt(200_000)
    assert ((gate_BE.mean(dim=0) - torch.tensor(expected)).abs() < 4 * error_E).all()


def test_experts_left_share_one_in_their_old_proportions() -> None:
    gate_BE = _gate(0.5)(_ones(2000))
    torch.testing.assert_close(gate_BE.sum(dim=1), torch.ones(2000).double(), rtol=0, atol=1e-12)
    both = (gate_BE[:, 0] > 0) & (gate_BE[:, 2] > 0)
    assert 0 < both.sum() < 2000
    ratio_B = gate_BE[both, 0] / gate_BE[both, 2]
    torch.testing.assert_close(ratio_B, torch.full_like(ratio_B, 0.5 / 0.15), rtol=1e-12, atol=0)


def test_a_row_that_would_lose_all_experts_keeps_the_undropped_gate() -> None:
    gate_BE = _gate(0.99)(_ones(1000))
    whole = (gate_BE > 0).all(dim=1)
    assert whole.sum() > 900
    expected = torch.tensor(SHARES, dtype=torch.float64).expand(int(whole.sum()), 4)
    torch.testing.assert_close(gate_BE[whole], expected, rtol=0, atol=1e-12)
    assert (gate_BE > 0).any(dim=1).all()


def test_a_lone_expert_is_never_dropped() -> None:
    assert torch.equal(_gate(0.9, (1.0,))(_ones(100)), _ones(100))


def test_dropout_draws_for_each_gate_and_row() -> None:
    torch.manual_seed(0)
    gates_BTE = gate_all(Gating(dropout=0.5).gates(1, 4, 3), torch.ones(50, 1))
    patterns_BTE = gates_BTE > 0
    assert not torch.equal(patterns_BTE[:, 0], patterns_BTE[:, 1])
    assert len(patterns_BTE.flatten(1).unique(dim=0)) > 10


def test_evaluation_drops_nothing() -> None:
    expected = torch.tensor(SHARES, dtype=torch.float64).expand(50, 4)
    torch.testing.assert_close(_gate(0.5).eval()(_ones(50)), expected, rtol=0, atol=1e-12)


def test_gradients_stay_finite_where_all_but_one_expert_fall() -> None:
    gate = _gate(0.9)
    (gate(_ones(500)) * torch.arange(4.0)).sum().backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.isfinite().all()
    assert gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropout_and_temperature_work_in_half_precision(dtype: torch.dtype) -> None:
    gate = Gate(4, 3, dropout=0.5, temperature=0.5).to(dtype)
    gate_BE = gate(torch.randn(64, 4, dtype=dtype))
    assert gate_BE.dtype == torch.float32
    torch.testing.assert_close(gate_BE.sum(dim=1), torch.ones(64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
def test_temperature_is_a_power_of_the_shares(temperature: float) -> None:
    gate = _gate(0.0)
    gate.temperature = temperature
    powers = [share ** (1 / temperature) for share in SHARES]
    expected = [power / sum(powers) for power in powers]
    assert gate(_ones(1))[0].tolist() == pytest.approx(expected, abs=1e-12)


def test_each_gate_of_several_equals_the_gate_alone() -> None:
    gates, x_BI = Gating(temperature=2.0).gates(5, 4, 3).double(), torch.randn(7, 5).double()
    for number, gate_BE in enumerate(gate_all(gates, x_BI).unbind(1)):
        torch.testing.assert_close(gates[number](x_BI), gate_BE, rtol=0, atol=1e-12)


def test_load_balance_is_the_squared_coefficient_of_variation_of_mean_shares() -> None:
    gates = [torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.2, 0.8], [0.8, 0.2]])]
    # Loads .7 and .3: deviation .2 around .5, so (.2 / .5) ** 2; loads .5 and .5: nothing.
    penalty = Gating(load_balance=0.5).penalty(gates)
    assert penalty is not None
    assert float(penalty) == pytest.approx(0.5 * 0.16, abs=1e-6)


def test_load_balance_of_an_empty_batch_is_zero_and_one_expert_is_balanced() -> None:
    gating = Gating(load_balance=1.0)
    assert float(gating.penalty([torch.zeros(0, 3)])) == 0
    assert float(gating.penalty([torch.ones(5, 1)])) == 0


def test_without_a_factor_there_is_no_penalty() -> None:
    assert Gating().penalty([torch.ones(5, 1)]) is None
    assert MMoE(2).build(3, NAMES, Columns())(torch.randn(4, 1, 3)).penalty is None


@pytest.mark.parametrize("sharing", [MMoE, OMoE, PLE, HoME])
def test_the_penalty_is_the_sum_over_the_gates_and_evens_out_the_loads(sharing: type) -> None:
    spec = sharing(expert_dims=(4,), gating=Gating(load_balance=0.1))
    module, x_BVI = spec.build(5, NAMES, Columns()), torch.randn(64, 1, 5) + 1
    found = module(x_BVI)
    distinct = {id(gate_BE): gate_BE for level in found.gates for gate_BE in level}
    expected = 0.0
    for gate_BE in distinct.values():
        loads = gate_BE.detach().mean(dim=0)
        expected += 0.1 * float((loads.std(correction=0) / loads.mean()) ** 2)
    assert expected > 0
    assert float(found.penalty.detach()) == pytest.approx(expected, rel=1e-4)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        module(x_BVI).penalty.backward()
        optimizer.step()
    assert float(module(x_BVI).penalty.detach()) < 0.5 * expected


@pytest.mark.parametrize(
    "wrong", [{"dropout": 1.0}, {"temperature": 0.0}, {"load_balance": -1.0}, {"dropout": -0.1}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SchemaError, match=next(iter(wrong))):
        Gating(**wrong)


def test_gating_is_read_from_plain_values() -> None:
    spec = MMoE.from_dict({"kind": "mmoe", "gating": {"dropout": 0.1}})
    assert spec == MMoE(gating=Gating(dropout=0.1))
    assert MMoE.from_json(spec.to_json()) == spec
