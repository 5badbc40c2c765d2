"""A small network as the trainer sees it, and losses whose gradients are the rows of a given matrix."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.schema import Binary, Regression, Task
from recsys_mtl.training.balancing import Balance, Balanced, Balancer, Boundary


class Network(nn.Module):
    """Two embedded leaves, a shared bottom, a tower per task; logits lie side by side, as in ours."""

    def __init__(self, num_tasks: int, *, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.bottom = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)) for _ in range(num_tasks)
        )
        self.to(dtype)
        self.leaves = tuple(torch.randn(7, width, dtype=dtype).requires_grad_() for width in (3, 5))
        self.targets_BT = torch.randn(7, num_tasks, dtype=dtype)
        self.boundary = Boundary(self.leaves, tuple(self.parameters()))

    def losses(self, present: Sequence[bool] | None = None) -> Tensor:
        hidden_BH = self.bottom(torch.cat(self.leaves, dim=1))
        logits_BT = torch.cat([tower(hidden_BH) for tower in self.towers], dim=1)
        losses_T = (logits_BT - self.targets_BT).square().mean(dim=0)
        if present is None:
            return losses_T
        return losses_T * torch.tensor(present, dtype=losses_T.dtype)

    def penalty(self) -> Tensor:
        return self.bottom(torch.cat(self.leaves, dim=1)).square().mean()

    def clear(self) -> None:
        for target in (*self.leaves, *self.parameters()):
            target.grad = None

    def taken(self) -> list[Tensor]:
        """Return the filled gradients and clear them."""
        found = [target.grad for target in (*self.leaves, *self.parameters())]
        self.clear()
        assert all(one is not None for one in found)
        return found


@pytest.fixture
def network() -> Callable[..., Network]:
    return Network


@pytest.fixture
def build() -> Callable[..., Balancer]:
    """Build the balancer of a spec for so many tasks."""

    def made(balance: Balance, num_tasks: int, *, seed: int = 0) -> Balancer:
        tasks: list[Task] = [Binary(f"t{k}", label=f"l{k}") for k in range(num_tasks)]
        return balance.build(tasks, seed=seed, device="cpu")

    return made


@pytest.fixture
def regressions() -> list[Task]:
    return [Regression("a", label="a"), Regression("b", label="b")]


@pytest.fixture
def combine(build: Callable[..., Balancer]) -> Callable[..., Tensor]:
    """Let a balance combine the rows of a matrix, given as the tasks' gradients at one leaf."""

    def combined(
        balance: Balance,
        jacobian_TN: Tensor,
        *,
        present: Sequence[bool] | None = None,
        balancer: Balancer | None = None,
        seed: int = 0,
    ) -> Tensor:
        num_tasks, width = jacobian_TN.shape
        leaf_N = torch.zeros(width, dtype=jacobian_TN.dtype, requires_grad=True)
        balancer = balancer or build(balance, num_tasks, seed=seed)
        present_T = torch.tensor(present or [True] * num_tasks)
        losses_T = (jacobian_TN @ leaf_N) * present_T
        balancer.backward(losses_T, present_T, Boundary((leaf_N,), ()))
        assert leaf_N.grad is not None
        return leaf_N.grad

    return combined


@pytest.fixture
def feed() -> Callable[..., Balanced]:
    """Show a balancer losses of given values, of one parameter."""

    def shown(
        balancer: Balancer, losses: Sequence[float], present: Sequence[bool] | None = None
    ) -> Balanced:
        values_T = torch.tensor(losses, dtype=torch.float64)
        leaf = torch.ones((), dtype=torch.float64, requires_grad=True)
        present_T = torch.tensor(present or [True] * len(losses))
        return balancer.backward(leaf * values_T, present_T, Boundary((leaf,), ()))

    return shown
