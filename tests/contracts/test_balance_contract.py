"""The law of every balance; a new file in `training/balancing` is picked up by itself."""

import copy

import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn

from recsys_mtl.schema import Binary, Multiclass, Regression, Task
from recsys_mtl.spec import Spec
from recsys_mtl.training.balancing import Balance, Balancer, Boundary

KINDS = sorted(kind for kind, cls in Spec._kinds.items() if issubclass(cls, Balance))
TASKS: list[Task] = [
    Binary("ctr", label="click"),
    Regression("rating", label="stars", weight=0.5),
    Multiclass("genre", label="genre", num_classes=3),
]


class _Network(nn.Module):
    """Two leaves, a shared layer, a gate of two experts, towers side by side."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(6, 5)
        self.towers = nn.ModuleList(nn.Linear(5, task.num_logits) for task in TASKS)
        self.to(dtype)
        self.leaves = tuple(torch.randn(9, width, dtype=dtype).requires_grad_() for width in (2, 4))
        self.boundary = Boundary(self.leaves, tuple(self.parameters()))
        self.optimizer = torch.optim.SGD([*self.parameters(), *self.leaves], lr=0.1)

    def losses(self, present_T: Tensor) -> Tensor:
        hidden_BH = torch.tanh(self.shared(torch.cat(self.leaves, dim=1)))
        logits_BZ = torch.cat([tower(hidden_BH) for tower in self.towers], dim=1)
        labels_B = torch.arange(9) % 2
        losses_T = torch.stack(
            [
                nn.functional.binary_cross_entropy_with_logits(
                    logits_BZ[:, 0], labels_B.to(logits_BZ.dtype)
                ),
                0.5 * (logits_BZ[:, 1] - torch.linspace(-1, 2, 9)).square().mean(),
                nn.functional.cross_entropy(logits_BZ[:, 2:], torch.arange(9) % 3),
            ]
        )
        return losses_T * present_T

    def step(self, balancer: Balancer, *, present: tuple[bool, ...] = (True, True, True)) -> Tensor:
        """Take one step; return the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        present_T = torch.tensor(present)
        balanced = balancer.backward(self.losses(present_T), present_T, self.boundary)
        self.optimizer.step()
        return balanced.weights_T

    def state(self) -> list[Tensor]:
        return [one.detach().clone() for one in (*self.leaves, *self.parameters())]


def _spec(kind: str) -> Balance:
    if kind in {"aligned_mtl", "cagrad", "fair_grad", "imtl_g", "pcgrad"}:
        pytest.importorskip("torchjd", reason="needs the extra `balancing`")
    if kind == "cagrad":
        pytest.importorskip("clarabel", reason="needs the extra `cagrad`")
    return Balance.from_dict({"kind": kind} | _short_windows(kind))


def _short_windows(kind: str) -> dict[str, int]:
    return {"window": 2} if kind in {"dwa", "gradnorm"} else {}


def _balancer(kind: str, *, seed: int = 0) -> Balancer:
    return _spec(kind).build(TASKS, seed=seed, device="cpu")


def test_the_known_kinds_are_found() -> None:
    assert {"dwa", "famo", "fixed", "gradnorm", "mgda", "pcgrad", "random", "uncertainty"} <= set(
        KINDS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_json_gives_the_same_spec_back(kind: str) -> None:
    spec = _spec(kind)
    assert spec.kind == kind
    assert Balance.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("kind", KINDS)
def test_copies_equal_the_spec(kind: str) -> None:
    spec = _spec(kind)
    assert copy.deepcopy(spec) == clone(spec, safe=False) == spec
    assert hash(copy.deepcopy(spec)) == hash(spec)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_after_two_steps_everything_has_a_finite_gradient_that_is_not_zero(
    kind: str, dtype: torch.dtype
) -> None:
    network, balancer = _Network(dtype), _balancer(kind)
    for _ in range(2):
        network.step(balancer)
        for target in (*network.leaves, *network.parameters()):
            assert target.grad is not None
            assert target.grad.dtype == dtype
            assert target.grad.isfinite().all()
            assert target.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_weights_stay_finite_whichever_tasks_have_labels(kind: str) -> None:
    network, balancer = _Network(torch.float32), _balancer(kind)
    for number in (7, 5, 0, 1, 4, 7, 2, 0, 7):
        present = (bool(number & 1), bool(number & 2), bool(number & 4))
        weights_T = network.step(balancer, present=present)
        assert weights_T.shape == (3,)
        assert weights_T.isfinite().all()
    assert all(one.isfinite().all() for one in network.state())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(kind: str) -> None:
    network, balancer = _Network(torch.float32), _balancer(kind)
    all_T = torch.ones(3, dtype=torch.bool)
    before = network.losses(all_T).sum()
    for _ in range(20):
        network.step(balancer)
    assert network.losses(all_T).sum() < before


@pytest.mark.parametrize("kind", KINDS)
def test_a_break_changes_nothing(kind: str) -> None:
    whole, broken = _Network(torch.float32), _Network(torch.float32)
    one, first = _balancer(kind, seed=3), _balancer(kind, seed=3)
    for _ in range(5):
        whole.step(one)
        broken.step(first)
    saved, second = first.state_dict(), _balancer(kind, seed=4)
    for _ in range(3):
        broken.step(first)  # what was saved must be a copy
    for target, value in zip((*broken.leaves, *broken.parameters()), whole.state(), strict=True):
        target.data.copy_(value)
    second.load_state_dict(saved)
    for _ in range(5):
        whole.step(one)
        broken.step(second)
    assert all(map(torch.equal, whole.state(), broken.state()))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_whatever_torch_s_is(kind: str) -> None:
    runs = []
    for noise in (1, 2):
        network, balancer = _Network(torch.float32), _balancer(kind, seed=3)
        torch.manual_seed(noise)
        for _ in range(5):
            network.step(balancer)
        runs.append(network.state())
    assert all(map(torch.equal, *runs))
