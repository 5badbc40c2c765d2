import torch

from recsys_mtl.network import MMoE
from recsys_mtl.network.sharing import Columns, OMoE

NAMES = ("a", "b", "c")


def test_omoe_is_mmoe_with_tied_gates() -> None:
    omoe = OMoE(4, expert_dims=(7, 4)).build(5, NAMES, Columns()).double()
    mmoe = MMoE(4, expert_dims=(7, 4)).build(5, NAMES, Columns()).double()
    mmoe.experts.load_state_dict(omoe.experts.state_dict())
    for gate in mmoe.gates:
        gate.load_state_dict(omoe.gate.state_dict())
    x_BVI = torch.randn(9, 1, 5).double()
    one, other = omoe(x_BVI), mmoe(x_BVI)
    assert len(one.tasks) == len(one.gates[0]) == 3
    for mine, theirs in zip(one.tasks, other.tasks, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    for module in (omoe, mmoe):
        sum((k + 1) * t.square().sum() for k, t in enumerate(module(x_BVI).tasks)).backward()
    tied = sum(gate.weight.grad for gate in mmoe.gates)
    torch.testing.assert_close(omoe.gate.weight.grad, tied, rtol=1e-12, atol=1e-12)


def test_all_tasks_are_the_same_tensor() -> None:
    tasks = OMoE(2).build(5, NAMES, Columns())(torch.randn(4, 1, 5)).tasks
    assert tasks[0] is tasks[1] is tasks[2]
