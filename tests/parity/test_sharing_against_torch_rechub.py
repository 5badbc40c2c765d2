"""SharedBottom, MMoE and PLE against torch-rechub's, with its weights copied into ours.

Where the peer departs from the papers, and how that is made equal here:

- Its MLP puts a batch normalisation behind every linear layer. In evaluation that is an affine map,
  given by the running statistics; the test folds it into the linear layer before it. In training
  it is not: there the peer's rows depend on their batch, and ours do not.
- Its gates are such MLPs: linear layer, batch normalisation, softmax. The papers' gates are
  ``softmax(W x)``, as ours. Folding leaves them a bias that ours lack. So ours get an input that is always
  1, whose weight in a gate is that bias; experts have no weight for it. Levels of PLE hand it on:
  every expert has one unit more, of bias 1 and no weights, and a mixture of ones is one. Towers
  have no weight for it either. Nothing is left that would have to be excluded.
- Its towers end in a sigmoid, or in nothing for a regression; ours return logits.
- It embeds the features itself, so its embeddings are computed apart and handed to ours.

Its order of experts in PLE, those of each task and then the shared ones, is ours too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_mtl.network import PLE, MMoE, SharedBottom, Sharing, Towers
from recsys_mtl.network.heads import HeadsModule
from recsys_mtl.network.layers import Gate
from recsys_mtl.network.sharing import Columns, SharingModule
from recsys_mtl.schema import Binary, Regression, Task

pytest.importorskip("torch_rechub", reason="parity with torch-rechub needs it installed")
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models import multi_task

ROWS = 17
WIDTH = 6
TOWERS = [{"dims": [9]}, {"dims": [10, 7]}, {"dims": [9]}]
TYPES = ["classification", "regression", "classification"]
TASKS: tuple[Task, ...] = (
    Binary("ctr", label="click"),
    Regression("rating", label="rating"),
    Binary("like", label="like"),
)

task_counts = pytest.mark.parametrize("num_tasks", [1, 2, 3])


def _features() -> list[Any]:
    return [SparseFeature(name, vocab_size=11, embed_dim=WIDTH // 2) for name in ("user", "item")]


def _stirred(peer: Any) -> Any:
    """Give every weight and running statistic a value of no special kind that kills few units."""
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
        for norm in peer.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.weight.copy_(0.5 + torch.rand_like(norm.weight))
                norm.bias.copy_(torch.rand_like(norm.bias))
                norm.running_mean.copy_(0.2 * torch.randn_like(norm.running_mean))
                norm.running_var.copy_(0.5 + torch.rand_like(norm.running_var))
    return peer.double().eval()


def _folded(peer: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return weight and bias of each linear layer of a peer's MLP, with the normalisation behind it."""
    layers, found = list(peer.mlp), []  # type: ignore[arg-type]
    for layer, norm in zip(layers, [*layers[1:], None], strict=True):
        if not isinstance(layer, nn.Linear):
            continue
        weight, bias = layer.weight, layer.bias
        if isinstance(norm, nn.BatchNorm1d):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            weight, bias = weight * scale[:, None], (bias - norm.running_mean) * scale + norm.bias
        found.append((weight.detach(), bias.detach()))
    return found


@torch.no_grad()
def _copy(peer: nn.Module, ours: nn.Module) -> None:
    """Copy an MLP. Inputs that the peer lacks have no weight; outputs that it lacks are 1."""
    targets = [layer for layer in ours.modules() if isinstance(layer, nn.Linear)]
    for (weight, bias), target in zip(_folded(peer), targets, strict=True):
        outputs, inputs = weight.shape
        target.weight.zero_()
        target.weight[:outputs, :inputs] = weight
        target.bias.fill_(1)
        target.bias[:outputs] = bias


def _copy_all(peer: nn.ModuleList, ours: nn.ModuleList) -> None:
    for from_module, to_module in zip(peer, ours, strict=True):
        _copy(from_module, to_module)


@torch.no_grad()
def _copy_gate(peer: nn.Module, ours: Gate) -> None:
    """Copy a gate, with its bias as the weight of the input that is always 1."""
    ((weight, bias),) = _folded(peer)
    ours.weight.copy_(torch.cat([weight, bias[:, None]], dim=1))


