"""The law of every sequence encoder; a new file in `network/sequence` is picked up by itself."""

import copy

import pytest
import torch
from sklearn.base import clone
from torch import Tensor

from recsys_mtl.network import SequenceEncoder
from recsys_mtl.network.sequence import SequenceModule
from recsys_mtl.spec import Spec

DIM = 6
KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, SequenceEncoder))
LENGTHS = (3, 0, 5, 1, 0, 4, 2)
EXACT = {"rtol": 0, "atol": 1e-12}

kinds = pytest.mark.parametrize("kind", KINDS)


def _spec(kind: str) -> SequenceEncoder:
    return SequenceEncoder.from_dict({"kind": kind})


def _module(kind: str, *, seed: int = 0) -> SequenceModule:
    """Build the module; what stands for an empty history is made to differ from zero."""
    torch.manual_seed(seed)
    module = _spec(kind).build(DIM)
    torch.nn.init.normal_(module.empty_D)
    return module


def _events(
    lengths: tuple[int, ...] = LENGTHS, *, columns: int = 5, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw histories, each row's at the front and 0 behind, their mask and targets."""
    generator = torch.Generator().manual_seed(1)
    history_BLD = torch.randn(len(lengths), columns, DIM, generator=generator, dtype=torch.float64)
    mask_BL = torch.arange(columns) < torch.tensor(lengths, dtype=torch.int64)[:, None]
    target_BD = torch.randn(len(lengths), DIM, generator=generator, dtype=torch.float64)
    return history_BLD.where(mask_BL[..., None], 0).to(dtype), mask_BL, target_BD.to(dtype)


def _soiled(history_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Put large numbers behind the mask."""
    return history_BLD.where(mask_BL[..., None], 1000 * torch.randn_like(history_BLD))


def _train(module: SequenceModule) -> None:
    """Take two steps towards a target of no special kind."""
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    events = _events(dtype=torch.float32)
    for _ in range(2):
        optimizer.zero_grad()
        (module(*events) - torch.arange(DIM)).square().sum().backward()
        optimizer.step()


def test_the_known_kinds_are_found() -> None:
    assert {"causal_attention", "dilated_cnn", "din", "gru", "mean"} <= set(KINDS)


@kinds
def test_json_gives_the_same_spec_back(kind: str) -> None:
    spec = _spec(kind)
    assert spec.kind == kind
    assert SequenceEncoder.from_json(spec.to_json()) == spec
    named = SequenceEncoder.from_dict({"kind": kind, "feature": "watched"})
    assert named.feature == "watched"
    assert SequenceEncoder.from_json(named.to_json()) == named != spec


@kinds
def test_copies_equal_the_spec(kind: str) -> None:
    spec = _spec(kind)
    assert copy.deepcopy(spec) == spec
    assert clone(spec, safe=False) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)


@pytest.mark.parametrize("columns", [0, 1, 9])
@pytest.mark.parametrize("num_rows", [0, 1, 7])
@kinds
def test_each_row_has_one_finite_vector(kind: str, num_rows: int, columns: int) -> None:
    events = _events((min(columns, 4),) * num_rows, columns=columns, dtype=torch.float32)
    found_BD = _module(kind)(*events)
    assert found_BD.shape == (num_rows, DIM)
    assert found_BD.dtype == torch.float32
    assert found_BD.isfinite().all()


@kinds
def test_an_empty_history_is_the_learned_vector_whatever_stands_there(kind: str) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind).double(), _events()
    found_BD = module(_soiled(history_BLD, mask_BL), mask_BL, target_BD)
    empty_B = ~mask_BL.any(dim=1)
    assert torch.equal(found_BD[empty_B], module.empty_D.expand(2, DIM))
    assert (found_BD[~empty_B] != module.empty_D).all()


@kinds
def test_no_columns_at_all_are_empty_histories_and_every_parameter_is_in_the_graph(
    kind: str,
) -> None:
    module = _module(kind)
    found_BD = module(*_events((0, 0), columns=0, dtype=torch.float32))
    assert torch.equal(found_BD, module.empty_D.expand(2, DIM))
    found_BD.sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        expected = 2.0 if name == "empty_D" else 0.0
        assert (parameter.grad == expected).all(), name


@kinds
def test_what_is_behind_the_mask_changes_no_bit(kind: str) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind).double(), _events()
    runs = []
    for events_BLD in (history_BLD, _soiled(history_BLD, mask_BL)):
        module.zero_grad()
        given_BLD = events_BLD.clone().requires_grad_()
        found_BD = module(given_BLD, mask_BL, target_BD)
        found_BD.square().sum().backward()
        runs.append((found_BD, given_BLD.grad, [p.grad.clone() for p in module.parameters()]))
    (plain_BD, plain_BLD, plain), (soiled_BD, soiled_BLD, soiled) = runs
    assert torch.equal(plain_BD, soiled_BD)
    assert torch.equal(plain_BLD, soiled_BLD)
    assert not plain_BLD[~mask_BL].any()
    torch.testing.assert_close(plain, soiled, **EXACT)


@pytest.mark.parametrize("columns", [6, 17, 64])
@kinds
def test_more_columns_change_nothing(kind: str, columns: int) -> None:
    module = _module(kind).double()
    torch.testing.assert_close(module(*_events()), _widened(module, columns), **EXACT)


def _widened(module: SequenceModule, columns: int) -> Tensor:
    history_BLD, mask_BL, target_BD = _events()
    more = columns - mask_BL.shape[1]
    wide_BLD = torch.nn.functional.pad(history_BLD, (0, 0, 0, more))
    return module(wide_BLD, torch.nn.functional.pad(mask_BL, (0, more)), target_BD)


@kinds
def test_a_history_read_early_knows_nothing_of_later_events(kind: str) -> None:
    """Encode every beginning of a history while the rest of it stands behind the mask."""
    module = _module(kind).double()
    history_BLD, _, target_BD = _events((5,) * 5)
    early_BL = torch.arange(5) <= torch.arange(5)[:, None]
    found_BD = module(history_BLD, early_BL, target_BD)
    for row in range(5):
        alone = history_BLD[row : row + 1, : row + 1]
        alone_BD = module(alone, torch.ones(1, row + 1).bool(), target_BD[row : row + 1])
        torch.testing.assert_close(alone_BD[0], found_BD[row], **EXACT)


@kinds
def test_every_event_of_a_row_matters_and_those_of_other_rows_do_not(kind: str) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind).double(), _events()
    given_BLD = history_BLD.clone().requires_grad_()
    weight_D = torch.arange(1.0, DIM + 1).square()
    found_BD = module(given_BLD, mask_BL, target_BD)
    for row in range(len(LENGTHS)):
        loss = (found_BD[row] * weight_D).sum()
        (gradient_BLD,) = torch.autograd.grad(loss, given_BLD, retain_graph=True)
        expected_BL = mask_BL & (torch.arange(len(LENGTHS)) == row)[:, None]
        assert torch.equal(gradient_BLD.abs().sum(dim=2) > 0, expected_BL)


@kinds
def test_rows_do_not_depend_on_their_batch(kind: str) -> None:
    """Within rounding: matrix products of other shapes add in another order."""
    module, events = _module(kind).double().eval(), _events()
    whole_BD = module(*events)
    for row in range(len(LENGTHS)):
        alone_BD = module(*(value[row : row + 1] for value in events))
        torch.testing.assert_close(alone_BD[0], whole_BD[row], **EXACT)


@kinds
def test_only_encoders_that_say_so_read_the_target(kind: str) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind).double(), _events()
    found_BD = module(history_BLD, mask_BL, target_BD)
    if _spec(kind).needs_target:
        other_BD = module(history_BLD, mask_BL, target_BD + 1)
        assert (found_BD != other_BD).any(dim=1).tolist() == mask_BL.any(dim=1).tolist()
    else:
        assert torch.equal(found_BD, module(history_BLD, mask_BL, None))


@kinds
def test_an_encoder_that_may_be_given_the_mean_finds_the_same_in_it(kind: str) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind).double(), _events()
    mean_B1D = history_BLD.sum(dim=1, keepdim=True) / mask_BL.sum(dim=1).clamp(min=1)[:, None, None]
    from_mean_BD = module(mean_B1D, mask_BL.any(dim=1, keepdim=True), target_BD)
    same = torch.allclose(from_mean_BD, module(history_BLD, mask_BL, target_BD), **EXACT)
    assert same == _spec(kind).pooled_first


@kinds
def test_float64_gives_float64_close_to_float32(kind: str) -> None:
    module = _module(kind)
    narrow_BD = module(*_events(dtype=torch.float32))
    wide_BD = copy.deepcopy(module).double()(*_events())
    assert wide_BD.dtype == torch.float64
    torch.testing.assert_close(narrow_BD.double(), wide_BD, rtol=0, atol=1e-5)


@kinds
def test_after_two_steps_every_parameter_has_a_finite_gradient_that_is_not_zero(kind: str) -> None:
    module = _module(kind)
    _train(module)
    module.zero_grad()
    (module(*_events(dtype=torch.float32)) - torch.arange(DIM)).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("lengths", [(), (0,), LENGTHS])
@kinds
def test_gradients_are_finite_under_bfloat16_autocast(kind: str, lengths: tuple[int, ...]) -> None:
    module, (history_BLD, mask_BL, target_BD) = _module(kind), _events(lengths, dtype=torch.float32)
    history_BLD.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half_BD = module(history_BLD, mask_BL, target_BD)
    wide_BD = module(history_BLD.detach(), mask_BL, target_BD)
    torch.testing.assert_close(half_BD.float(), wide_BD, rtol=0.1, atol=0.1)
    half_BD.float().square().sum().backward()
    for value in (history_BLD, *module.parameters()):
        assert value.grad is not None
        assert value.grad.isfinite().all()


@kinds
def test_the_seed_alone_decides_the_weights(kind: str) -> None:
    first, again, other = (_module(kind, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@kinds
def test_training_twice_gives_the_same_bits(kind: str) -> None:
    runs = []
    for _ in range(2):
        module = _module(kind)
        _train(module)
        runs.append(module.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@kinds
def test_a_state_dict_carries_the_whole_module(kind: str) -> None:
    trained, fresh = _module(kind), _module(kind, seed=9)
    _train(trained)
    fresh.load_state_dict(trained.state_dict())
    events = _events(dtype=torch.float32)
    assert torch.equal(trained.eval()(*events), fresh.eval()(*events))


@kinds
def test_forward_leaves_nothing_on_the_module(kind: str) -> None:
    module = _module(kind)
    before = _attributes(module)
    module(*_events(dtype=torch.float32))
    assert _attributes(module) == before


def _attributes(module: SequenceModule) -> dict[tuple[str, str], int]:
    """Tell every attribute, parameter and buffer of all submodules, by identity."""
    found = {}
    for name, part in module.named_modules():
        places = {**vars(part), **part._parameters, **part._buffers}
        found |= {(name, key): id(value) for key, value in places.items()}
    return found