def _build(spec: Sharing, num_tasks: int) -> tuple[SharingModule, HeadsModule]:
    """Build sharing and towers for one input more than the peer has."""
    tasks = TASKS[:num_tasks]
    sharing = spec.build(WIDTH + 1, [task.name for task in tasks], Columns()).double().eval()
    alone = [
        Towers(tuple(TOWERS[k]["dims"])).build(sharing.output_dim, [task])
        for k, task in enumerate(tasks)
    ]
    towers = Towers().build(sharing.output_dim, tasks)
    towers.towers = nn.ModuleList(one.towers[0] for one in alone)
    return sharing, towers.double().eval()


def _assert_equal(peer: Any, sharing: SharingModule, towers: HeadsModule) -> None:
    """Compare probabilities and values on the same rows, once the towers are copied."""
    _copy_all(peer.towers, towers.towers)
    rows = {name: torch.randint(11, (ROWS,)) for name in ("user", "item")}
    x_BI = peer.embedding(rows, peer.features, squeeze_dim=True)
    x_BI = torch.cat([x_BI, torch.ones(ROWS, 1)], dim=1)
    assert x_BI.dtype == torch.float64
    logits_BT = towers(sharing(x_BI[:, None]).tasks).logits_BZ
    binary_T = torch.tensor([kind == "classification" for kind in TYPES[: logits_BT.shape[1]]])
    found_BT = logits_BT.sigmoid().where(binary_T, logits_BT)
    expected_BT = peer(rows)
    assert (expected_BT.std(dim=0) > 1e-6).all()  # so that 1e-12 says something
    torch.testing.assert_close(found_BT, expected_BT, rtol=0, atol=1e-12)


@task_counts
@pytest.mark.parametrize("dims", [(8,), (8, 5)])
def test_shared_bottom_gives_the_scores_of_torch_rechub(
    dims: tuple[int, ...], num_tasks: int
) -> None:
    peer = multi_task.SharedBottom(
        _features(), TYPES[:num_tasks], {"dims": list(dims)}, TOWERS[:num_tasks]
    )
    peer = _stirred(peer)
    sharing, towers = _build(SharedBottom(dims), num_tasks)
    _copy(peer.bottom_mlp, sharing.bottom)
    _assert_equal(peer, sharing, towers)


@task_counts
@pytest.mark.parametrize("num_experts", [1, 4])
@pytest.mark.parametrize("dims", [(8,), (8, 5)])
def test_mmoe_gives_the_scores_of_torch_rechub(
    dims: tuple[int, ...], num_experts: int, num_tasks: int
) -> None:
    peer = multi_task.MMOE(
        _features(), TYPES[:num_tasks], num_experts, {"dims": list(dims)}, TOWERS[:num_tasks]
    )
    peer = _stirred(peer)
    sharing, towers = _build(MMoE(num_experts, expert_dims=_one_wider(dims)), num_tasks)
    _copy_all(peer.experts, sharing.experts)
    for from_gate, to_gate in zip(peer.gates, sharing.gates, strict=True):
        _copy_gate(from_gate, to_gate)
    _assert_equal(peer, sharing, towers)


@task_counts
@pytest.mark.parametrize(("own", "shared"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("num_levels", [1, 2, 3])
@pytest.mark.parametrize("dims", [(8,), (8, 5)])
def test_ple_gives_the_scores_of_torch_rechub(
    dims: tuple[int, ...], num_levels: int, own: int, shared: int, num_tasks: int
) -> None:
    sizes = (num_levels, own, shared, {"dims": list(dims)}, TOWERS[:num_tasks])
    peer = _stirred(multi_task.PLE(_features(), TYPES[:num_tasks], *sizes))
    spec = PLE(
        num_levels,
        num_shared_experts=shared,
        num_task_experts=own,
        expert_dims=_one_wider(dims),
    )
    sharing, towers = _build(spec, num_tasks)
    for theirs, level in zip(peer.cgc_layers, sharing.levels, strict=True):
        own_experts = [expert for experts in level.task_experts for expert in experts]
        _copy_all(theirs.experts_specific, own_experts)
        _copy_all(theirs.experts_shared, level.shared_experts)
        for from_gate, to_gate in zip(theirs.gates_specific, level.task_gates, strict=True):
            _copy_gate(from_gate, to_gate)
        assert hasattr(theirs, "gate_shared") == (level.shared_gate is not None)
        if level.shared_gate is not None:
            _copy_gate(theirs.gate_shared, level.shared_gate)
    _assert_equal(peer, sharing, towers)


def _one_wider(dims: tuple[int, ...]) -> tuple[int, ...]:
    """Widen the last layer by the unit that is always 1."""
    return (*dims[:-1], dims[-1] + 1)
